"""What every broker and every scheduler can do: the same tests for those in memory and those on CouchDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from waiting import eventually

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import Connection
from couchjobs.errors import (
    AbortJob,
    AdminOnlyError,
    BadTriggerError,
    ClosedError,
    ConfigurationError,
    Conflict,
    CouchjobsError,
    MalformedTriggerError,
    QueueClosedError,
    TriggerNotFoundError,
    UnknownTriggerError,
    UnknownWorkerError,
)
from couchjobs.jobs.job import Job, JobOptions, State
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.waiting import wait
from couchjobs.memory.broker import MemBroker
from couchjobs.memory.scheduler import MemScheduler
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.system import JobSystem
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker

calls: list[Any] = []


@worker("echo", concurrency=3)
async def echo(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    calls.append(message)
    return message


@worker("plain", retry_delay=0.05, max_exec_count=3)
def plain(ctx: WorkerContext, message: str) -> str:
    """Fail as often as the message says, and as it says."""
    calls.append(ctx.exec_count)
    match message:
        case "twice" if ctx.exec_count < 3:
            raise ValueError(f"try {ctx.exec_count}")
        case "always":
            raise ValueError("always")
        case "abort":
            raise AbortJob
        case "trigger":
            raise BadTriggerError("gone")
        case "no retry":
            ctx.set_no_retry()
            raise ValueError("once")
    return message


@worker("endless", timeout=0.1, max_exec_count=1)
async def endless(ctx: WorkerContext) -> None:
    """Never end."""
    await asyncio.Event().wait()


@worker("admins", admin_only=True)
async def admins(ctx: WorkerContext) -> None:
    """Work for administrators alone."""


@worker("choosy", before_hook=lambda job: job.message != "skip")
async def choosy(ctx: WorkerContext) -> None:
    """Take what is not to be skipped."""


@worker("passes_on")
async def passes_on(ctx: WorkerContext, message: str) -> str:
    """Push on, and return what that raised."""
    pushed = {
        "admins": lambda: ctx.push("admins"),
        "choosy": lambda: choosy.push("take", id="taken"),
        "skip": lambda: ctx.push("choosy", "skip"),
    }[message]
    try:
        await pushed()
    except CouchjobsError as error:
        return type(error).__name__
    return "pushed"


@dataclass
class Kind:
    """A broker and a scheduler of one kind, and how to wait for their jobs."""

    broker: MemBroker | CouchBroker
    scheduler: MemScheduler | CouchScheduler
    db: Prefixer
    ended: Callable[[str], Any]

    async def end(self, worker_type: str, message: Any = None, **more: Any) -> Job:
        """Push a job and wait for its end."""
        job = await self.broker.push_job(self.db, JobRequest(worker_type=worker_type, message=message, **more))
        assert job is not None
        ended: Job = await self.ended(job.id)
        return ended


@pytest.fixture(params=["memory", "couch"])
async def kind(request: pytest.FixtureRequest, connection: Connection, db: Prefixer) -> AsyncIterator[Kind]:
    """Both kinds, started."""
    calls.clear()
    if request.param == "memory":
        broker, scheduler = MemBroker(), MemScheduler()
        found = Kind(broker, scheduler, db, lambda job_id: broker.wait(job_id, 10))
    else:
        found = Kind(CouchBroker(connection), CouchScheduler(connection), db, lambda job_id: wait(db, job_id, 10))
    functions = (echo, plain, endless, admins, choosy, passes_on)
    system = JobSystem(found.broker, found.scheduler, WorkersList(config_of(function) for function in functions))
    await system.start()
    yield found
    with suppress(ClosedError):  # the test has shut it down
        await system.shutdown(timeout=0)


async def test_push_when_the_worker_succeeds_then_done(kind: Kind) -> None:
    """With result, times and one try."""
    job = await kind.end("echo", {"a": [1]}, priority=2, manual=True)
    assert (job.state, job.result, job.exec_count, job.manual_execution) == (State.DONE, {"a": [1]}, 1, True)
    assert job.queued_at is not None
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.queued_at <= job.started_at <= job.finished_at
    assert job.document()["state"] == "done"


@pytest.mark.parametrize(
    ("message", "state", "tries", "error"),
    [
        ("twice", State.DONE, 3, None),
        ("always", State.ERRORED, 3, "ValueError: always"),
        ("abort", State.DONE, 1, None),
        ("trigger", State.ERRORED, 1, "BadTriggerError: gone"),
        ("no retry", State.ERRORED, 1, "ValueError: once"),
        (5, State.ERRORED, 1, "MessageUnmarshalError"),
        (None, State.ERRORED, 1, "MessageNilError"),
    ],
)
async def test_push_when_the_worker_raises_then_as_the_table_says(
    kind: Kind, message: Any, state: State, tries: int, error: str | None
) -> None:
    """Retries, and the errors that are never retried."""
    job = await kind.end("plain", message)
    assert (job.state, job.exec_count) == (state, tries)
    assert (error is None and job.error is None) or str(job.error).startswith(str(error))


async def test_options_when_given_then_they_lower_what_the_worker_allows(kind: Kind) -> None:
    """And never raise it."""
    assert (await kind.end("plain", "always", options=JobOptions(max_exec_count=1))).exec_count == 1
    assert (await kind.end("plain", "always", options=JobOptions(max_exec_count=9))).exec_count == 3
    assert "no end within 0.05 s" in str((await kind.end("endless", options=JobOptions(timeout=0.05))).error)
    assert "no end within 0.1 s" in str((await kind.end("endless", options=JobOptions(timeout=60))).error)


async def test_push_when_it_must_not_be_then_refused(kind: Kind) -> None:
    """Unknown types, administrators' workers, what a hook skips."""
    with pytest.raises(UnknownWorkerError):
        await kind.broker.push_job(kind.db, JobRequest(worker_type="nothing"))
    with pytest.raises(AdminOnlyError):
        await kind.broker.push_job(kind.db, JobRequest(worker_type="admins"))
    assert (await kind.end("admins", admin=True)).state is State.DONE
    assert await kind.broker.push_job(kind.db, JobRequest(worker_type="choosy", message="skip")) is None
    assert (await kind.end("choosy", "take")).state is State.DONE


async def test_push_when_it_must_not_be_then_refused_within_a_job_as_outside(kind: Kind) -> None:
    """There is one way in: a function that pushes on meets what every other one meets."""
    await kind.end("echo", "first", id="taken")
    with pytest.raises(Conflict, match="taken by a job of worker 'echo'"):
        await kind.broker.push_job(kind.db, JobRequest(worker_type="choosy", id="taken"))
    for message, error in (("admins", "AdminOnlyError"), ("choosy", "Conflict"), ("skip", "BadDocumentError")):
        assert (await kind.end("passes_on", message)).result == error


async def test_webhook_when_its_hook_does_not_want_the_job_then_there_is_none(kind: Kind) -> None:
    """Nobody is given a job that is not stored."""
    await kind.scheduler.add_trigger(kind.db, TriggerInfos(id="hook", type="@webhook", worker="choosy", message="skip"))
    assert await kind.scheduler.fire_webhook("hook", 1) is None


async def test_push_jobs_when_many_then_each_has_its_answer(kind: Kind) -> None:
    """Stored, skipped or refused, in the order of the requests."""
    requests = [JobRequest(worker_type="echo", message=number) for number in range(300)]
    requests[7] = JobRequest(worker_type="nothing")
    requests[8] = JobRequest(worker_type="choosy", message="skip")
    answers = await kind.broker.push_jobs(kind.db, iter(requests))
    assert isinstance(answers[7], UnknownWorkerError)
    assert answers[8] is None
    jobs = [answer for answer in answers if isinstance(answer, Job)]
    assert [job.message for job in jobs] == [number for number in range(300) if number not in (7, 8)]
    for job in jobs:
        assert (await kind.ended(job.id)).state is State.DONE


async def test_broker_when_asked_then_its_types_and_queue_lengths(kind: Kind) -> None:
    """A job that waits for its time is queued."""
    assert kind.broker.workers_types() == ["admins", "choosy", "echo", "endless", "passes_on", "plain"]
    await kind.broker.push_job(kind.db, JobRequest(worker_type="echo", scheduled_at=now() + timedelta(hours=1)))
    assert await eventually(lambda: kind.broker.worker_queue_len("echo")) == 1  # a copy of a cluster may be behind
    with pytest.raises(UnknownWorkerError):
        await kind.broker.worker_queue_len("nothing")


async def test_scheduled_job_when_its_time_comes_then_run(kind: Kind) -> None:
    """Not before."""
    at = now() + timedelta(seconds=0.3)
    job = await kind.end("echo", scheduled_at=at)
    assert job.started_at is not None
    assert job.started_at >= at


async def test_shutdown_when_done_then_closed(kind: Kind) -> None:
    """Neither a second start nor a second shutdown, and nothing is pushed any more."""
    with pytest.raises(ClosedError):
        await kind.broker.start_workers(WorkersList())
    with pytest.raises(ClosedError):
        await kind.scheduler.start_scheduler(kind.broker)
    await kind.scheduler.shutdown_scheduler()
    await kind.broker.shutdown_workers(0)
    for closed in (
        kind.scheduler.shutdown_scheduler(),
        kind.broker.shutdown_workers(),
        kind.scheduler.poll_scheduler(now()),
    ):
        with pytest.raises(ClosedError):
            await closed
    with pytest.raises(QueueClosedError):
        await kind.broker.push_job(kind.db, JobRequest(worker_type="echo"))


async def test_triggers_when_added_then_found_and_deleted(kind: Kind) -> None:
    """Ordered by id; a bad one is refused."""
    for trigger_id in ("b", "a"):
        infos = TriggerInfos(id=trigger_id, type="@every", arguments="1h", worker="echo", message=1)
        assert (await kind.scheduler.add_trigger(kind.db, infos)).id == trigger_id
    assert [infos.id for infos in await kind.scheduler.get_all_triggers(kind.db)] == ["a", "b"]
    assert (await kind.scheduler.get_trigger(kind.db, "a")).arguments == "1h"
    await kind.scheduler.delete_trigger(kind.db, "a")
    for missing in (kind.scheduler.get_trigger(kind.db, "a"), kind.scheduler.delete_trigger(kind.db, "a")):
        with pytest.raises(TriggerNotFoundError):
            await missing
    with pytest.raises(UnknownTriggerError):
        await kind.scheduler.add_trigger(kind.db, TriggerInfos(type="@nothing", worker="echo"))
    with pytest.raises(MalformedTriggerError):
        await kind.scheduler.add_trigger(kind.db, TriggerInfos(type="@cron", arguments="x", worker="echo"))
    await kind.scheduler.rebuild(kind.db)
    await kind.scheduler.clean()


async def test_schedules_when_their_ticks_come_then_fire(kind: Kind) -> None:
    """@in and @at once, and then they are gone; @every and @cron again and again."""
    soon = format_time(now() + timedelta(seconds=0.3))
    for trigger_id, trigger_type, arguments in (
        ("in", "@in", "300ms"),
        ("at", "@at", soon),
        ("every", "@every", "1s"),
        ("cron", "@cron", "* * * * * *"),
    ):
        infos = TriggerInfos(id=trigger_id, type=trigger_type, arguments=arguments, worker="echo", message=trigger_id)
        await kind.scheduler.add_trigger(kind.db, infos)
    await eventually(lambda: calls.count("every") >= 2 and calls.count("cron") >= 2)
    assert (calls.count("in"), calls.count("at")) == (1, 1)

    async def gone() -> bool:
        return {infos.id for infos in await kind.scheduler.get_all_triggers(kind.db)} == {"every", "cron"}

    await eventually(gone)


async def test_webhooks_when_fired_then_jobs_with_payloads(kind: Kind) -> None:
    """One each, or one a window."""
    await kind.scheduler.add_trigger(kind.db, TriggerInfos(id="hook", type="@webhook", worker="echo", message=1))
    slow = TriggerInfos(id="slow", type="@webhook", worker="echo", message=2, debounce=1)
    await kind.scheduler.add_trigger(kind.db, slow)
    one = await kind.scheduler.fire_webhook("hook", "a")
    assert one is not None
    assert (await kind.ended(one.id)).payload == "a"
    windows = {
        found.id for number in range(5) if (found := await kind.scheduler.fire_webhook("slow", number)) is not None
    }
    assert len(windows) == 1
    joined = await kind.ended(windows.pop())
    assert (joined.payload, joined.debounced) == ({"payloads": [0, 1, 2, 3, 4]}, True)
    with pytest.raises(TriggerNotFoundError):
        await kind.scheduler.fire_webhook("nothing", None)


async def test_start_when_the_other_half_is_of_another_kind_then_refused(connection: Connection) -> None:
    """Memory with memory, CouchDB with CouchDB."""
    with pytest.raises(ConfigurationError):
        await CouchScheduler(connection).start_scheduler(MemBroker())
    with pytest.raises(ConfigurationError):
        await MemScheduler().start_scheduler(CouchBroker(connection))


@pytest.mark.parametrize("kind_of_broker", ["memory", "couch"])
async def test_start_when_a_worker_init_raises_then_closed_and_nothing_is_left(
    connection: Connection, db: Prefixer, kind_of_broker: str
) -> None:
    """What had begun is undone: the types before it, the daemon; and there is nothing to shut down."""
    ended: list[str] = []

    def fail() -> None:
        raise OSError("no GPU")

    @worker("good", worker_stop=lambda: ended.append("good"))
    def good(ctx: WorkerContext) -> None:
        """Do nothing."""

    @worker("bad", worker_init=fail, worker_stop=lambda: ended.append("bad"))
    def bad(ctx: WorkerContext) -> None:
        """Do nothing."""

    @worker("never", worker_stop=lambda: ended.append("never"))
    def never(ctx: WorkerContext) -> None:
        """Do nothing."""

    broker: Any = MemBroker() if kind_of_broker == "memory" else CouchBroker(connection)
    scheduler: Any = MemScheduler() if kind_of_broker == "memory" else CouchScheduler(connection)
    system = JobSystem(broker, scheduler, WorkersList([good, bad, never]))
    with pytest.raises(OSError, match="no GPU"):
        await system.start()
    assert system.state == "closed"
    assert ended == ["good"]
    with pytest.raises(ClosedError):
        await system.shutdown()
    assert await connection.control.with_prefix("daemon:") == []
