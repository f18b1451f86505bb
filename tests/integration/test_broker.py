"""Jobs on their way through the broker, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from waiting import eventually

from couchjobs.broker.couch import CouchBroker
from couchjobs.cluster.presence import Presence
from couchjobs.couch.connection import Connection
from couchjobs.errors import (
    AdminOnlyError,
    ClosedError,
    QueueClosedError,
    UnknownWorkerError,
)
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


@worker("echo", retry_delay=0.05)
async def echo(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    return message


async def test_push_when_worker_is_here_then_job_is_done_with_result(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The main way."""
    system = await start(echo)
    job = await system.broker.push_job(db, JobRequest(worker_type="echo", message={"a": [1, None]}))
    ended = await wait(db, job.id, 10)
    assert ended.state is State.DONE
    assert ended.result == {"a": [1, None]}
    assert ended.exec_count == 1
    assert ended.claim is not None
    assert ended.claim.daemon == system.broker.daemon.id
    assert ended.queued_at is not None
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.queued_at <= ended.started_at <= ended.finished_at


async def test_bare_document_when_written_by_hand_then_done_within_a_second(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The whole enqueue protocol is one short document; the claim fills in the rest, unknown fields stay."""
    await start(echo)
    store = JobStore(connection, db)
    began = time.monotonic()
    await store.database.put(
        {"_id": "by-hand", "worker": "echo", "message": {"x": 1}, "state": "queued", "colour": {"r": 1.5}}
    )
    job = await wait(db, "by-hand", 10)
    assert time.monotonic() - began < 1
    document = job.document()
    assert document["state"] == "done"
    assert document["domain"] == "test.example"
    assert document["prefix"] == db.prefix
    assert document["queued_at"].endswith("Z")
    assert document["colour"] == {"r": 1.5}


async def test_unknown_type_when_no_daemon_has_it_then_stays_queued(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The job is left to others; pushing one through a daemon is an error."""
    system = await start(echo)
    store = JobStore(connection, db)
    await store.database.put({"_id": "other", "worker": "elsewhere", "message": None, "state": "queued"})
    job = await system.broker.push_job(db, JobRequest(worker_type="echo"))
    await wait(db, job.id, 10)
    assert (await get_job(db, "other")).state is State.QUEUED
    with pytest.raises(UnknownWorkerError):
        await system.broker.push_job(db, JobRequest(worker_type="elsewhere"))
    with pytest.raises(UnknownWorkerError):
        await system.broker.worker_queue_len("elsewhere")


async def test_cancel_when_running_or_queued_then_errored(connection: Connection, db: Prefixer, start: Start) -> None:
    """Anybody may set `cancel_requested`."""
    began = asyncio.Event()

    @worker("endless", concurrency=1, timeout=None)
    async def endless(ctx: WorkerContext) -> None:
        began.set()
        await asyncio.Event().wait()

    system = await start(endless)
    store = JobStore(connection, db)
    running = await system.broker.push_job(db, JobRequest(worker_type="endless"))
    await asyncio.wait_for(began.wait(), 5)
    queued = await system.broker.push_job(db, JobRequest(worker_type="endless"))
    for job_id in (queued.id, running.id):
        await store.update(await store.get(job_id), cancel_requested=True)
    for job_id in (queued.id, running.id):
        ended = await wait(db, job_id, 10)
        assert (ended.state, ended.error) == (State.ERRORED, "cancelled")


async def test_shutdown_when_jobs_run_then_short_ones_end_and_long_ones_are_put_back(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The try of a job that is put back does not count."""
    began: list[str] = []

    @worker("sleeps", concurrency=20, timeout=None)
    async def sleeps(ctx: WorkerContext, message: float) -> None:
        began.append(ctx.id)
        await asyncio.sleep(message)

    system = await start(sleeps)
    short = [await system.broker.push_job(db, JobRequest(worker_type="sleeps", message=0.2)) for _ in range(5)]
    long = [await system.broker.push_job(db, JobRequest(worker_type="sleeps", message=60)) for _ in range(5)]
    await eventually(lambda: len(began) == 10)
    await system.shutdown(timeout=1)
    assert {(await get_job(db, job.id)).state for job in short} == {State.DONE}
    for job in long:
        put_back = await get_job(db, job.id)
        assert (put_back.state, put_back.exec_count, put_back.claim) == (State.QUEUED, 0, None)
    with pytest.raises(QueueClosedError):
        await system.broker.push_job(db, JobRequest(worker_type="sleeps"))
    with pytest.raises(ClosedError):
        await system.shutdown()
    with pytest.raises(ClosedError):
        await system.broker.start_workers(WorkersList())
    assert await connection.control.with_prefix("daemon:") == []


async def test_hooks_when_a_job_runs_then_in_order(connection: Connection, db: Prefixer, start: Start) -> None:
    """Before the store, at the start of each try, between tries, once after the last."""
    calls: list[Any] = []

    def before(job: Any) -> bool:
        calls.append("before")
        return job.message != "skip"

    async def begin(ctx: WorkerContext) -> WorkerContext:
        calls.append("start")
        return ctx.with_cookie("cookie")

    def check(error: BaseException) -> bool:
        calls.append(f"check {error}")
        return str(error) != "2"

    async def commit(ctx: WorkerContext, error: BaseException | None) -> None:
        calls.append(("commit", str(error)))
        raise RuntimeError("its own failure changes nothing")

    def init() -> None:
        calls.append("init")

    @worker(
        "hooked",
        before_hook=before,
        worker_start=begin,
        worker_init=init,
        error_hook=check,
        worker_commit=commit,
        retry_delay=0.01,
        max_exec_count=9,
    )
    async def hooked(ctx: WorkerContext) -> None:
        calls.append(ctx.cookie)
        raise ValueError(ctx.exec_count)

    system = await start(hooked)
    assert await system.broker.push_job(db, JobRequest(worker_type="hooked", message="skip")) is None
    job = await system.broker.push_job(db, JobRequest(worker_type="hooked"))
    ended = await wait(db, job.id, 10)
    assert ended.error == "ValueError: 2"
    expected = ["init", "before", "before", "start", "cookie", "check 1", "start", "cookie", "check 2", ("commit", "2")]
    assert calls == expected


async def test_start_when_worker_init_raises_then_fails(connection: Connection, db: Prefixer) -> None:
    """A daemon whose worker cannot be prepared does not run."""

    def init() -> None:
        raise OSError("no disk")

    from couchjobs.workers.config import WorkerConfig

    broker = CouchBroker(connection)
    with pytest.raises(OSError, match="no disk"):
        await broker.start_workers(WorkersList([WorkerConfig(worker_type="w", worker_func=print, worker_init=init)]))


async def test_admin_only_when_request_is_not_admins_then_refused(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """push_job refuses, and takes it with admin=True."""

    @worker("admins", admin_only=True)
    async def admins(ctx: WorkerContext) -> None:
        return None

    system = await start(admins)
    with pytest.raises(AdminOnlyError):
        await system.broker.push_job(db, JobRequest(worker_type="admins"))
    job = await system.broker.push_job(db, JobRequest(worker_type="admins", message={"b": 1, "a": 2}, admin=True))
    done = await wait(db, job.id, 10)
    assert done.state is State.DONE
    store = JobStore(connection, db)
    forged = {"worker": "admins", "message": {"b": 1, "a": 3}, "state": "queued", "admin_proof": done.admin_proof}
    for job_id, document in (
        ("bare", {**forged, "admin_proof": None}),
        ("forged", forged),
        ("odd", {**forged, "admin_proof": "é"}),
        (f"{job.id}x", {**forged, "message": job.message}),
    ):
        await store.database.put({"_id": job_id, **document})
        refused = await wait(db, job_id, 10)
        assert "pushed with admin=True" in str(refused.error)
        assert refused.exec_count == 0


async def test_go_durations_when_the_setting_says_so_then_numbers_are_nanoseconds(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Options as a cozy-stack stores them."""

    @worker("slow", timeout=30, max_exec_count=1)
    async def slow(ctx: WorkerContext) -> None:
        await asyncio.Event().wait()

    await start(slow, go_durations=True)
    document = {"worker": "slow", "message": None, "state": "queued", "options": {"timeout": 100_000_000}}
    await JobStore(connection, db).database.put({"_id": "job", **document})
    ended = await wait(db, "job", 10)
    assert ended.error == "TimeoutError: no end within 0.1 s"
    assert ended.document()["options"] == {"timeout": 100_000_000}


async def drained(db: Prefixer, start: Start) -> tuple[str, asyncio.Task[None]]:
    """A job that runs, of a daemon that ends: its id, and what ends once the daemon has."""
    begun = asyncio.Event()

    @worker("slow")
    async def slow(ctx: WorkerContext) -> None:
        begun.set()
        await asyncio.sleep(600)

    system = await start(slow)
    job = await system.broker.push_job(db, JobRequest(worker_type="slow"))
    await asyncio.wait_for(begun.wait(), 20)
    closing = asyncio.create_task(system.shutdown(600))
    await eventually(lambda: not system.broker.runtime.producer.is_open)
    return job.id, closing


async def test_shutdown_when_the_daemon_cannot_beat_meanwhile_then_running_jobs_are_interrupted(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may go on for minutes, and others take them over long before that."""
    is_lost = asyncio.Event()

    async def lost(_: Presence) -> bool:
        await is_lost.wait()
        is_lost.clear()
        return True

    monkeypatch.setattr(Presence, "lost_or_found", lost)

    job_id, closing = await drained(db, start)
    is_lost.set()
    await asyncio.wait_for(closing, 30)
    present = await get_job(db, job_id)
    assert (present.state, present.exec_count) == (State.QUEUED, 0)


async def test_shutdown_when_a_job_is_cancelled_meanwhile_then_it_ends(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """It may go on for an hour, and no feed is read any more."""
    job_id, closing = await drained(db, start)
    store = JobStore(connection, db)
    await store.update(await store.get(job_id), cancel_requested=True)
    await asyncio.wait_for(closing, 30)
    assert (await get_job(db, job_id)).cancelled
