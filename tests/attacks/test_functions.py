"""What functions of users do to the engine: nothing that costs more than their own job."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemons import DaemonProcess
from waiting import eventually

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import Connection
from couchjobs.errors import AbortJob, ConfigurationError
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings
from couchjobs.workers.config import WorkerConfig
from couchjobs.workers.context import Resources, WorkerContext, current_job
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry
from couchjobs.workers.registry import config_of, worker
from couchjobs.workers.threads import Threads
from couchjobs.workers.worker import Worker

GUILTY = '''
"""Functions that do what functions should not do."""
import asyncio, contextlib, logging, os, signal, subprocess, sys, threading, time
import structlog
from couchjobs import worker

@worker("innocent", concurrency=8)
async def innocent(ctx, number):
    await asyncio.sleep(0.01)
    with open("ran.txt", "a") as file:
        file.write(f"{ctx.id}\\n")
    return number

@worker("plain innocent", concurrency=4)
def plain_innocent(ctx, number):
    time.sleep(0.01)
    with open("ran.txt", "a") as file:
        file.write(f"{ctx.id}\\n")
    return number

class Odd(BaseException):
    def __str__(self):
        raise SystemExit(3)

class Sealed(Exception):
    @property
    def __cause__(self):
        raise SystemExit(4)
    __context__ = __class__ = __cause__
    def __bool__(self):
        raise SystemExit(5)

async def _raises(error):
    raise error

def _callback(error):
    raise error

async def act(ctx, what):
    loop = asyncio.get_running_loop()
    if what == "exit in a task":
        await asyncio.gather(_raises(SystemExit(1)))
    elif what == "exit in a task left behind":
        asyncio.ensure_future(_raises(SystemExit(1)))
        await asyncio.sleep(0)
    elif what == "interrupt in a callback":
        loop.call_soon(_callback, KeyboardInterrupt())
        await asyncio.sleep(0.01)
    elif what == "exit":
        sys.exit(0)
    elif what == "odd error":
        raise Odd
    elif what == "cancel oneself":
        asyncio.current_task().cancel()
        await asyncio.sleep(1)
    elif what == "cancel all":
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(1)
    elif what == "swallow":
        for _ in range(4):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
    elif what == "clean up badly":
        try:
            await asyncio.sleep(30)
        finally:
            raise ConnectionError("while cleaning up")
    elif what == "mutate":
        ctx.job.message.clear()
        ctx.job.document().clear()
        ctx.job.id = ctx.job.worker = "other"
        ctx.job.claim.id = "mine"
        raise ValueError("after that")
    elif what == "close descriptors":
        for number in range(3):
            with contextlib.suppress(OSError):
                os.close(number)
        raise ValueError("nobody hears it")
    elif what == "stop the loop":
        loop.stop()
        await asyncio.sleep(0.01)
    elif what == "make tasks another way":
        loop.set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
        await asyncio.gather(asyncio.sleep(0.05))
        return "made"
    elif what == "odd class":
        raise Sealed("its class says nothing")
    elif what == "log nonsense":
        logging.getLogger("x").warning("%d of %s", "12")
        ctx.logger.warning("odd", value=Odd())
        return "logged"
    elif what == "fork and come back":
        if os.fork() == 0:
            raise ValueError("in the child")
        return "parent"
    elif what == "fork and end the child by a signal":
        import multiprocessing
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.05)
        child.terminate()
        child.join(5)
        return child.exitcode
    elif what == "leave a thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
        loop.run_in_executor(None, time.sleep, 600)
        return "left"
    elif what == "leave a task":
        asyncio.ensure_future(asyncio.sleep(600))
        return "left"
    elif what == "leave a program":
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    elif what == "take the signals":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGINT, print, "mine")
        return "taken"
    elif what == "end all generators":
        await loop.shutdown_asyncgens()
        return "ended"
    elif what == "end all threads":
        await loop.shutdown_default_executor()
        return "ended"
    elif what == "fill the threads":
        for _ in range(40):
            loop.run_in_executor(None, time.sleep, 600)
        return "filled"
    elif what == "log another way":
        structlog.configure(processors=[lambda logger, name, event: event["nothing"]], cache_logger_on_first_use=True)
        return "configured"
    elif what == "hang in a hook":
        await ctx.push("hooked", None)

def hangs(job):
    time.sleep(600)

@worker("hooked", before_hook=hangs)
async def hooked(ctx): pass

@worker("guilty", concurrency=8, max_exec_count=2, retry_delay=0.1, timeout=3)
async def guilty(ctx, message):
    return await act(ctx, message["what"])

class Endless(StopIteration):
    pass

@worker("plain guilty", concurrency=4, max_exec_count=2, retry_delay=0.1, timeout=2)
def plain_guilty(ctx, message):
    what = message["what"]
    if what == "stop":
        raise StopIteration
    if what == "exit":
        sys.exit(2)
    if what == "mutate":
        message.clear()
        raise Endless
    if what == "fork":
        if os.fork() == 0:
            return "child"
        return "parent"
    if what == "own loop":
        return asyncio.run(act(ctx, "exit in a task"))
    if what == "thread":
        threading.Thread(target=sys.exit).start()
        return "thread"
'''
ACTS = {
    "exit in a task": "SystemExit: 1",
    "exit in a task left behind": None,
    "interrupt in a callback": None,
    "exit": "SystemExit: 0",
    "odd error": "Odd",
    "cancel oneself": "nobody had asked for that",
    "cancel all": None,
    "swallow": "no end within 3 s",
    "clean up badly": "no end within 3 s",
    "mutate": "ValueError: after that",
    "log nonsense": None,
    "make tasks another way": None,
    "fork and come back": None,
    "fork and end the child by a signal": None,
    "leave a thread": None,
    "leave a task": None,
    "leave a program": None,
    "close descriptors": "ValueError: nobody hears it",
    "stop the loop": None,
    "odd class": "its class says nothing",
    "take the signals": None,
    "end all generators": None,
    "end all threads": None,
    "fill the threads": None,
    "log another way": None,
    "hang in a hook": "no end within 3 s",
}
PLAIN = {"stop": "StopIteration", "exit": "SystemExit: 2", "mutate": "Endless", "fork": None, "thread": None}


def run(
    function: Any, message: Any = None, stop_with: Cancelled | Interrupted | None = None, **options: Any
) -> Outcome:
    """One try, its first; stopped a moment after it has begun, where that is given."""

    async def go() -> Outcome:
        given = Job.from_document({"_id": "j", "_rev": "1-a", "worker": "w", "message": message, "state": "running"})
        given.exec_count = 1
        one = Worker(config_of(worker("w", **options)(function))).begin(given)
        if stop_with is not None:
            asyncio.get_running_loop().call_later(0.05, one.stop, stop_with)
        return await one.run()

    return asyncio.run(go())


class Falsy(AbortJob):
    """An error that counts as false."""

    def __len__(self) -> int:
        """Zero."""
        return 0


class Nested(ExceptionGroup[Exception]):
    """A group that says that it is none."""

    @property
    def exceptions(self) -> Any:
        """Raise."""
        raise SystemExit(6)


def nested(depth: int) -> BaseException:
    """A group within a group, and so on."""
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("outer", [error])
    return error


@pytest.mark.parametrize(
    ("error", "outcome", "told"),
    [
        (Falsy(), Done, ""),
        (Nested("g", [ValueError("inner")]), Retry, "ValueError: inner"),
        (nested(3000), Retry, "ExceptionGroup"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_error_when_its_class_is_odd_then_an_outcome_like_any_other(
    error: BaseException, outcome: type, told: str, plain: bool
) -> None:
    """What it says of itself decides nothing."""

    async def fails(ctx: WorkerContext) -> None:
        raise error

    def fails_plainly(ctx: WorkerContext) -> None:
        raise error

    found = run(fails_plainly if plain else fails)
    assert isinstance(found, outcome)
    assert told in getattr(found, "error", "")


async def forgets(ctx: WorkerContext) -> None:
    """Return nothing, where a context is wanted."""


async def test_try_when_worker_start_forgets_its_context_then_counted_and_told() -> None:
    """By name."""
    function = config_of(worker("w", worker_start=forgets, max_exec_count=2)(forgets))
    outcome = await Worker(function).begin(Job(id="j", worker="w", exec_count=1)).run()
    assert isinstance(outcome, Retry)
    assert "worker_start returned None" in outcome.error


@pytest.mark.parametrize("stop_with", [Interrupted(), Cancelled()])
def test_try_when_its_cleanup_raises_while_it_is_stopped_then_that_does_not_count(stop_with: Any) -> None:
    """Nor does it in a group, or where it was the last try."""

    async def cleans_up(ctx: WorkerContext) -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise ExceptionGroup("both", [ConnectionError("x"), ValueError("y")])

    assert run(cleans_up, stop_with=stop_with, max_exec_count=1) == stop_with


def test_try_when_a_group_holds_its_errors_then_all_are_told_and_an_abort_counts() -> None:
    """As a TaskGroup gives them."""

    async def fails(error: Exception) -> None:
        raise error

    async def group(ctx: WorkerContext, message: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            for error in (AbortJob(), AbortJob()) if message == "abort" else (KeyError("a"), ValueError("b")):
                tasks.create_task(fails(error))

    assert run(group, "abort") == Done()
    failed = run(group, "fail", max_exec_count=1)
    assert isinstance(failed, Failed)
    assert "KeyError: 'a'" in failed.error
    assert "ValueError: b" in failed.error


def test_memory_when_failing_tries_hold_large_locals_then_freed_with_their_outcomes() -> None:
    """In the event loop and in threads."""

    async def holds(ctx: WorkerContext) -> None:
        large = bytearray(20_000_000)
        error = ValueError(len(large))
        raise error

    def holds_in_a_thread(ctx: WorkerContext) -> None:
        large = bytearray(20_000_000)
        raise ValueError(len(large))

    gc.disable()
    try:
        before = psutil.Process().memory_info().rss
        for function in (holds, holds_in_a_thread):
            for _ in range(30):
                run(function)
        assert psutil.Process().memory_info().rss - before < 150_000_000
    finally:
        gc.enable()


def test_functions_when_they_are_of_other_kinds_then_called_or_refused() -> None:
    """Behind a decorator, an object, a partial, a lambda; no generators."""

    async def inner(ctx: WorkerContext) -> int:
        return 5

    def decorated(ctx: WorkerContext) -> Any:
        return inner(ctx)

    class Callable_:  # noqa: N801
        async def __call__(self, ctx: WorkerContext) -> int:
            return 6 if ctx.id else 0

    assert run(decorated) == Done(5)
    for function, result in ((Callable_(), 6), (lambda ctx, more=1: inner(ctx), 5)):
        config = WorkerConfig(worker_type="w", worker_func=function)
        outcome = asyncio.run(Worker(config).begin(Job(id="j", worker="w", exec_count=1)).run())
        assert outcome == Done(result)

    def generator(ctx: WorkerContext) -> Any:
        yield 1

    with pytest.raises(ConfigurationError, match="generator"):
        WorkerConfig(worker_type="w", worker_func=generator)


async def test_middleware_and_resources_when_given_then_around_each_try_and_shared() -> None:
    """An async one in the event loop; a plain one in the function's own thread."""
    told: list[Any] = []

    @asynccontextmanager
    async def outer(ctx: WorkerContext) -> Any:
        told.append("outer")
        try:
            yield
        finally:
            told.append("outer ends")

    @contextmanager
    def inner(ctx: WorkerContext) -> Any:
        told.append(threading.current_thread().name)
        yield

    async def init(resources: Resources) -> None:
        resources.value = "pool"

    def stop(resources: Resources) -> None:
        told.append(f"stop {resources.value}")

    def plain(ctx: WorkerContext) -> Any:
        job = current_job()
        return [job.id if job else None, ctx.resources, threading.current_thread().name == told[1]]

    given: dict[str, Any] = {"middleware": (outer, inner), "worker_init": init, "worker_stop": stop}
    one = Worker(config_of(worker("w", **given)(plain)))
    await one.init()
    assert await one.begin(Job(id="j", worker="w", exec_count=1)).run() == Done(["j", "pool", True])
    await one.stop()
    assert told[0] == "outer"
    assert told[2:] == ["outer ends", "stop pool"]
    assert current_job() is None


async def test_max_jobs_when_set_then_no_more_run_at_once_of_all_types(
    connection: Connection, db: Prefixer, start: Callable[..., Any]
) -> None:
    """Of two types with many slots each."""
    running, most = 0, 0

    async def work(ctx: WorkerContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    one, two = worker("one", concurrency=20)(work), WorkerConfig(worker_type="two", worker_func=work, concurrency=20)

    def other(ctx: WorkerContext) -> None: ...

    other.__couchjobs_worker__ = two  # type: ignore[attr-defined]
    system = await start(one, other, max_jobs=3)
    assert isinstance(system.broker, CouchBroker)
    requests = [JobRequest(worker_type=name, message=None) for name in ("one", "two") for _ in range(30)]
    pushed = await system.broker.push_jobs(db, requests)
    for job in pushed:
        assert isinstance(job, Job)
        assert (await wait(db, job.id, 20)).state is State.DONE
    assert most == 3


async def test_plain_function_when_it_runs_a_loop_of_its_own_then_queries_work_there(
    connection: Connection, db: Prefixer, start: Callable[..., Any]
) -> None:
    """The connection of the daemon belongs to another loop."""

    @worker("asks")
    def asks(ctx: WorkerContext) -> str:
        return str(asyncio.run(get_job(db, ctx.id)).state)

    system = await start(asks)
    job = await system.broker.push_job(db, JobRequest(worker_type="asks", message=None))
    ended = await wait(db, job.id, 10)
    assert (ended.state, ended.result) == (State.DONE, "running"), ended.error


def test_log_when_records_are_odd_then_left_alone_and_nothing_raises(capfd: pytest.CaptureFixture[str]) -> None:
    """And no credential of a traceback is shown."""
    code = (
        "import logging, os\n"
        "from couchjobs.log import configure_logging, get_logger\n"
        "configure_logging('info')\n"
        "seen = []\n"
        "class Other(logging.Handler):\n"
        "    def emit(self, record): seen.append(record.args)\n"
        "logging.getLogger().addHandler(Other())\n"
        "logging.warning('%d of %s', '12')\n"
        "logging.warning('%s of %s', 1, 2)\n"
        "assert seen[1] == (1, 2), seen\n"
        "try: raise ValueError('http://ann:hush@host/')\n"
        "except ValueError: logging.exception('x'); get_logger('y').exception('z')\n"
        "os.close(2)\n"
        "logging.warning('nobody hears'); get_logger('y').warning('nor this')\n"
        "os._exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    assert "hush" not in capfd.readouterr().err


async def test_log_when_nobody_reads_it_then_jobs_end_all_the_same(
    connection: Connection, db: Prefixer, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """A full pipe."""
    (tmp_path / "loud.py").write_text(
        "from couchjobs import worker\n"
        "@worker('loud')\n"
        "async def loud(ctx):\n"
        "    for _ in range(2000): ctx.logger.warning('x' * 100)\n"
    )
    reader, writer = os.pipe()
    given = settings_for()
    names = ("url", "domain", "prefix", "control_db")
    environment = {**os.environ, **{f"COUCHJOBS_{name.upper()}": str(getattr(given, name)) for name in names}}
    command = [sys.executable, "-m", "couchjobs", "run", "loud"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stderr=writer, stdout=writer, env=environment
    )
    try:
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "loud", "worker": "loud", "message": None, "state": "queued"})
        assert (await wait(db, "loud", 20)).state is State.DONE
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
        os.close(reader)
        os.close(writer)


def _lose() -> None:
    raise ConnectionError("lost")


@pytest.mark.parametrize("how", ["a reader goes on", "a neighbour goes on"])
def test_error_when_others_hold_it_too_then_they_go_on(how: str) -> None:
    """It was raised in a task that all share, or they wait for the same future: its frames are not this job's alone."""

    async def go() -> tuple[Outcome, str]:
        shared: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def reads() -> str:
            try:
                _lose()
            except ConnectionError as error:
                shared.set_exception(error)
                await asyncio.sleep(0.1)
            return "reads on"

        async def waits() -> str:
            with suppress(ConnectionError):
                await shared
            await asyncio.sleep(0.1)
            return "goes on"

        async def fails(ctx: WorkerContext) -> None:
            await shared

        other = asyncio.create_task(waits() if how == "a neighbour goes on" else reads())
        given = Job.from_document({"_id": "j", "_rev": "1-a", "worker": "w", "message": None, "state": "running"})
        given.exec_count = 1
        one = Worker(config_of(worker("w", max_exec_count=1)(fails))).begin(given)
        if how == "a neighbour goes on":
            asyncio.get_running_loop().call_later(0.05, shared.set_exception, ConnectionError("lost"))
        outcome = await one.run()
        return outcome, await asyncio.wait_for(other, 5)

    outcome, other = asyncio.run(go())
    assert isinstance(outcome, Failed)
    assert other.endswith("on")


def test_middleware_when_a_plain_function_is_late_then_told_so() -> None:
    """A transaction must not be committed whose try counts as failed."""
    seen: list[str] = []

    @asynccontextmanager
    async def transaction(ctx: WorkerContext) -> AsyncIterator[None]:
        try:
            yield
            seen.append("commit")
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    async def go() -> Outcome:
        given = Job.from_document({"_id": "j", "_rev": "1-a", "worker": "w", "message": None, "state": "running"})
        may_end = threading.Event()
        config = config_of(worker("w", timeout=0.05, middleware=[transaction])(lambda ctx: may_end.wait(30) and None))
        one = Worker(config).begin(given)
        outcome = await one.run()
        assert one.outliving is not None
        may_end.set()
        await asyncio.wait([one.outliving], timeout=5)
        return outcome

    assert "no end within" in str(asyncio.run(go()))
    assert seen == ["TimeoutError"]


def test_thread_when_interrupted_at_any_moment_then_each_call_is_made_once_and_told() -> None:
    """As libraries for time limits do it: the exception may come when the function has ended."""

    async def go() -> Counter[str]:
        threads, ended = Threads(), Counter[str]()
        for number in range(100):
            ids: list[int] = []
            calls: list[int] = []

            def call(ids: list[int] = ids, calls: list[int] = calls) -> str:
                ids.append(threading.get_ident())
                calls.append(1)
                return "returned"

            value = threads.call(call, lambda error: type(error).__name__)
            await eventually(lambda ids=ids: ids)
            for _ in range(number % 7):
                await asyncio.sleep(0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ids[0]), ctypes.py_object(KeyError))
            ended[await asyncio.wait_for(value, 5)] += 1
            assert calls == [1]
        return ended

    ended = asyncio.run(go())
    assert set(ended) <= {"returned", "KeyError"}
    assert ended.total() == 100


def test_thread_when_none_can_be_started_then_the_call_is_not_made() -> None:
    """Its try counts as failed, and there is another one."""
    made: list[int] = []

    async def go() -> None:
        before = threading.stack_size(2**45)
        try:
            with pytest.raises(RuntimeError):
                Threads().call(lambda: made.append(1), lambda _: None)
        finally:
            threading.stack_size(before)
        await asyncio.sleep(0.1)

    asyncio.run(go())
    assert made == []


def test_alarm_when_its_handler_raises_then_the_process_goes_on() -> None:
    """It may end whatever runs at that moment, the loop of asyncio itself when it waits."""
    code = (
        "import asyncio, signal\n"
        "from couchjobs import process\n"
        "def late(number, frame): raise OSError('out of time')\n"
        "async def main():\n"
        "    signal.signal(signal.SIGALRM, late)\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "    await asyncio.sleep(0.5)\n"
        "    return 'goes on'\n"
        "print(process.run(main(), 'asyncio'))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert ran.stdout.endswith("goes on\n"), ran.stderr


def test_loop_when_it_cannot_run_any_more_then_the_process_ends() -> None:
    """A function has closed what the loop waits by."""
    code = (
        "import asyncio, os\n"
        "from couchjobs import process\n"
        "async def main():\n"
        "    os.closerange(3, 20)\n"
        "    await asyncio.sleep(1)\n"
        "process.run(main(), 'asyncio')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert ran.returncode == 1
    assert "OSError" in ran.stderr


async def test_on_failed_when_it_takes_long_then_the_slot_is_held_meanwhile(
    connection: Connection, db: Prefixer, start: Any
) -> None:
    """Else a thousand failures are a thousand calls at once."""
    at_once: list[int] = []
    release = threading.Event()

    def tell(ctx: WorkerContext, error: Exception) -> None:
        at_once.append(1)
        release.wait(20)

    @worker("fails", max_exec_count=1, concurrency=2, on_failed=tell)
    async def fails(ctx: WorkerContext) -> None:
        raise ValueError

    await start(fails)
    jobs = connection.database(db.database("jobs"))
    for number in range(6):
        await jobs.put({"_id": f"job-{number}", "worker": "fails", "message": None, "state": "queued"})

    async def two_are_told() -> bool:
        return len(at_once) == 2

    async def two_run() -> bool:
        found = await jobs.get_many(f"job-{number}" for number in range(6))
        return [one["state"] for one in found.values()].count("running") == 2

    await eventually(two_are_told)
    await eventually(two_run)
    release.set()
    for number in range(6):
        assert (await wait(db, f"job-{number}", 20)).state is State.ERRORED


async def test_child_when_its_daemon_is_killed_then_gone_though_its_loop_is_blocked(
    connection: Connection, db: Prefixer, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """Nobody closes the socket in time; the programs that it has started go, too."""
    (tmp_path / "blocks.py").write_text(
        "import subprocess, time\n"
        "from couchjobs import worker\n"
        "@worker('blocks')\n"
        "async def blocks(ctx):\n"
        "    subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    time.sleep(600)\n"
    )
    given = settings_for()
    names = ("url", "domain", "prefix", "control_db")
    options = {name: getattr(given, name) for name in names}
    daemon = DaemonProcess(tmp_path, "blocks", "daemon", ("--processes", "1"), **options)
    try:
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "one", "worker": "blocks", "message": None, "state": "queued"})

        async def blocked() -> bool:
            return any(_name_of(program) == "sleep" for program in _programs(tmp_path))

        await eventually(blocked, 20)
        daemon.signal(signal.SIGKILL)
        await eventually(lambda: not _programs(tmp_path), 20)
    finally:
        daemon.end()
        for program in _programs(tmp_path):
            program.kill()


_MOST_DESCRIPTORS = 150
"""Of a daemon, once all have ended: some 30 at rest, and a connection for each of what it asked at once."""
_MOST_MEMORY = 250 * 1024 * 1024
"""Likewise: some 100 MB at rest, whatever functions have held."""


def _name_of(program: psutil.Process) -> str:
    """Its name; none once it has ended."""
    try:
        return str(program.name())
    except psutil.Error:
        return ""


def _programs(folder: Path) -> list[psutil.Process]:
    """Processes whose working folder this is."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("arguments", [(), ("--processes", "2"), ("--loop", "asyncio")])
async def test_daemon_when_functions_do_what_they_should_not_then_innocent_jobs_run_once_and_it_ends_in_time(
    connection: Connection, db: Prefixer, tmp_path: Path, settings_for: Callable[..., Settings], arguments: Any
) -> None:
    """Each guilty job has a counted outcome that names the cause; nothing is left behind."""
    (tmp_path / "guilty.py").write_text(GUILTY)
    given = settings_for()
    names = ("url", "domain", "prefix", "control_db")
    environment = {name: getattr(given, name) for name in names}
    daemons = [
        DaemonProcess(tmp_path, "guilty", f"daemon-{number}", arguments, shutdown_timeout=1, **environment)
        for number in range(2)
    ]
    try:
        rounds = int(os.environ.get("COUCHJOBS_TEST_FUNCTIONS", "1"))
        documents: dict[str, tuple[str, Any]] = {}
        for turn in range(rounds):
            documents |= {f"{what} {turn}": ("guilty", {"what": what}) for what in ACTS}
            documents |= {f"plain {what} {turn}": ("plain guilty", {"what": what}) for what in PLAIN}
            documents |= {f"i-{turn}-{n}": (("innocent", "plain innocent")[n % 2], n) for n in range(len(ACTS))}
        writer = connection.writer(db.database("jobs"))
        order = random.sample([*documents], len(documents))
        await asyncio.gather(
            *(
                writer.write({"_id": one, "worker": documents[one][0], "message": documents[one][1], "state": "queued"})
                for one in order
            )
        )
        for job_id, (_, message) in documents.items():
            ended = await wait(db, job_id, 60 + 10 * rounds)
            assert 1 <= ended.exec_count <= 3
            assert ended.message == message
            if job_id.startswith("i-"):
                assert ended.state is State.DONE, (job_id, ended.error)
                continue
            wanted = (ACTS | {f"plain {what}": text for what, text in PLAIN.items()})[job_id.rpartition(" ")[0]]
            if wanted is None:
                assert ended.state is State.DONE, (job_id, ended.error)
            else:
                assert (ended.state, ended.exec_count) == (State.ERRORED, 2), (job_id, ended.error)
                assert wanted in str(ended.error), (job_id, ended.error)
        assert [daemon.process.poll() for daemon in daemons] == [None, None]
        for daemon in daemons:
            process = psutil.Process(daemon.process.pid)
            assert process.num_fds() < _MOST_DESCRIPTORS
            assert process.memory_info().rss < _MOST_MEMORY
        ran = Counter((tmp_path / "ran.txt").read_text().split())
        again = [job_id for job_id, count in ran.items() if count > 1]
        assert again == []
        began = time.monotonic()
        for daemon in daemons:
            daemon.signal(signal.SIGTERM)
        assert [await asyncio.to_thread(daemon.wait, 20) for daemon in daemons] == [0, 0]
        assert time.monotonic() - began < 12
        if "--processes" in arguments:
            await eventually(lambda: not _programs(tmp_path), 5)
    finally:
        for daemon in daemons:
            daemon.end()
        for program in _programs(tmp_path):
            program.kill()
