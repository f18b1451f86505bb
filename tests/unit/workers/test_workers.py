"""Workers: declaring them, and what becomes of one try."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from couchjobs.errors import AbortJob, BadTriggerError, ConfigurationError, MessageNilError, UnknownWorkerError
from couchjobs.jobs.job import Job, JobOptions
from couchjobs.settings import Settings
from couchjobs.timestamps import now
from couchjobs.workers import pool as pool_module
from couchjobs.workers.child_process import ChildProcess
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry
from couchjobs.workers.pool import ChildPool
from couchjobs.workers.registry import (
    add_worker,
    config_of,
    get_workers_list,
    get_workers_names_list,
    worker,
    workers_of,
)
from couchjobs.workers.wire import receive, unpack
from couchjobs.workers.worker import Worker


class Mail(BaseModel):
    """A message."""

    to: str


class LeaseUntil:
    """A daemon that is lost from then on."""

    def __init__(self, until: float) -> None:
        self._until = until

    @property
    def is_lost(self) -> bool:
        """Whether it is later."""
        return time.monotonic() > self._until


def job(**fields: Any) -> Job:
    """A job that has just been claimed for its first try."""
    return Job(**{"id": "j", "worker": "w", "exec_count": 1, "started_at": now()} | fields)


def run(function: Any, given: Job | None = None, **options: Any) -> Outcome:
    """One try."""
    config = config_of(worker("w", **options)(function))
    return asyncio.run(Worker(config).begin(given or job()).run())


@pytest.mark.parametrize("plain", [False, True])
def test_try_when_the_time_of_all_tries_is_over_then_the_function_is_not_begun(plain: bool) -> None:
    """It was in the queue for too long, or its daemon had died: what it does would be done, and the job be errored."""
    begun: list[str] = []

    def function(ctx: WorkerContext) -> None:
        begun.append(ctx.id)

    async def coroutine(ctx: WorkerContext) -> None:
        begun.append(ctx.id)

    committed: list[BaseException | None] = []

    def commit(ctx: WorkerContext, error: BaseException | None) -> None:
        committed.append(error)
        with pytest.raises(ConfigurationError, match="nothing can be pushed from it"):  # and not: of the event loop
            ctx.sync_push("w")

    late = job(started_at=now() - timedelta(seconds=11))
    given = {"max_exec_time": 10, "worker_commit": commit}
    outcome = run(function if plain else coroutine, late, **given)
    assert isinstance(outcome, Failed)
    assert "max_exec_time" in outcome.error
    assert not begun
    assert isinstance(committed[0], TimeoutError)


def test_try_when_function_returns_then_done_with_the_result() -> None:
    """Coroutine or plain function, with or without the message."""

    async def coroutine(ctx: WorkerContext, message: Mail) -> str:
        return message.to

    def plain(ctx: WorkerContext) -> tuple[int, int]:
        return 1, 2

    assert run(coroutine, job(message={"to": "ann"})) == Done("ann")
    assert run(plain) == Done([1, 2])


def test_try_when_result_is_no_json_then_done_without_it() -> None:
    """The work is done; running it again would not mend that."""

    async def function(ctx: WorkerContext) -> object:
        return object()

    outcome = run(function, max_exec_count=5)
    assert isinstance(outcome, Done)
    assert "JSON" in outcome.lost


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AbortJob("enough: it was paid"), Done("enough: it was paid")),
        (AbortJob(), Done()),
        (BadTriggerError("gone"), Failed("BadTriggerError: gone", bad_trigger=True)),
        (MessageNilError("none"), Failed("MessageNilError: none")),
    ],
)
def test_try_when_error_has_a_meaning_then_that_outcome(error: Exception, expected: Outcome) -> None:
    """None of them is tried again."""

    async def function(ctx: WorkerContext) -> None:
        raise error

    assert run(function, max_exec_count=5) == expected


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), TimeoutError("its own")])
def test_try_when_function_raises_then_retry_with_backoff(error: BaseException) -> None:
    """Doubled each time, +-10 %; a worker cannot end the daemon by sys.exit."""

    async def function(ctx: WorkerContext) -> None:
        raise error

    outcome = run(function, max_exec_count=9, retry_delay=2)
    assert isinstance(outcome, Retry)
    assert 1.8 <= outcome.delay_s <= 2.2
    third = job()
    third.exec_count = 3
    outcome = run(function, third, max_exec_count=9, retry_delay=2)
    assert isinstance(outcome, Retry)
    assert 7.2 <= outcome.delay_s <= 8.8


def test_try_when_tries_or_time_are_spent_then_failed() -> None:
    """Options lower what the worker allows, never raise it."""

    async def function(ctx: WorkerContext) -> None:
        raise ValueError("x")

    assert isinstance(run(function, max_exec_count=1), Failed)
    assert isinstance(run(function, job(options=JobOptions(max_exec_count=9)), max_exec_count=1), Failed)
    assert isinstance(run(function, job(options=JobOptions(max_exec_count=1)), max_exec_count=9), Failed)
    late = job()
    late.started_at = now() - timedelta(seconds=10)
    assert isinstance(run(function, late, max_exec_count=9, max_exec_time=10.5, retry_delay=1), Failed)
    assert isinstance(run(function, late, max_exec_count=9, max_exec_time=60, retry_delay=1), Retry)
    late.options = JobOptions(max_exec_time=5)
    assert isinstance(run(function, late, max_exec_count=9, max_exec_time=60, retry_delay=1), Failed)


def test_try_when_error_hook_fails_then_not_tried_again() -> None:
    """A hook that fails does not lose the job's own error."""

    async def function(ctx: WorkerContext) -> None:
        raise ValueError("own")

    def hook(error: BaseException) -> bool:
        raise RuntimeError("hook")

    assert run(function, max_exec_count=9, error_hook=hook) == Failed("ValueError: own")


@pytest.mark.parametrize("outcome", [Cancelled(), Interrupted()])
async def test_try_when_stopped_then_that_outcome(outcome: Cancelled | Interrupted) -> None:
    """A coroutine is cancelled; committed only where the job has ended."""
    commits: list[Any] = []
    began = asyncio.Event()

    async def function(ctx: WorkerContext) -> None:
        began.set()
        await asyncio.Event().wait()

    config = config_of(worker("w", worker_commit=lambda ctx, error: commits.append(error))(function))
    running = Worker(config).begin(job())
    task = asyncio.create_task(running.run())
    await began.wait()
    running.stop(outcome)
    running.stop(Interrupted())
    assert await task == outcome
    assert len(commits) == isinstance(outcome, Cancelled)
    assert task.cancelling() == 0


async def test_try_when_it_is_stopped_again_and_again_then_left_behind_in_time_and_not_disturbed() -> None:
    """Each row of a job whose cancellation is wanted says so once more; its own progress is such a row."""
    cancelled, over = 0, asyncio.Event()

    async def function(ctx: WorkerContext) -> None:
        nonlocal cancelled
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                cancelled += 1

    running = Worker(config_of(worker("w")(function))).begin(job())
    task = asyncio.create_task(running.run())
    began = time.monotonic()
    while not task.done():
        await asyncio.sleep(0.05)
        running.stop(Cancelled(), 0.5)
        assert time.monotonic() - began < 5
    assert await task == Cancelled()
    assert cancelled == 1
    over.set()
    assert running.outliving is not None
    await running.outliving


async def test_remote_try_when_cancelled_and_then_interrupted_then_its_child_is_told_both() -> None:
    """What follows a cancellation has no time any more where the daemon stops; the job is cancelled all the same."""
    pool = ChildPool(1, [], WorkersList([config_of(worker("w")(lambda ctx: 1))]), Settings())
    attempt, reader = pool.begin(job()), asyncio.StreamReader()
    writer = SimpleNamespace(write=reader.feed_data, is_closing=lambda: False)
    attempt._child = SimpleNamespace(tries={attempt._number}, writer=writer, pongs=0)  # type: ignore[assignment]
    attempt.stop(Cancelled())
    attempt.stop(Interrupted(), 3.0)
    told = [await receive(reader), await receive(reader)]
    assert [type(unpack(one["stop"])) for one in told if one is not None] == [Cancelled, Interrupted]
    attempt.lost("signal 9")
    assert await attempt.outcome == Cancelled()


@pytest.mark.parametrize("listens", [False, True])
async def test_child_when_it_does_not_answer_while_the_daemon_stops_then_killed_at_once_and_not_where_it_does(
    listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other jobs would be lost with it; one whose function goes on although it listens has some seconds more."""
    monkeypatch.setattr(pool_module, "_LISTENS_WITHIN_S", 0.3)
    loop, killed = asyncio.get_running_loop(), asyncio.Event()
    began = loop.time()
    pool = ChildPool(1, [], WorkersList([config_of(worker("w")(lambda ctx: 1))]), Settings())
    attempt = pool.begin(job())
    child: Any = SimpleNamespace(tries={attempt._number}, pongs=0, kill=killed.set)

    def hear(data: bytes) -> None:
        if listens and b"ping" in data and child.pongs == 0:
            child.pongs += 1

    child.writer = SimpleNamespace(write=hear, is_closing=lambda: False)
    attempt._child = child
    attempt.stop(Interrupted(), 0.1)
    await asyncio.wait_for(killed.wait(), 5)
    assert (loop.time() - began > 0.35) is listens


async def test_try_when_stopped_before_it_began_then_never_runs() -> None:
    """A shutdown in the moment of the claim."""

    async def function(ctx: WorkerContext) -> None:
        raise AssertionError

    running = Worker(config_of(worker("w")(function))).begin(job())
    running.stop(Interrupted())
    assert await running.run() == Interrupted()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
async def test_try_when_the_process_stood_still_before_it_began_then_never_runs(plain: bool, hooked: bool) -> None:
    """It was claimed in time; while a neighbour blocked the event loop the others took this daemon for dead."""
    began: list[str] = []

    async def coroutine(ctx: WorkerContext) -> None:
        began.append("function")

    def start(ctx: WorkerContext) -> WorkerContext:
        began.append("worker_start")
        return ctx

    hooks: dict[str, Any] = {"worker_start": start} if hooked else {}
    function = (lambda ctx: began.append("function")) if plain else coroutine
    config = config_of(worker("w", **hooks, worker_commit=lambda ctx, error: began.append("commit"))(function))
    task = asyncio.create_task(Worker(config).begin(job(), "d", LeaseUntil(time.monotonic() + 0.02)).run())
    time.sleep(0.03)  # noqa: ASYNC251  that is it
    assert await task == Interrupted()
    assert began == []


async def test_try_when_its_hook_takes_longer_than_a_beat_then_goes_on() -> None:
    """What the user gave has begun: whether the daemon is lost meanwhile is watched elsewhere."""

    async def start(ctx: WorkerContext) -> WorkerContext:
        await asyncio.sleep(0.03)
        return ctx

    config = config_of(worker("w", worker_start=start)(lambda ctx: 1))
    outcome = await Worker(config).begin(job(), "d", LeaseUntil(time.monotonic() + 0.02)).run()
    assert isinstance(outcome, Done)


async def test_try_when_the_task_itself_is_cancelled_then_cancelled_passes() -> None:
    """CancelledError is never swallowed."""

    async def function(ctx: WorkerContext) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(Worker(config_of(worker("w")(function))).begin(job()).run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_try_when_thread_runs_on_after_its_time_then_outcome_at_once() -> None:
    """The thread finds `ctx.cancelled`; whoever counts slots waits for it."""

    def function(ctx: WorkerContext) -> None:
        while not ctx.cancelled:
            time.sleep(0.005)

    running = Worker(config_of(worker("w", timeout=0.05, max_exec_count=1)(function))).begin(job())
    assert await running.run() == Failed("TimeoutError: no end within 0.05 s; the function goes on in its thread")
    assert running.outliving is not None
    await asyncio.wait_for(running.outliving, 5)


async def test_try_when_all_tries_have_little_time_left_then_it_ends_with_that() -> None:
    """`max_exec_time` bounds the try that runs, too; `ctx.with_timeout` of a hook may shorten it."""

    async def function(ctx: WorkerContext) -> None:
        await asyncio.Event().wait()

    started = now() - timedelta(seconds=9.95)
    first = Worker(config_of(worker("w", max_exec_time=10)(function))).begin(job(started_at=started))
    outcome = await first.run()
    assert isinstance(outcome, Failed)
    assert "no end within 0.0" in outcome.error
    hooked = worker("w", max_exec_count=1, worker_start=lambda ctx: ctx.with_timeout(0.05))(function)
    outcome = await Worker(config_of(hooked)).begin(job()).run()
    assert isinstance(outcome, Failed)
    assert "no end within 0.0" in outcome.error


async def test_try_when_the_function_raises_what_is_no_exception_then_an_outcome_all_the_same() -> None:
    """Nor do hooks that do so, or that never end, hold the job up."""

    async def function(ctx: WorkerContext) -> None:
        ctx.with_cookie(1).set_no_retry()
        raise KeyboardInterrupt

    async def never(ctx: WorkerContext, error: BaseException | None) -> None:
        await asyncio.Event().wait()

    config = config_of(worker("w", timeout=0.05, worker_commit=never)(function))
    assert await Worker(config).begin(job()).run() == Failed("KeyboardInterrupt")


def test_worker_when_declared_wrongly_then_configuration_error() -> None:
    """What, where, how to mend it."""
    with pytest.raises(ConfigurationError, match="there is no option 'colour'"):
        worker("w", colour=1)(lambda ctx: None)
    with pytest.raises(ConfigurationError, match=r"there is no option 'timout': did you mean timeout\?"):
        worker("w", timout=1)(lambda ctx: None)
    with pytest.raises(ConfigurationError, match=r"must take \(ctx\) or \(ctx, message\)"):
        worker("w")(lambda: None)
    with pytest.raises(ConfigurationError, match="concurrency must be at least 1"):
        worker("w", concurrency=0)(lambda ctx: None)
    with pytest.raises(ConfigurationError, match="timeout must be more than 0"):
        worker("w", timeout=0)(lambda ctx: None)
    with pytest.raises(ConfigurationError, match=r"'w': cron field '25' \(hour\)"):
        worker("w", cron="0 25 * * *")(lambda ctx: None)
    with pytest.raises(ConfigurationError, match="Europe/Pariss"):
        worker("w", cron="0 3 * * *", timezone="Europe/Pariss")(lambda ctx: None)
    with pytest.raises(ConfigurationError, match="often"):
        worker("w", every="often")(lambda ctx: None)
    with pytest.raises(ConfigurationError, match="every: text is wanted, not 3600"):
        worker("w", every=3600)(lambda ctx: None)
    with pytest.raises(ConfigurationError, match="timezone: is of `cron`"):
        worker("w", every="1h", timezone="Europe/Paris")(lambda ctx: None)
    with pytest.raises(ConfigurationError, match="not decorated"):
        config_of(print)


def test_workers_of_modules_when_imported_twice_then_once() -> None:
    """The same function under two names is one worker; two functions of one type are a mistake."""

    @worker("mine")
    def mine(ctx: WorkerContext) -> None: ...

    @worker("mine")
    def twin(ctx: WorkerContext) -> None: ...

    one, other = ModuleType("one"), ModuleType("other")
    one.mine, one.alias, other.mine = mine, mine, mine  # type: ignore[attr-defined]
    assert workers_of(one, other).names() == ["mine"]
    other.twin = twin  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="two workers of type 'mine'"):
        workers_of(one, other)


def test_workers_list_when_asked_for_an_unknown_type_then_says_which_there_are() -> None:
    """A type without a name is refused."""
    workers = WorkersList([WorkerConfig(worker_type="a", worker_func=print)])
    assert "a" in workers
    assert [config.clone() for config in workers] == list(workers)
    with pytest.raises(UnknownWorkerError, match="no worker of type 'b': a"):
        workers.get("b")
    with pytest.raises(ConfigurationError, match="needs a type"):
        workers.add(WorkerConfig(worker_type="", worker_func=print))


def test_add_worker_when_added_then_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry of the specification, beside the decorator."""
    registry = sys.modules["couchjobs.workers.registry"]
    monkeypatch.setattr(registry, "_added", WorkersList())
    add_worker(WorkerConfig(worker_type="added", worker_func=print))
    assert get_workers_names_list() == ["added"]
    assert [config.worker_type for config in get_workers_list()] == ["added"]
    with pytest.raises(ConfigurationError):
        add_worker(WorkerConfig(worker_type="added", worker_func=print))


def test_context_when_used_then_gives_what_the_job_says() -> None:
    """The names of the specification."""
    ctx = WorkerContext(
        job(message={"to": "ann"}, event={"verb": "CREATED"}, trigger_id="t", manual_execution=True), "daemon"
    )
    assert (ctx.id, ctx.trigger_id, ctx.manual, ctx.exec_count) == ("j", "t", True, 1)
    assert ctx.unmarshal_message(Mail).to == "ann"
    assert ctx.unmarshal_event(dict) == {"verb": "CREATED"}
    assert ctx.with_cookie(5).cookie == 5
    assert ctx.cookie is None
    shorter = ctx.with_timeout(5).with_timeout(50)
    assert shorter.deadline is not None
    assert shorter.deadline - time.monotonic() <= 5
    shorter.set_no_retry()
    assert shorter.no_retry
    assert ctx.logger is not None


async def test_try_when_something_that_it_waits_for_is_cancelled_then_an_error_like_any_other() -> None:
    """Only a cancelled try is cancelled."""

    async def function(ctx: WorkerContext) -> None:
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner

    outcome = await Worker(config_of(worker("w", max_exec_count=1)(function))).begin(job()).run()
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("CancelledError: the function was cancelled")


async def test_child_when_it_gets_no_more_jobs_then_those_it_has_may_take_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its last job may take three hours; where something hangs in it beside, as long as all have time."""
    pool, loop = ChildPool.__new__(ChildPool), asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def one(*, hangs: bool = False, ends_by: float | None = None) -> Any:
        outcome = loop.create_future()
        if hangs:
            outcome.set_result(None)
        return SimpleNamespace(outcome=outcome, has_outcome=hangs, ends_by=ends_by)

    def waits(*tries: Any) -> asyncio.Task[None]:
        child: Any = ChildProcess.__new__(ChildProcess)
        child.tries = dict(enumerate(tries))
        return asyncio.create_task(pool._let_end(child, ended))

    for_ever, limited = waits(one()), waits(one(hangs=True), one(ends_by=loop.time() + 3600))
    monkeypatch.setattr(pool_module, "_LAST_TRIES_S", 0.5)
    cancelled = one()
    stops_soon = waits(cancelled, one())
    over = waits(one(hangs=True), one()), waits(one(hangs=True), one(ends_by=loop.time() - 1)), waits(one(hangs=True))
    await asyncio.wait(over, timeout=30)
    assert all(task.done() for task in over)
    assert not for_ever.done()
    assert not limited.done()
    assert not stops_soon.done()
    cancelled.has_outcome = True  # from here on something hangs
    cancelled.outcome.set_result(None)
    await asyncio.wait_for(stops_soon, 30)
    ended.set_result(0)
    await asyncio.gather(for_ever, limited)


@pytest.mark.parametrize(("before", "plain"), [("worker_start", False), ("worker_start", True), ("middleware", True)])
def test_try_when_its_time_is_over_before_the_function_is_called_then_it_is_not(before: str, plain: bool) -> None:
    """What comes before it waits for a lock, and swallows the cancellation: the job has its outcome by then."""
    begun: list[str] = []

    def function(ctx: WorkerContext) -> None:
        begun.append(ctx.id)

    async def coroutine(ctx: WorkerContext) -> None:
        begun.append(ctx.id)

    def start(ctx: WorkerContext) -> WorkerContext:
        time.sleep(0.5)
        return ctx

    @contextmanager
    def locked(_: WorkerContext) -> Iterator[None]:
        time.sleep(0.5)
        yield

    given: dict[str, Any] = {"worker_start": start} if before == "worker_start" else {"middleware": [locked]}
    outcome = run(function if plain else coroutine, timeout=0.1, max_exec_count=1, **given)
    assert isinstance(outcome, Failed)
    assert "no end within 0.1 s" in outcome.error
    time.sleep(0.6)
    assert not begun


async def test_stop_when_its_hook_waits_for_what_it_has_cancelled_then_logged_and_the_others_follow() -> None:
    """A common way to end a task; it is no cancellation of the daemon."""

    async def wait_for_it() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def function(ctx: WorkerContext) -> None:
        pass

    await Worker(config_of(worker("w", worker_stop=wait_for_it)(function))).stop()
