"""Jobs on their way through the broker, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from waiting import eventually

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import Connection
from couchjobs.errors import (
    AbortJob,
    AdminOnlyError,
    BadTriggerError,
    ClosedError,
    Conflict,
    QueueClosedError,
    UnknownWorkerError,
)
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job, get_queued_jobs, wait
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


class Mail(BaseModel):
    """A message."""

    to: str
    times: int = 1


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


async def test_failure_when_tries_are_left_then_retried_in_the_document(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Each failed try is in `errors`; the last one makes the job errored."""
    tries: list[int] = []

    @worker("flaky", max_exec_count=3, retry_delay=0.05)
    def flaky(ctx: WorkerContext) -> str:
        tries.append(ctx.exec_count)
        if ctx.exec_count < 3:
            raise ValueError(f"try {ctx.exec_count}")
        return "at last"

    system = await start(flaky)
    job = await system.broker.push_job(db, JobRequest(worker_type="flaky"))
    ended = await wait(db, job.id, 10)
    assert tries == [1, 2, 3]
    assert ended.state is State.DONE
    assert [error.error for error in ended.errors] == ["ValueError: try 1", "ValueError: try 2"]
    assert ended.result == "at last"


async def test_failure_when_tries_are_spent_then_errored(connection: Connection, db: Prefixer, start: Start) -> None:
    """Options lower the tries that the worker allows, and never raise them."""

    @worker("bad", max_exec_count=2, retry_delay=0.01)
    async def bad(ctx: WorkerContext) -> None:
        raise RuntimeError("no")

    system = await start(bad)
    store = JobStore(connection, db)
    await store.database.put(
        {"_id": "a", "worker": "bad", "message": None, "state": "queued", "options": {"max_exec_count": 9}}
    )
    await store.database.put(
        {"_id": "b", "worker": "bad", "message": None, "state": "queued", "options": {"max_exec_count": 1}}
    )
    one, other = await wait(db, "a", 10), await wait(db, "b", 10)
    assert (one.state, one.exec_count, one.error) == (State.ERRORED, 2, "RuntimeError: no")
    assert (other.state, other.exec_count) == (State.ERRORED, 1)
    assert system.broker.workers_types() == ["bad"]


async def test_outcomes_when_worker_raises_then_as_the_table_says(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """AbortJob, a message that does not fit, no message, set_no_retry, a bad trigger: none is tried again."""

    @worker("raises", retry_delay=0.01, max_exec_count=5)
    async def raises(ctx: WorkerContext, message: str) -> None:
        match message:
            case "abort":
                raise AbortJob("enough")
            case "no retry":
                ctx.set_no_retry()
                raise ValueError("once")
            case "bad trigger":
                raise BadTriggerError(ValueError("nobody there"))

    @worker("mail", retry_delay=0.01, max_exec_count=5)
    async def mail(ctx: WorkerContext, message: Mail) -> str:
        return message.to

    system = await start(raises, mail)
    triggers = connection.database(db.database("triggers"))
    await triggers.put(
        {"_id": "trigger", "type": "@in", "arguments": "1h", "worker": "raises", "message": "bad trigger"}
    )

    async def end(worker_type: str, message: Any, **more: Any) -> Any:
        job = await system.broker.push_job(db, JobRequest(worker_type=worker_type, message=message, **more))
        ended = await wait(db, job.id, 10)
        assert ended.exec_count == 1
        return ended

    assert (await end("raises", "abort")).state is State.DONE
    assert (await end("raises", "no retry")).error == "ValueError: once"
    assert "does not fit" in (await end("mail", {"to": 5, "times": "x"})).error
    assert "to: " in (await end("mail", {"to": 5, "times": "x"})).error
    assert "no message" in (await end("mail", None)).error
    assert (await end("mail", {"to": "ann"})).result == "ann"
    ended = await end("raises", "bad trigger", trigger_id="trigger")
    assert ended.state is State.ERRORED
    await eventually(lambda: _gone(triggers, "trigger"))


async def _gone(database: Any, doc_id: str) -> bool:
    return await database.find(doc_id) is None


async def test_timeout_when_a_try_takes_too_long_then_it_fails(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """For coroutines and for threads; the option of the job may lower the limit."""
    cancelled = asyncio.Event()

    @worker("slow", timeout=30, max_exec_count=1)
    async def slow(ctx: WorkerContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @worker("slow thread", timeout=0.2, max_exec_count=1)
    def slow_thread(ctx: WorkerContext) -> None:
        while not ctx.cancelled:
            time.sleep(0.01)

    system = await start(slow, slow_thread)
    from couchjobs.jobs.job import JobOptions

    one = await system.broker.push_job(db, JobRequest(worker_type="slow", options=JobOptions(timeout=0.2)))
    other = await system.broker.push_job(db, JobRequest(worker_type="slow thread"))
    assert "no end within 0.2 s" in str((await wait(db, one.id, 10)).error)
    assert "no end within 0.2 s" in str((await wait(db, other.id, 10)).error)
    assert cancelled.is_set()


async def test_scheduled_job_when_time_has_not_come_then_waits(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A job is not claimed before `scheduled_at`."""
    from datetime import timedelta

    from couchjobs.timestamps import now

    system = await start(echo)
    at = now() + timedelta(seconds=0.6)
    job = await system.broker.push_job(db, JobRequest(worker_type="echo", scheduled_at=at))
    ended = await wait(db, job.id, 10)
    assert ended.started_at is not None
    assert ended.started_at >= at


async def test_concurrency_when_many_jobs_then_never_more_than_allowed(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Neither coroutines nor threads exceed the worker's number."""
    running: dict[str, int] = {"loop": 0, "thread": 0}
    most: dict[str, int] = {"loop": 0, "thread": 0}

    def enter(kind: str) -> None:
        running[kind] += 1
        most[kind] = max(most[kind], running[kind])

    @worker("loop", concurrency=3)
    async def loop(ctx: WorkerContext) -> None:
        enter("loop")
        await asyncio.sleep(0.02)
        running["loop"] -= 1

    @worker("thread", concurrency=2)
    def thread(ctx: WorkerContext) -> None:
        enter("thread")
        time.sleep(0.02)
        running["thread"] -= 1

    system = await start(loop, thread)
    jobs = await asyncio.gather(
        *(system.broker.push_job(db, JobRequest(worker_type=kind)) for kind in ("loop", "thread") * 15)
    )
    for job in jobs:
        assert (await wait(db, job.id, 10)).state is State.DONE
    assert most == {"loop": 3, "thread": 2}


async def test_priority_when_slots_are_scarce_then_higher_first_and_the_oldest_every_third(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Two of three claims go to higher priority, one of three to the oldest."""
    order: list[str] = []

    @worker("one", concurrency=1)
    async def one(ctx: WorkerContext, message: str) -> None:
        order.append(message)

    store = JobStore(connection, db)
    documents = [
        {
            "_id": f"low-{n}",
            "worker": "one",
            "message": f"low-{n}",
            "state": "queued",
            "queued_at": f"2026-01-01T00:00:0{n}Z",
        }
        for n in range(6)
    ]
    documents += [
        {
            "_id": f"high-{n}",
            "worker": "one",
            "message": f"high-{n}",
            "state": "queued",
            "priority": 5,
            "queued_at": f"2026-01-02T00:00:0{n}Z",
        }
        for n in range(6)
    ]
    await asyncio.gather(*(store.writer.write(document) for document in documents))
    await start(one)
    await eventually(lambda: len(order) == 12)
    assert order[:6] == ["high-0", "high-1", "low-0", "high-2", "high-3", "low-1"]


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


async def test_queue_len_when_jobs_wait_then_counts_them(connection: Connection, db: Prefixer, start: Start) -> None:
    """Queued jobs, those that wait for their time included."""
    system = await start(echo)
    for number in range(3):
        document = {"worker": "echo", "message": None, "state": "queued", "scheduled_at": "2099-01-01T00:00:00Z"}
        await system.broker.store_of("").database.put({"_id": f"later-{number}", **document})
    assert await system.broker.worker_queue_len("echo") == 3


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


async def test_backlog_when_larger_than_the_look_ahead_then_all_done(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Candidates that are left out come back by the view, without waiting for the next sweep."""
    store = JobStore(connection, db)
    documents = [{"_id": f"job-{n:04}", "worker": "echo", "message": n, "state": "queued"} for n in range(300)]
    await asyncio.gather(*(store.writer.write(document) for document in documents))
    await start(echo, max_candidates=20, sweep_interval=3600)

    async def all_done() -> bool:
        found = await store.database.get_many(document["_id"] for document in documents)
        return all(document["state"] == "done" for document in found.values())

    await eventually(all_done, 60)


async def test_idle_type_when_a_backlog_of_another_lies_before_its_job_then_not_held_up(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The feed is read past jobs that wait for slots; nor is a request to cancel held up by them."""
    started = asyncio.Event()

    @worker("stuck", concurrency=1, timeout=None)
    async def stuck(ctx: WorkerContext) -> None:
        started.set()
        await asyncio.Event().wait()

    store = JobStore(connection, db)
    backlog = [{"_id": f"job-{n:04}", "worker": "stuck", "message": None, "state": "queued"} for n in range(4000)]
    await asyncio.gather(*(store.writer.write(document) for document in backlog))
    await start(stuck, echo, max_candidates=20, sweep_interval=3600)
    await started.wait()
    await store.database.put({"_id": "late", "worker": "echo", "message": 1, "state": "queued"})
    assert (await wait(db, "late", 5)).state is State.DONE
    (running,) = [job for job in await get_queued_jobs(db, "stuck") if job.state is State.RUNNING]
    await store.update(running, cancel_requested=True)
    assert (await wait(db, running.id, 5)).error == "cancelled"


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


async def test_job_when_edited_between_offer_and_claim_then_still_run(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The row of the edit comes while the claim is under way, and must not be forgotten."""

    @worker("one", concurrency=1)
    async def one(ctx: WorkerContext, message: Any) -> Any:
        await asyncio.sleep(0.05)
        return message

    await start(one, sweep_interval=3600)
    store = JobStore(connection, db)
    for number in range(20):
        await store.database.put({"_id": f"job-{number:02}", "worker": "one", "message": 1, "state": "queued"})

    async def edit(number: int) -> None:
        document = await store.database.get(f"job-{number:02}")
        if document["state"] == "queued":
            with contextlib.suppress(Conflict):
                await store.database.put({**document, "message": 2})

    await asyncio.gather(*(edit(number) for number in range(20)))
    for number in range(20):
        assert (await wait(db, f"job-{number:02}", 15)).state is State.DONE


async def test_result_when_the_server_refuses_it_then_errored_and_not_run_again(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A document that may not be stored as it is."""
    runs: list[int] = []

    @worker("large")
    async def large(ctx: WorkerContext) -> str:
        runs.append(1)
        return "refuse me"

    function = "function (doc) { if (doc.result) throw({forbidden: 'no results'}); }"
    await connection.database(db.database("jobs")).put({"_id": "_design/v", "validate_doc_update": function})
    system = await start(large)
    job = await system.broker.push_job(db, JobRequest(worker_type="large"))
    ended = await wait(db, job.id, 10)
    assert ended.state is State.ERRORED
    assert "no results" in str(ended.error)
    assert len(runs) == 1
