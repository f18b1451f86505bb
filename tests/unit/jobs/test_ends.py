"""Which answer to an end means what: without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.jobs import transitions
from couchjobs.jobs.ends import Ends
from couchjobs.jobs.job import Job, State
from couchjobs.timestamps import now

RUNNING = {
    "_id": "job",
    "_rev": "2-a",
    "worker": "w",
    "message": 1,
    "state": "running",
    "exec_count": 1,
    "claim": {"id": "one", "daemon": "own"},
}


class Server:
    """A writer and its database, whose answers are given beforehand."""

    def __init__(self, *answers: Written, present: dict[str, Any] | None = None) -> None:
        self.answers = [*answers]
        self.present = present
        self.written: list[dict[str, Any]] = []
        self.database = SimpleNamespace(name="jobs", find=self._find)

    async def write(self, document: dict[str, Any]) -> WriteAnswer:
        """Answer as it was said."""
        self.written.append({**document})
        return WriteAnswer(self.answers.pop(0), rev=f"{len(self.written) + 2}-b", reason="not so")

    async def _find(self, _doc_id: str) -> dict[str, Any] | None:
        return self.present


def ends_on(server: Any) -> Ends:
    """The ends that are written there."""
    return Ends(server.database, server, 1.0)


async def test_end_when_refused_and_somebody_writes_beside_what_is_left_of_it_then_it_ends_all_the_same() -> None:
    """It is still this daemon's: to take it for lost would have its work done twice."""
    changed = {**RUNNING, "_rev": "3-x", "note": "somebody else's"}
    server = Server(Written.REFUSED, Written.CONFLICT, Written.OK, present=changed)
    job = Job.from_document(RUNNING)
    assert await ends_on(server).ack(job)
    assert [one["_rev"] for one in server.written] == ["2-a", "2-a", "3-x"]
    assert server.written[-1]["note"] == "somebody else's"
    assert job.state is State.DONE


async def test_end_when_refused_and_the_job_is_anothers_by_then_then_it_is_lost() -> None:
    """What is left of the end is not written over what the other does."""
    server = Server(Written.REFUSED, Written.CONFLICT, present={**RUNNING, "_rev": "3-x", "claim": {"id": "two"}})
    assert not await ends_on(server).ack(Job.from_document(RUNNING))
    assert len(server.written) == 2


async def test_result_when_refused_and_couchdb_falters_then_the_end_without_it_is_waited_for() -> None:
    """The work is done: that the database is not to be had for a moment is no reason to do it again."""
    server = Server(Written.REFUSED, Written.UNKNOWN, Written.UNKNOWN, Written.OK, present=dict(RUNNING))
    job = Job.from_document(RUNNING)
    assert await Ends(server.database, server, 0.0).ack(job, {"answer": 42})  # type: ignore[arg-type]
    assert job.state is State.DONE


def test_reduced_when_another_job_has_pushed_it_then_it_still_says_so() -> None:
    """Retention asks for it."""
    told = {"id": "maker", "worker": "w"}
    assert transitions.reduced({**RUNNING, "pushed_by": told}, None, now(), "no")["pushed_by"] == told
    for odd in ({"id": "x" * 30_000, "worker": "w"}, {"id": 7}, "maker"):
        assert "pushed_by" not in transitions.reduced({**RUNNING, "pushed_by": odd}, None, now(), "no")


async def test_result_when_refused_then_the_job_is_done_with_its_seconds_and_says_why() -> None:
    """Once more without the result; when that is asked of a job done anew, what was then says nothing."""
    server = Server(Written.REFUSED, Written.OK)
    job = Job.from_document(RUNNING)
    assert await ends_on(server).ack(job, {"answer": 42}, seconds=1.25)
    assert (job.state, job.result, job.seconds) == (State.DONE, None, 1.25)
    assert server.written[1]["seconds"] == 1.25
    assert "not so" in transitions.why_without_result(job)
    again = Job.from_document(job.document_with(transitions.requeued(job, now())))
    again = Job.from_document(again.document_with({"state": State.RUNNING, "exec_count": 1}))
    done = Job.from_document(again.document_with(transitions.done(now(), None, 0.5)))
    assert done.errors
    assert transitions.why_without_result(done) == ""
