"""One document that CouchDB does not take, or does not show, holds up no other one; and what it is, is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from copies import put_on_all
from waiting import SOON_DEAD, SOON_SWEPT, eventually

from couchjobs.bench.limit import write_all
from couchjobs.cluster.daemon import Daemon
from couchjobs.cluster.peers import Peers
from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.couch.connection import Connection
from couchjobs.couch.surely import Refusals
from couchjobs.doctor import documents as checks
from couchjobs.doctor.finding import Patient
from couchjobs.errors import Unavailable
from couchjobs.jobs import claims as claiming
from couchjobs.jobs.claims import Claimed
from couchjobs.jobs.job import State
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.jobs.removal import Remover
from couchjobs.jobs.retention import Retention, read_rules
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.audit import Audit
from couchjobs.recovery.conflicts import settle_conflicts
from couchjobs.recovery.dead_daemons import Rescuer
from couchjobs.recovery.lost import LostJobs
from couchjobs.timestamps import format_time, now
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.failure import Failures
from couchjobs.workers.registry import worker

Start = Callable[..., Any]
LONG_AGO = "2020-01-01T00:00:00Z"
NO_TOMBSTONES = "function (doc) { if (doc._deleted) doc.nothing.of.that; }"
NEVER_AGAIN = """function (doc, old) {
  if (old && old.state === "running" && doc.state === "queued") throw { forbidden: "once is enough" };
}"""


def claimed(job_id: str, daemon: str, at: str = LONG_AGO) -> dict[str, Any]:
    """A job that a daemon runs."""
    claim = {"id": "c", "daemon": daemon, "at": at}
    return {"_id": job_id, "worker": "w", "message": None, "state": "running", "exec_count": 1, "claim": claim}


def lost_by(store: JobStore, daemon: str) -> LostJobs:
    """What that daemon does with lost jobs: they have a try left."""
    return LostJobs(store, Peers(daemon, 1000), Failures(WorkersList(), daemon))


async def put_all(store: JobStore, documents: list[dict[str, Any]]) -> None:
    """Write documents, and wait until the view of claims has them."""
    await write_all(store.database, documents)
    daemon = documents[0]["claim"]["daemon"]

    async def indexed() -> bool:
        rows = await store.database.view("queue/claimed", [daemon], [daemon, {}], limit=5000)
        return len(rows) == len(documents)

    await eventually(indexed, 30)


async def test_audit_when_its_oldest_claims_all_run_then_a_younger_one_that_does_not_is_found(
    connection: Connection, db: Prefixer
) -> None:
    """Of hours: no row of the feed would tell of it."""
    store = JobStore(connection, db)
    running = [f"long{number:04}" for number in range(700)]
    await put_all(
        store, [*(claimed(job_id, "own") for job_id in running), claimed("left", "own", "2021-01-01T00:00:00Z")]
    )
    audit = Audit(lost_by(store, "own"), OwnClaims({*running}))
    assert await eventually(lambda: audit.all_claims(1.0)) == 1  # a copy of a cluster may have another index
    assert (await store.get("left")).state is State.QUEUED


async def test_audit_when_the_end_of_a_try_could_not_be_stored_then_it_says_so_and_not_that_a_daemon_died(
    connection: Connection, db: Prefixer
) -> None:
    """It knows of that one without any view."""
    store, claims = JobStore(connection, db), OwnClaims()
    await store.database.put(claimed("unended", "own", format_time(now())))
    claims.begun["unended"] = "c"
    assert await Audit(lost_by(store, "own"), claims).all_claims(1000.0) == 1
    job = await store.get("unended")
    assert (job.state, len(job.errors)) == (State.QUEUED, 1)
    assert "could not store how its try has ended" in job.errors[0].error
    assert not claims.begun


async def test_audit_when_the_job_is_claimed_anew_while_it_looks_then_left_alone(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put back, it would be run twice at once, without a death."""
    store, held = JobStore(connection, db), set[str]()
    await store.database.put(claimed("job", "own"))
    audit = Audit(lost_by(store, "own"), OwnClaims(held))
    leaves = store.database.leaves

    async def meanwhile(job_id: str) -> list[dict[str, Any]]:
        held.add(job_id)
        return await leaves(job_id)

    monkeypatch.setattr(store.database, "leaves", meanwhile)
    assert await audit.give_up("job")
    assert (await store.get("job")).state is State.RUNNING


async def test_rescue_when_hundreds_cannot_be_taken_then_those_behind_them_are(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a page of the view."""
    store = JobStore(connection, db)
    await put_all(store, [claimed(f"j{number:04}", "ghost") for number in range(1100)])
    rescuer, seen = Rescuer(lost_by(store, "own")), list[str]()

    async def take(document: dict[str, Any], _dead: str) -> bool:
        seen.append(document["_id"])
        return document["_id"] == "j1099"

    monkeypatch.setattr(rescuer, "_take", take)
    assert await rescuer.rescue("ghost") == 1
    assert len(seen) == len({*seen}) == 1100


async def test_conflict_when_the_losing_leaf_cannot_be_deleted_then_nobody_waits_for_it(
    connection: Connection, db: Prefixer, neighbour: Daemon
) -> None:
    """A function that validates documents stumbles over tombstones."""
    store = JobStore(connection, db)
    for job_id in ("odd", "other"):
        docs = [
            {
                "_id": job_id,
                "worker": "w",
                "message": None,
                "state": state,
                "_rev": f"2-{name * 32}",
                "_revisions": {"start": 2, "ids": [name * 32, "1" * 32]},
            }
            for name, state in (("f", "done"), ("a", "queued"))
        ]
        body = orjson.dumps({"docs": docs, "new_edits": False})
        await connection.server.request("POST", f"{store.database.path}/_bulk_docs", body=body)
    await put_on_all(store.database, {"_id": "_design/stumbles", "validate_doc_update": NO_TOMBSTONES})
    began = time.monotonic()
    assert await settle_conflicts(store.ends.shortly(Refusals()), neighbour.peers, ["odd", "other"]) == 0
    assert time.monotonic() - began < 15
    with pytest.raises(Unavailable):  # whoever mends is told that this one is left
        await checks._reap(Patient(connection, db), neighbour.peers, "odd")


async def test_conflict_when_the_losing_leaf_may_not_be_deleted_then_the_job_goes_on_as_what_counts(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Only administrators delete, says a function: nobody tries it again and again, and the job is not held up."""

    @worker("w")
    async def done(ctx: WorkerContext) -> None:
        """Do nothing."""

    store = JobStore(connection, db)
    revisions = [{"start": 2, "ids": [name * 32, "1" * 32]} for name in ("f", "a")]
    queued = {"_id": "job", "worker": "w", "message": None, "state": "queued"}
    docs = [{**queued, "_rev": f"2-{one['ids'][0]}", "_revisions": one} for one in revisions]
    body = orjson.dumps({"docs": docs, "new_edits": False})
    await connection.server.request("POST", f"{store.database.path}/_bulk_docs", body=body)
    forbids = "function (doc) { if (doc._deleted) throw { forbidden: 'nobody deletes' }; }"
    await put_on_all(store.database, {"_id": "_design/forbids", "validate_doc_update": forbids})
    await start(done)
    assert (await wait(db, "job", 30)).state is State.DONE


async def test_conflict_when_the_winner_may_not_be_deleted_then_a_job_that_is_done_is_not_run_again(
    connection: Connection, db: Prefixer, neighbour: Daemon
) -> None:
    """It is done on a branch that loses in CouchDB: what readers see is queued."""
    store = JobStore(connection, db)
    docs = []
    for name, length, state in (("f", 3, "queued"), ("a", 2, "done")):
        ids = [name * 32, *(str(number) * 32 for number in range(length - 1, 0, -1))]
        fields = {"_id": "job", "worker": "w", "message": None, "state": state}
        docs.append({**fields, "_rev": f"{length}-{ids[0]}", "_revisions": {"start": length, "ids": ids}})
    body = orjson.dumps({"docs": docs, "new_edits": False})
    await connection.server.request("POST", f"{store.database.path}/_bulk_docs", body=body)
    assert (await store.get("job")).state is State.QUEUED
    forbids = "function (doc) { if (doc._deleted) throw { forbidden: 'nobody deletes' }; }"
    await put_on_all(store.database, {"_id": "_design/forbids", "validate_doc_update": forbids})
    assert await settle_conflicts(store.ends.shortly(Refusals()), neighbour.peers, ["job"]) == 0


async def test_doctor_when_a_dead_daemons_job_cannot_be_taken_then_it_says_that_some_are_left(
    connection: Connection, db: Prefixer
) -> None:
    """And the others are back."""
    store = JobStore(connection, db)
    await put_all(store, [claimed("odd", "ghost"), claimed("good", "ghost")])
    stumbles = "function (doc) { if (doc._id === 'odd' && doc.state === 'queued') doc.nothing.of.that; }"
    await put_on_all(store.database, {"_id": "_design/stumbles", "validate_doc_update": stumbles})
    connection.settings = connection.settings.model_copy(update={"dead_after": 0.5})
    [found] = [one async for one in checks.check_orphans(Patient(connection, db))]
    assert found.mend is not None
    with pytest.raises(Unavailable, match="1 jobs are back in the queue, and some"):
        await found.mend()


async def test_claim_when_nobody_can_say_whose_it_is_then_its_slot_is_free_again(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part of the database does not answer. The job is looked at again; the claim, if there is one, is given up."""
    store, claims = JobStore(connection, db), OwnClaims()
    await store.database.put({"_id": "job", "worker": "w", "message": None, "state": "queued"})
    job = await store.get("job")

    async def unanswered(_document: Any) -> WriteAnswer:
        return WriteAnswer(Written.UNKNOWN, reason="no answer")

    async def unreadable(_job_id: str) -> Any:
        raise Unavailable("500 internal_server_error: no copy answers", 500)

    monkeypatch.setattr(claiming, "_LONGEST_ASKED_S", 0.1)
    monkeypatch.setattr(store.writer, "write", unanswered)
    monkeypatch.setattr(store.database, "find", unreadable)
    assert await store.claimer.claim(job, "own", claims) is Claimed.LATER
    assert "job" in claims.unconfirmed


@pytest.mark.parametrize("ends", ["a try", "a dead daemon"])
async def test_job_when_couchdb_never_has_it_tried_again_then_errored_and_told(
    connection: Connection, db: Prefixer, start: Start, ends: str
) -> None:
    """Whoever wants to hear of jobs that have failed for good hears of that one, too."""
    told: list[tuple[str, Any]] = []

    def note(ctx: WorkerContext, error: Exception) -> None:
        told.append((str(error), ctx.job.message))

    @worker("once", max_exec_count=3, retry_delay=0, on_failed=note)
    async def once(ctx: WorkerContext) -> None:
        raise ValueError("a bad day")

    store = JobStore(connection, db)
    await put_on_all(store.database, {"_id": "_design/once", "validate_doc_update": NEVER_AGAIN})
    if ends == "a try":
        await store.database.put({"_id": "job", "worker": "once", "message": {"order": 1}, "state": "queued"})
    else:
        await store.database.put({**claimed("job", "ghost"), "worker": "once", "message": {"order": 1}})
    await start(once, **SOON_DEAD, **SOON_SWEPT)
    job = await wait(db, "job", 60)
    assert job.state is State.ERRORED
    await eventually(lambda: told)
    [(error, message)] = told
    assert "once is enough" in error
    assert ("a bad day" in error) is (ends == "a try")
    assert message == {"order": 1}


async def test_rescue_when_a_daemon_that_lives_tells_of_the_end_then_left_to_it(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one that has no such worker, and that nobody has told whom to tell; once nobody has it, it ends so."""
    store = JobStore(connection, db)
    ending = {"daemon": "teller", "error": "a bad day"}
    await store.database.put({**claimed("job", "ghost"), "ending": ending})
    lost = lost_by(store, "own")
    monkeypatch.setattr(lost.peers, "is_dead", lambda daemon, *_: daemon == "ghost")
    teller = {"_id": "daemon:teller", "beat": 1, "domain": db.domain, "prefix": db.db_prefix}
    lost.peers.note([{**teller, "worker_types": ["w"]}], moved=True)
    job = (await store.get("job")).document()
    assert not await lost.take(store.read(job))
    with monkeypatch.context() as heard:
        heard.setattr(lost.failures, "wanted", lambda _: True)
        assert not await lost.take(store.read(job))
    assert (await store.get("job")).state is State.RUNNING
    lost.peers.note([{**teller, "worker_types": [], "beat": 2}], moved=True)
    assert await lost.take(store.read(job))
    ended = await store.get("job")
    assert (ended.state, ended.error) == (State.ERRORED, "a bad day")


async def test_removal_when_deletions_fail_one_by_one_then_told(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be purged, and a function stumbles over tombstones: jobs would be kept for ever in silence."""
    store = JobStore(connection, db)
    ended = {"worker": "w", "message": None, "state": "done", "queued_at": LONG_AGO, "finished_at": LONG_AGO}
    await store.database.put({"_id": "old", **ended})
    await put_on_all(store.database, {"_id": "_design/stumbles", "validate_doc_update": NO_TOMBSTONES})
    rules = Retention(read_rules([{"worker": "*", "state": "*", "keep": "1d"}]).rules)
    remover = Remover(store)
    monkeypatch.setattr(remover, "_purges", False)

    async def is_told() -> bool:  # once the view has it
        async for _ in remover.steps(rules, now()):
            pass
        return remover.refused > 0

    await eventually(is_told, 30)
    assert "TypeError" in remover.reason or "nothing" in remover.reason
