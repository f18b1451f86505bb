"""Who owns a job: one claimant, whatever the answers look like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import orjson
import pytest
from fault_proxy import Answer, FaultProxy, Refusal
from waiting import eventually

from couchjobs.cluster.peers import Peers
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.writer import GroupWriter, Written
from couchjobs.jobs import transitions
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.audit import Audit
from couchjobs.recovery.lost import LostJobs
from couchjobs.timestamps import now
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.failure import Failures
from couchjobs.workers.registry import worker

JOBS = 200
CLAIMANTS = 20


@pytest.fixture
async def proxy(server_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the server of the tests."""
    async with FaultProxy(server_url) as proxy:
        yield proxy


@pytest.fixture
async def behind(
    proxy: FaultProxy, connection: Connection, settings_for: Callable[..., Any]
) -> AsyncIterator[Connection]:
    """A connection through the proxy."""
    async with connect(settings_for(url=proxy.url, request_timeout=1)) as through_proxy:
        yield through_proxy


async def _queued(store: JobStore, job_id: str) -> Job:
    rev = await store.database.put({"_id": job_id, "worker": "w", "message": None, "state": "queued"})
    return Job.from_document({"_id": job_id, "_rev": rev, "worker": "w", "message": None, "state": "queued"})


async def _ended_by(store: JobStore, job_id: str, daemon: str) -> bool:
    stored = await store.get(job_id)
    return stored.claim is not None and (stored.state, stored.claim.daemon) == (State.DONE, daemon)


async def is_cluster(connection: Connection) -> bool:
    """Whether several copies of a document may disagree for a while."""
    return len((await connection.server.request("GET", "_membership"))["cluster_nodes"]) > 1


async def test_claim_when_twenty_race_in_step_then_one_owner_each(connection: Connection, db: Prefixer) -> None:
    """Each of 200 jobs, each claimant with a writer of its own; the owner's end is what stays.

    On a cluster nobody may own a job for a while, all having been told 202; never do two.
    """
    stores = [JobStore(connection, db) for _ in range(CLAIMANTS)]
    for store in stores:
        store.writer = GroupWriter(store.database)
    documents = [{"_id": f"job-{n:03}", "worker": "w", "message": None, "state": "queued"} for n in range(JOBS)]
    answers = await asyncio.gather(*(stores[0].writer.write(document) for document in documents))
    owned = 0
    for document, answer in zip(documents, answers, strict=True):
        jobs = [Job.from_document({**document, "_rev": answer.rev}) for _ in stores]
        won = await asyncio.gather(
            *(store.claim(job, f"daemon-{n}") for n, (store, job) in enumerate(zip(stores, jobs, strict=True)))
        )
        assert sum(won) <= 1
        if any(won):
            owned += 1
            owner = won.index(True)
            assert await stores[owner].ack(jobs[owner])
            await eventually(partial(_ended_by, stores[owner], document["_id"], f"daemon-{owner}"))
    assert owned == JOBS or await is_cluster(connection)


async def test_claim_when_bodies_differ_by_the_nonce_alone_then_one_owner(connection: Connection, db: Prefixer) -> None:
    """Same daemon, same time: without the nonce CouchDB would tell both that they have won."""
    store = JobStore(connection, db)
    time = now()
    cluster = await is_cluster(connection)
    for number in range(20):
        job = await _queued(store, f"job-{number}")
        bodies = [
            job.document_with(transitions.claimed(job, db, f"nonce-{n}", "daemon", time)) for n in range(CLAIMANTS)
        ]
        writers = [GroupWriter(store.database) for _ in bodies]
        answers = await asyncio.gather(*(writer.write(body) for writer, body in zip(writers, bodies, strict=True)))
        written = [answer.written for answer in answers]
        assert written.count(Written.OK) == 1 or (cluster and written.count(Written.OK) == 0)
        assert set(written) == {Written.OK, Written.CONFLICT} or (cluster and Written.ACCEPTED in written)


async def test_claim_when_answer_says_accepted_then_not_ours_and_the_audit_puts_it_back(
    proxy: FaultProxy, behind: Connection, db: Prefixer
) -> None:
    """A 202 is a stored conflict of a cluster, not a claim."""
    store = JobStore(behind, db)
    job = await _queued(store, "job")

    def accept(answer: Answer) -> None:
        if answer.path.endswith("_bulk_docs"):
            answer.status = 202
            answer.json = [{**row, "accepted": True} for row in answer.json]

    proxy.after = accept
    assert not await store.claim(job, "daemon")
    proxy.after = lambda answer: None
    assert (await store.get("job")).state is State.RUNNING

    def audit(daemon: str, *held: str) -> Audit:
        return Audit(LostJobs(store, Peers(daemon, 1000), Failures(WorkersList(), daemon)), OwnClaims(held))

    assert await audit("daemon").all_claims(60) == 0, "younger than the grace period"
    assert await audit("daemon", "job").all_claims(0) == 0, "it runs"
    assert await audit("other").all_claims(0) == 0, "not ours"
    assert await audit("daemon").all_claims(0) == 1
    put_back = await store.get("job")
    assert (put_back.state, put_back.exec_count, put_back.claim) == (State.QUEUED, 0, None)


async def test_claim_when_answer_says_accepted_then_run_again_without_waiting_for_the_audit(
    proxy: FaultProxy, connection: Connection, db: Prefixer, start: Callable[..., Any]
) -> None:
    """The feed shows the daemon its own claim, of which it knows nothing; the try does not count."""
    claims = 0

    def accept(answer: Answer) -> None:
        nonlocal claims
        if answer.path.endswith("_bulk_docs") and b'"running"' in answer.sent:
            claims += 1
            if claims == 1:
                answer.json = [{**row, "accepted": True} for row in answer.json]

    @worker("counts", concurrency=1)
    async def counts(ctx: WorkerContext) -> int:
        return ctx.exec_count

    proxy.after = accept
    await start(counts, url=proxy.url, sweep_interval=3600)
    await JobStore(connection, db).database.put({"_id": "a", "worker": "counts", "message": None, "state": "queued"})
    assert (await wait(db, "a", 15)).result == 1
    assert claims == 2


@pytest.mark.parametrize("how", ["lose", "cut"])
async def test_claim_when_answer_is_lost_after_the_write_then_the_document_says_whose(
    proxy: FaultProxy, behind: Connection, db: Prefixer, how: str
) -> None:
    """The answer never came, or half of it; the claim is stored."""
    store = JobStore(behind, db)
    job = await _queued(store, "job")
    faults = 0

    def fault(answer: Answer) -> None:
        nonlocal faults
        if answer.path.endswith("_bulk_docs"):
            faults += 1
        if answer.path.endswith("_bulk_docs") and faults == 1:
            answer.lose = how == "lose"
            answer.cut_at = 10 if how == "cut" else None

    proxy.after = fault
    assert await store.claim(job, "daemon")
    assert job.state is State.RUNNING
    proxy.after = lambda answer: None
    assert await store.ack(job)
    assert (await store.get("job")).state is State.DONE


async def test_claim_when_answer_is_lost_and_somebody_else_won_then_not_ours(
    proxy: FaultProxy, behind: Connection, connection: Connection, db: Prefixer
) -> None:
    """The lost answer was a conflict."""
    store = JobStore(behind, db)
    job = await _queued(store, "job")
    other = Job.from_document({**job.document()})
    assert await JobStore(connection, db).claim(other, "other")

    def lose(answer: Answer) -> None:
        answer.lose = answer.path.endswith("_bulk_docs")

    proxy.after = lose
    assert not await store.claim(job, "daemon")


async def test_claim_when_one_copy_shows_it_and_the_others_have_another_then_not_ours(
    proxy: FaultProxy, behind: Connection, connection: Connection, db: Prefixer
) -> None:
    """Of a cluster: the copy that nobody else's claim has reached takes this one, and wins a reading of all."""
    store = JobStore(behind, db)
    job = await _queued(store, "job")
    assert await JobStore(connection, db).claim(Job.from_document({**job.document()}), "other")
    ours: dict[str, Any] = {}

    def show_ours(answer: Answer) -> None:
        if answer.path.endswith("_bulk_get"):
            answer.json = {"results": [{"id": "job", "docs": [{"ok": {**ours, "_rev": f"2-{'f' * 32}"}}]}]}
        elif answer.path.endswith("_bulk_docs") and not ours:
            ours.update(orjson.loads(answer.sent)["docs"][0])
            answer.lose = True

    proxy.after = show_ours
    assert not await store.claim(job, "daemon")
    assert ours["claim"]["daemon"] == "daemon"


async def test_claim_when_request_never_arrived_then_not_ours(
    proxy: FaultProxy, behind: Connection, db: Prefixer
) -> None:
    """503, and the document still says queued."""
    store = JobStore(behind, db)
    job = await _queued(store, "job")

    def refuse(method: str, path: str, body: bytes) -> None:
        if path.endswith("_bulk_docs"):
            raise Refusal(503)

    proxy.before = refuse
    assert not await store.claim(job, "daemon")
    assert (await store.get("job")).state is State.QUEUED


async def test_end_when_answers_are_lost_then_written_until_it_is_known(
    proxy: FaultProxy, behind: Connection, db: Prefixer
) -> None:
    """An outcome is kept until CouchDB says that it is there, and is there once."""
    store = JobStore(behind, db)
    job = await _queued(store, "job")
    assert await store.claim(job, "daemon")
    lost = 0

    def lose(answer: Answer) -> None:
        nonlocal lost
        if answer.path.endswith("_bulk_docs") and lost < 3:
            lost += 1
            answer.lose = True

    proxy.after = lose
    assert await store.ack(job, {"answer": 42})
    assert lost == 3
    ended = await store.get("job")
    assert (ended.state, ended.result) == (State.DONE, {"answer": 42})
    assert ended.rev == job.rev


async def test_end_when_job_was_taken_away_then_nothing_is_overwritten(connection: Connection, db: Prefixer) -> None:
    """ClaimLost: the revision of the claim is the fencing token."""
    store = JobStore(connection, db)
    job = await _queued(store, "job")
    assert await store.claim(job, "daemon")
    rescued = await store.get("job")
    assert await store.ends.release(rescued)
    again = await store.get("job")
    assert await store.claim(again, "other")
    assert not await store.ack(job)
    stored = await store.get("job")
    assert stored.claim is not None
    assert (stored.state, stored.claim.daemon) == (State.RUNNING, "other")


async def test_end_when_somebody_changed_another_field_then_both_are_kept(connection: Connection, db: Prefixer) -> None:
    """A request to cancel moves the revision, not the claim."""
    store = JobStore(connection, db)
    job = await _queued(store, "job")
    assert await store.claim(job, "daemon")
    await store.update(await store.get("job"), cancel_requested=True, note="by hand")
    assert await store.ack(job)
    document = (await store.get("job")).document()
    assert (document["state"], document["note"]) == ("done", "by hand")


async def test_create_when_one_copy_takes_what_others_have_already_then_false(
    proxy: FaultProxy, behind: Connection, db: Prefixer
) -> None:
    """A cluster says accepted: whose job it is, the revision that wins says."""
    from couchjobs.jobs.request import JobRequest, new_job

    store = JobStore(behind, db)
    others: dict[str, Any] = {}

    def accept(answer: Answer) -> None:
        if answer.path.endswith("_bulk_docs"):
            answer.status = 202
            answer.json = [{**row, "accepted": True} for row in answer.json]
        elif answer.path.endswith("_bulk_get"):
            (found,) = answer.json["results"]
            present = {**found["docs"][0]["ok"], **others}
            answer.json = {"results": [{"id": found["id"], "docs": [{"ok": present}]}]}

    proxy.after = accept
    assert await store.create(new_job(db, JobRequest(worker_type="w", id="first")))
    others = {"_rev": f"2-{'0' * 32}", "state": "running"}
    assert await store.create(new_job(db, JobRequest(worker_type="w", id="second"))), "it has moved on already"
    others = {"queued_at": "2026-01-01T00:00:00.000000Z"}
    assert not await store.create(new_job(db, JobRequest(worker_type="w", id="third")))


async def test_create_when_answer_is_lost_then_once_and_true(
    proxy: FaultProxy, behind: Connection, db: Prefixer
) -> None:
    """The second write meets a conflict with what the first one stored."""
    from couchjobs.jobs.request import JobRequest, new_job

    store = JobStore(behind, db)
    lost = 0

    def lose(answer: Answer) -> None:
        nonlocal lost
        if answer.path.endswith("_bulk_docs") and not lost:
            lost += 1
            answer.lose = True

    proxy.after = lose
    job = new_job(db, JobRequest(worker_type="w", id="job"))
    assert await store.create(job)
    assert not await store.create(new_job(db, JobRequest(worker_type="w", id="job", message="another")))
    assert (await store.get("job")).message is None
