"""What a document of the jobs database is to a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from couchjobs.broker.classify import Cancel, Changed, Foreign, GiveUp, Ignore, Offer, Refuse, Reject, Settle, classify
from couchjobs.broker.lane import Execution, Lane
from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.couch.connection import connect
from couchjobs.jobs.admin_proof import AdminProof
from couchjobs.jobs.job import Job
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.settings import load_settings
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.processes import InProcess
from couchjobs.workers.slots import Slots

OWN = {"state": "running", "claim": {"id": "c", "daemon": "own"}}


def nothing(ctx: Any) -> None:
    """Do nothing."""


WORKERS = WorkersList([WorkerConfig(worker_type="w", worker_func=nothing, max_exec_count=3)])


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    """A lane with one worker type, of which nothing is known; no server is asked."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        tenant = connection.settings.tenant
        yield Lane.of(
            JobStore(connection, tenant), WORKERS, {"w": 2}, Daemon(connection, tenant), AdminProof(connection, tenant)
        )


def document(**more: Any) -> dict[str, Any]:
    """A queued job, but for what is said."""
    return {"_id": "job", "_rev": "1-a", "worker": "w", "message": 1, "state": "queued", **more}


@pytest.mark.parametrize(
    ("more", "meaning"),
    [
        ({}, Offer),
        ({"state": "running"}, Ignore),
        ({"state": "done"}, Ignore),
        ({"state": "errored"}, Ignore),
        ({"_id": "_design/jobs"}, Ignore),
        ({"worker": "other"}, Foreign),
        ({"cancel_requested": True}, Cancel),
        ({"cancel_requested": True, "worker": "other"}, Cancel),
        ({"exec_count": 2}, Offer),
        ({"exec_count": 3}, Refuse),
        ({"exec_count": 1, "options": {"max_exec_count": 1}}, Refuse),
        ({"exec_count": 1, "options": {"max_exec_count": 0}}, Offer),
        ({"worker": 5}, Reject),
        ({"state": "quued"}, Reject),
        ({"options": {"timeout": "soon"}}, Reject),
        ({"message": "x" * 2_000_000}, Reject),
        (OWN, GiveUp),
        ({**OWN, "claim": {"id": "c", "daemon": "other"}}, Ignore),
        ({**OWN, "claim": 5}, Ignore),
    ],
)
def test_classify_when_nothing_is_known_then_the_document_decides(lane: Lane, more: Any, meaning: type) -> None:
    """One meaning, whatever is in it."""
    assert type(classify(document(**more), lane, "own")) is meaning


def test_classify_when_the_document_is_large_then_not_kept(lane: Lane) -> None:
    """It is read again for its claim."""
    small, large = classify(document(), lane, "own"), classify(document(message="x" * 20_000), lane, "own")
    assert (small.keep, large.keep) == (True, False)  # type: ignore[union-attr]


def test_classify_when_something_is_known_of_the_job_then_that_decides(lane: Lane) -> None:
    """It runs here; it was written here; all its leaves are to be looked at first."""
    lane.in_conflict["job"] = None
    assert type(classify(document(), lane, "own")) is Settle
    lane.claims.revisions.add("1-a")
    assert type(classify(document(**OWN), lane, "own")) is Settle, "the claim is our own, and so is no doubt"
    process = InProcess(WORKERS, 1.0, CouchEngine(None, WORKERS))  # type: ignore[arg-type]
    slot = Slots(WORKERS, process).take("w")
    lane.executions["job"] = Execution(lane, Job.read(document()), slot)
    assert type(classify(document(cancel_requested=True), lane, "own")) is Changed


def test_execution_when_rows_come_while_it_is_claimed_then_not_read_and_not_forgotten(lane: Lane) -> None:
    """A row may be of the claim itself; any other is read when the job has ended here."""
    process = InProcess(WORKERS, 1.0, CouchEngine(None, WORKERS))  # type: ignore[arg-type]
    execution = Execution(lane, Job.read(document()), Slots(WORKERS, process).take("w"))
    assert execution.note_row("1-a")
    assert not execution.is_to_be_read()
    assert execution.note_row("2-b")
    assert execution.is_changed()
    execution.job.moved({}, document(), "2-b")
    assert not execution.is_changed(), "it was the claim"
    assert execution.is_to_be_read(), "it is queued still: the claim was not ours"


@pytest.mark.parametrize("more", [{"domain": "evil.example", "prefix": "theirs"}, {"domain": "", "prefix": None}])
def test_classify_when_a_document_names_a_tenant_then_it_is_that_of_its_database_all_the_same(
    lane: Lane, more: dict[str, Any]
) -> None:
    """Functions take what the job says for whom they work; and its document stays as it was written."""
    lane.store.checks._db = Prefixer("shop.example", "shop")
    found = classify(document(**more), lane, "own")
    assert isinstance(found, Offer)
    assert (found.job.domain, found.job.prefix) == ("shop.example", "shop")
    assert found.job.document() == document(**more)


async def test_unread_when_its_own_document_can_be_read_then_left_alone(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the answer for many that could not: a proxy's, or one cut short."""
    for text, marked in ((b'{"worker": "w"}', False), (b'{"worker": ', True), (b"[" * 100_000, True)):
        written: list[str] = []

        async def raw(job_id: str, text: bytes = text) -> tuple[str, bytes]:
            return "1-a", text

        async def reduce(*_: Any, written: list[str] = written) -> tuple[WriteAnswer, dict[str, Any]]:
            written.append("job")
            return WriteAnswer(Written.OK, rev="2-b"), {}

        monkeypatch.setattr(lane.store.database, "raw", raw)
        monkeypatch.setattr(lane.store.ends, "_reduce", reduce)
        assert await lane.store.ends.reject_unread("job", "it cannot be read") is marked
        assert written == ["job"] * marked
