"""How a process of couchjobs runs and ends: its event loop, its garbage collector, its last steps.

The loop: asyncio lets SystemExit and KeyboardInterrupt of any task or callback out of `run_forever`, and whatever a
signal handler raises; a function of a user may call `sys.exit` in one, set an alarm, or stop the loop. That is that
function's affair: the loop is entered again.

The collector: Python's looks at all young objects each 700 that are made, and at all old ones now and then. Jobs that
wait for a slot or an answer live longer than that and are never part of a cycle: with the thresholds here the collector
takes next to nothing of the processor, where it took a third of what a job costs. What was imported is never looked at.
Where memory grows all the same, with garbage that functions have left in cycles, all of it is looked at.

The end: threads and tasks of functions hold up neither the end of the loop nor that of the interpreter.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed leaves it out
import asyncio
import atexit
import fcntl
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any, NoReturn, TypeVar

import psutil
import uvloop

from couchjobs.log import get_logger, let_out

T = TypeVar("T")

IN_FUNCTION: ContextVar[bool] = ContextVar("couchjobs_in_function", default=False)
"""Whether a function of a user runs here."""

_logger = get_logger(__name__)
_THRESHOLDS = (50_000, 20, 100)
"""Of the garbage collector, which is to look rarely: a daemon makes many objects, and few of them are in cycles."""
_LAST_STEPS_S = 2.0
"""Seconds for what was registered with `atexit`, and for what is still to be written to the log."""
_LAST_TASKS_S = 1.0
"""For tasks that are cancelled as the loop ends."""
_listened_to: dict[int, Callable[[int, FrameType | None], None]] = {}
_ENGINES_THREADS = 8
"""For the engine's own blocking calls, such as files and names of hosts; users' functions have others."""
_AT_ONCE_S = 0.1
"""Between two that count as one after the other."""
_MOST_RAISED = 20
"""Times in a row, each at once, that something ends the loop; then it cannot run any more."""
_LOOK_S = 0.5
"""Between two looks at how much the process has grown, and at whose the signals are."""
_GROWTH = 100 * 1024 * 1024
"""Bytes by which the process may grow before garbage is looked for."""
_MOST_GROWTH = 8 * _GROWTH
"""The same, where looking has found none: it takes 0.3 s where a thousand jobs of 100 kB are held."""


class _Apart:
    """In a loop: what functions make of it is theirs alone: a task factory, threads, what they shut down."""

    users: Any = None
    threads: ThreadPoolExecutor | None = None
    """Of the engine: for names of hosts, files, and what libraries do in threads."""

    def set_task_factory(self, factory: Any) -> None:
        """Have tasks that functions begin be made so."""
        self.users = factory

    def get_task_factory(self) -> Any:
        """Return what makes them."""
        return self.users

    def make_others_by(self, factory: Any) -> None:
        """Have all others be made so."""
        super().set_task_factory(factory)  # type: ignore[misc]

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> Any:
        """Call a function in a thread: of the loop's executor, which functions may fill, or of the engine's own."""
        if executor is None and not IN_FUNCTION.get():
            if self.threads is None:
                self.threads = ThreadPoolExecutor(_ENGINES_THREADS, thread_name_prefix="couchjobs engine")
            executor = self.threads
        return super().run_in_executor(executor, function, *arguments)  # type: ignore[misc]

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Do nothing in a function: others of them use it, too."""
        if not IN_FUNCTION.get():
            await super().shutdown_default_executor(*(() if timeout is None else (timeout,)))  # type: ignore[misc]

    async def shutdown_asyncgens(self) -> None:
        """Do nothing in a function: feeds are read by such generators."""
        if not IN_FUNCTION.get():
            await super().shutdown_asyncgens()  # type: ignore[misc]


LOOPS: dict[str, type[Any]] = {
    "uvloop": type("UvLoop", (_Apart, uvloop.Loop), {}),
    "asyncio": type("PlainLoop", (_Apart, asyncio.SelectorEventLoop), {}),
}


def keep_signals() -> None:
    """Take again what this process listens to, where a function has taken it for itself."""
    for number, handler in _listened_to.items():
        # each try asks: `signal.getsignal` looks for an enum first, and takes thirty times as long
        taken = _signal.getsignal(number) is not handler
        if taken and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
            _logger.error("a function has taken a signal that ends this process: it is taken back", signal=number)


def listen_to(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    """Have a signal call this, whatever functions do."""
    signal.signal(number, handler)
    _listened_to[number] = handler


def listen_no_more() -> None:
    """Leave signals as they are: in a process that was forked."""
    _listened_to.clear()


def keep_standard_streams() -> None:
    """Open what is closed of the descriptors 0 to 2, on nothing: else they become sockets, which functions close."""
    for number in range(3):
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)  # each try asks: it takes a third of what fstat does
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def run(main: Coroutine[Any, Any, T], loop: str = "uvloop") -> T:
    """Run the coroutine in a new event loop, as `asyncio.run` does, and return what it returns."""
    keep_standard_streams()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    event_loop = LOOPS[loop]()
    asyncio.set_event_loop(event_loop)
    try:
        event_loop.make_others_by(_make_task)
        event_loop.set_exception_handler(_tell)
        task = event_loop.create_task(main, name="main")
        looking = event_loop.create_task(_look_at_memory(), name="memory")
        raised, raised_at = 0, 0.0
        while not task.done():
            try:
                event_loop.run_until_complete(task)
            except BaseException as error:
                raised = raised + 1 if time.monotonic() - raised_at < _AT_ONCE_S else 1
                raised_at = time.monotonic()
                if task.done() or event_loop.is_closed() or raised > _MOST_RAISED:
                    raise
                _logger.error("something that a function began has tried to end this process", error=repr(error))  # noqa: TRY400
        looking.cancel()
        result: T = task.result()
        return result
    finally:
        _close(event_loop)


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **given: Any) -> asyncio.Task[Any]:
    """Make a task; one of the engine is not among `asyncio.all_tasks()`, which functions cancel now and then."""
    context = given.get("context")
    is_functions = IN_FUNCTION.get() if context is None else context.get(IN_FUNCTION, False)
    users = getattr(loop, "users", None)
    if is_functions and users is not None:
        made: asyncio.Task[Any] = users(loop, coroutine, **{name: one for name, one in given.items() if one})
        return made
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **given)
    if not is_functions:
        asyncio._unregister_task(task)  # noqa: SLF001  documented, "Extending", for whoever makes tasks
    return task


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a task or callback has raised that nobody waits for; a handler of the user's may raise anything."""
    with suppress(BaseException):
        loop.default_exception_handler(context)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left, give it a moment, and close the loop; threads of its executor are not waited for."""
    for _ in range(2):
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        for task in left:
            task.cancel()
        with suppress(SystemExit, KeyboardInterrupt):
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=_LAST_TASKS_S))
    with suppress(SystemExit, KeyboardInterrupt, TimeoutError):
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), _LAST_TASKS_S))
    asyncio.set_event_loop(None)
    loop.close()


async def _look_at_memory() -> None:
    """Collect garbage where this process has grown much: functions may leave a lot of it in few objects."""
    process = psutil.Process()
    known, growth = process.memory_info().rss, _GROWTH
    while True:
        await asyncio.sleep(_LOOK_S)
        keep_signals()
        with suppress(psutil.Error, OSError):  # a function has all descriptors, say
            present = process.memory_info().rss
            if present > known + growth:
                gc.collect()
                left = process.memory_info().rss
                is_garbage = present - left > (present - known) / 4
                growth = (
                    _GROWTH if is_garbage else min(2 * growth, _MOST_GROWTH)
                )  # what is in use is not looked at again
                known = present = left
            known = min(known, present)


def leave(code: int) -> NoReturn:
    """End the process, whatever its threads and tasks still do: what `atexit` knows is called, for a moment at most."""
    last = threading.Thread(target=_last_steps, daemon=True)
    last.start()
    last.join(_LAST_STEPS_S)
    os._exit(code)


def _last_steps() -> None:
    let_out()
    with suppress(BaseException):
        atexit._run_exitfuncs()  # noqa: SLF001  the interpreter's own way, without waiting for threads first
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()
