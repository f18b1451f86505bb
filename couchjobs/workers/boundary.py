"""What stands between the engine and the functions of users: every call of one goes through here.

| a function may | what comes of it |
|---|---|
| raise anything, SystemExit and KeyboardInterrupt included | it is the error of its own call |
| do so in a task, a callback or a thread of its own | the event loop goes on (see `process`); the log says so |
| cancel itself, or be cancelled by a neighbour | an error of its own call: a cancellation that nobody here asked for |
| change what it was given | its own copy changes |
| swallow its cancellation | it is cancelled once more, then left behind: its slot is held until it ends |
| never return from a thread | left behind likewise |
| return an awaitable | that is awaited |
| raise what a future cannot hold (StopIteration) | an error like any other |
| close the descriptors 0 to 2 | they are opened again, on nothing, when it ends; the log has one of its own |
| stop the event loop | it is entered again |
| set a task factory | it makes the tasks of functions, not those of the engine |
| hold large objects in the frames of its error | they are let go when its outcome is known, but for what still runs |
| close the loop's executor or generators | those of the engine go on (see `process`) |
| take SIGTERM, SIGINT or SIGHUP for itself | the daemon takes them again when it has ended, and twice a second |
| raise in the thread of a function that has ended | the thread goes on (see `threads`) |
| fork | the child process has signals as usual; where it comes back from the function, it ends there |

A call ends in a value or an error, never in an exception. The tasks of the engine are not among `asyncio.all_tasks()`
in a daemon and its children (see `process`).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import signal
import traceback
import types
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from couchjobs.log import redact
from couchjobs.process import IN_FUNCTION, keep_signals, keep_standard_streams, listen_no_more
from couchjobs.workers.threads import Threads

LONGEST_HOOK_S = 30.0
"""Seconds that hooks may take which have no limit of their own: somebody waits for them."""
GRACE_S = 5.0
"""Seconds that a function has to end after it was cancelled, before it is left behind."""
_ONCE_MORE_S = 2.5
"""After which a function that was asked to end is asked again: it may have caught the first cancellation."""
_LONGEST_ERROR = 10_000
"""Characters of an error's text."""
_MOST_CAUSES = 5
"""Errors of a group that are told; of the others their number."""
_MOST_LEAVES = 5000
"""Errors of a group that are looked at: a group may hold itself."""
_CAUSE, _CONTEXT, _TRACEBACK = (BaseException.__dict__[name] for name in ("__cause__", "__context__", "__traceback__"))
"""The attributes of errors as they are, whatever a class puts in their place."""
_MAY_GO_ON = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
_MOST_FRAMES = 40
"""Of a traceback, the innermost."""
_LONGEST_TRACEBACK = 4000
"""Characters, the last ones."""
_OWN_FILES = str(Path(__file__).parent.parent) + os.sep
_FORKED = 70
"""The exit code of a forked process that comes back from a function with an error: EX_SOFTWARE."""


_threads = Threads()
_forks = 0
"""How often this process, or one that it comes from, was forked by Python."""
_pid = os.getpid()
"""Of this process, unless C code has forked it past Python."""


def _after_fork() -> None:
    global _forks, _pid
    _forks, _pid = _forks + 1, os.getpid()
    _threads.forget()


os.register_at_fork(after_in_child=_after_fork)


class Ended(NamedTuple):
    """How a call has ended: with a value, or with an error."""

    value: Any = None
    error: BaseException | None = None


class Call:
    """One call of a function, in a task of its own, which begins at once.

    Args:
        function: a coroutine function without parameters that calls what the user gave.
        name: of the task.
    """

    def __init__(self, function: Callable[[], Awaitable[Any]], name: str) -> None:
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ended | None] = loop.create_future()
        self._again: asyncio.TimerHandle | None = None
        self._deadline = math.inf
        call = self._kept(function)
        call.send(None)  # up to where its task begins: one that is cancelled before that has an end, too
        self.task: asyncio.Task[None] = loop.create_task(call, name=name)

    async def over(self) -> Ended | None:
        """Return how the call has ended, as soon as it has; None where it is left behind."""
        return await self._over

    def cancel(self, grace_s: float = GRACE_S) -> None:
        """Ask the function to end; after so many seconds it is left behind. Later calls may only shorten that."""
        deadline = asyncio.get_running_loop().time() + grace_s
        if deadline < self._deadline:  # it was asked before otherwise, and may be about to end in good order
            self._deadline = deadline
            self._ask_to_end()

    def _ask_to_end(self) -> None:
        loop = asyncio.get_running_loop()
        self.task.cancel()
        if self._again is not None:
            self._again.cancel()
        if not self._over.done():
            self._again = loop.call_at(min(self._deadline, loop.time() + _ONCE_MORE_S), self._look)

    def _look(self) -> None:
        if self._over.done():
            return
        if asyncio.get_running_loop().time() >= self._deadline:
            self._over.set_result(None)
        else:
            self._ask_to_end()

    async def _kept(self, function: Callable[[], Awaitable[Any]]) -> None:
        forks = _forks
        ended = Ended()
        try:
            await _beginning()
            IN_FUNCTION.set(True)
            ended = Ended(await function())
        except BaseException as error:  # noqa: BLE001  whatever it is, it is how the call has ended
            if type(error) is RuntimeError and isinstance(error.__cause__, StopIteration):
                ended = Ended(error=error.__cause__)  # which a coroutine cannot raise
            else:
                ended = Ended(error=error)
        _end_if_forked(forks, ended.error)
        keep_standard_streams()
        keep_signals()
        if self._again is not None:
            self._again.cancel()
        if not self._over.done() and not self._over.get_loop().is_closed():
            self._over.set_result(ended)
        del self, ended  # an error holds this frame


@types.coroutine
def _beginning() -> Generator[None, None, None]:
    """Give up control once."""
    yield


def in_thread(function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Ended]:
    """Call a plain function in a thread, with the context variables of here; the future holds how that has ended.

    Raises:
        RuntimeError: no thread can be started; the function is not called.
    """
    return _threads.call(partial(_kept_in_thread, _forks, function, *arguments), lambda error: Ended(error=error))


def _kept_in_thread(forks: int, function: Callable[..., Any], *arguments: Any) -> Ended:
    error: BaseException | None = None
    try:
        return Ended(function(*arguments))
    except BaseException as raised:  # noqa: BLE001  a future cannot hold all of them
        error = raised
        return Ended(error=error)
    finally:
        _end_if_forked(forks, error)
        keep_standard_streams()
        error = None


async def result_of(thread: asyncio.Future[Ended]) -> Any:
    """Return what a function in a thread returns; nobody can cancel it: who waits here waits for its end."""
    while not thread.done():
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            if thread.cancelled():  # it had not begun
                raise
    value, error = thread.result()
    if error is not None:
        raise error
    return await value if inspect.isawaitable(value) else value


async def call_hook(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a hook and return what it returns: a coroutine function here, a plain one in a thread."""
    if is_coroutine(function):
        return await function(*arguments)
    return await result_of(in_thread(function, *arguments))


class LeftBehindError(TimeoutError):
    """A hook does not end in time, and is left behind.

    Args:
        text: which, and how long it had.
        hook: done once it has ended.
    """

    def __init__(self, text: str, hook: asyncio.Future[Any]) -> None:
        super().__init__(text)
        self.hook = hook


async def call_in_time(
    seconds: float | None, function: Callable[..., Any], *arguments: Any, cut: asyncio.Future[None] | None = None
) -> Any:
    """Call a hook within so many seconds, and return what it returns. `cut`: once that is done, it has no more time.

    Raises:
        LeftBehindError: it does not end in time.
        BaseException: whatever it raises.
    """
    call = Call(partial(call_hook, function, *arguments), f"hook {name_of(function)}")
    loop = asyncio.get_running_loop()
    timer = None if seconds is None else loop.call_later(seconds, call.cancel, 0.0 if not is_coroutine(function) else 1)
    began = loop.time()

    def cut_off(_: object) -> None:
        call.cancel(0.0)

    if cut is not None:
        cut.add_done_callback(cut_off)
    try:
        ended = await call.over()
    except asyncio.CancelledError:
        call.cancel(0.0)
        raise
    finally:
        if timer is not None:
            timer.cancel()
        if cut is not None:
            cut.remove_done_callback(cut_off)
    is_cut = cut is not None and cut.done()
    late = is_cut or (seconds is not None and loop.time() - began >= seconds)
    if ended is None or (late and isinstance(ended.error, asyncio.CancelledError)):
        why = "the daemon stops" if is_cut else f"no end within {seconds:g} s"
        raise LeftBehindError(f"{name_of(function)}: {why}", call.task)
    if ended.error is not None:
        raise ended.error
    return ended.value


def is_coroutine(function: Callable[..., Any]) -> bool:
    """Return whether a call of the function gives a coroutine: also behind partials, and of an object's `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def why_not_called(function: Callable[..., Any]) -> str:
    """Return why a function cannot be a worker's; empty where it can."""
    while isinstance(function, partial):
        function = function.func
    inner = inspect.unwrap(function)
    for one in (function, inner, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one):
            return "it is a generator: it would return before it has begun; return a value instead of yielding"
    return ""


def name_of(function: Callable[..., Any]) -> str:
    """Return what people call the function."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def describe(error: BaseException) -> str:
    """Return the error in one line: its class and what it says, its parts if it is a group, without credentials.

    Nothing that its class does can keep it from being told.
    """
    kind: str = type.__dict__["__name__"].__get__(type(error))
    try:
        text = str.__getitem__(str(error), slice(_LONGEST_ERROR))
    except BaseException:  # noqa: BLE001  an error that cannot even be told is an outcome all the same
        return kind
    text = redact(text.encode("utf-8", "replace").decode())
    text = f"{kind}: {text}" if text else kind
    if is_group(error):
        parts = [one for one in leaves_of(error) if not issubclass(type(one), asyncio.CancelledError)]
        more = f"; and {len(parts) - _MOST_CAUSES} more" if len(parts) > _MOST_CAUSES else ""
        text = f"{text}: {'; '.join(describe(one) for one in parts[:_MOST_CAUSES])}{more}"
    return text[:_LONGEST_ERROR]


def traceback_of(error: BaseException) -> str:
    """Return the traceback, without the frames of couchjobs and without credentials, at most 4 kB: its end.

    Empty where it cannot be told.
    """
    try:
        told = traceback.TracebackException(
            type(error), error, _TRACEBACK.__get__(error), limit=-_MOST_FRAMES, compact=True, max_group_depth=3
        )
        _strip(told)
        text = redact("".join(told.format()).encode("utf-8", "replace").decode().rstrip())
    except BaseException:  # noqa: BLE001  an error may forbid to be told
        return ""
    if len(text) <= _LONGEST_TRACEBACK:
        return text
    return "..." + text[-_LONGEST_TRACEBACK:]


def _strip(told: traceback.TracebackException) -> None:
    """Leave out the frames of couchjobs itself, of the error and of those that it came from."""
    left: list[traceback.TracebackException | None] = [told]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        frames = [frame for frame in one.stack if not frame.filename.startswith(_OWN_FILES)]
        one.stack = traceback.StackSummary.from_list(frames)
        left += [one.__cause__, one.__context__, *(one.exceptions or ())]


def is_group(error: BaseException) -> bool:
    """Return whether an error is a group of errors, whatever it says of itself."""
    return issubclass(type(error), BaseExceptionGroup)


def parts_of(error: BaseException) -> tuple[BaseException, ...]:
    """Return the errors of a group, whatever its class makes of its attributes."""
    parts: tuple[BaseException, ...] = BaseExceptionGroup.exceptions.__get__(error)
    return parts


def leaves_of(error: BaseException) -> list[BaseException]:
    """Return the errors of a group, at whatever depth; one that is no group, itself. At most some thousand."""
    found: list[BaseException] = []
    left = [error]
    while left and len(found) < _MOST_LEAVES:
        one = left.pop()
        if is_group(one):
            left += reversed(parts_of(one))
        else:
            found.append(one)
    return found


def let_go(error: BaseException | None) -> None:
    """Drop what the frames of an error hold, and of those that it came from: an error and its frames are a cycle."""
    seen: set[int] = set()
    left = [error]
    while left and len(seen) < _MOST_LEAVES:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += [_CAUSE.__get__(one), _CONTEXT.__get__(one)]
        if is_group(one):
            left += parts_of(one)
        try:
            _clear_frames(_TRACEBACK.__get__(one))
            _TRACEBACK.__set__(one, None)
        except BaseException:  # noqa: BLE001, S112  a frame may forbid that
            continue


def _clear_frames(trace: types.TracebackType | None) -> None:
    """Clear the frames of what has returned. A coroutine or generator may go on: of another job, of a shared client."""
    while trace is not None:
        if not trace.tb_frame.f_code.co_flags & _MAY_GO_ON:
            with suppress(RuntimeError):  # it still runs
                trace.tb_frame.clear()
        trace = trace.tb_next


def _end_if_forked(forks: int, error: BaseException | None) -> None:
    """End a process that was forked in a function and comes back from it: it must not go on as a second daemon."""
    if _forks == forks and os.getpid() == _pid:
        return
    code = error.code if isinstance(error, SystemExit) else None if error is None else _FORKED
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def take_signals() -> None:
    """Give a forked process the signals that a process begins with; the loop's wake-up descriptor is its parent's."""
    listen_no_more()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.set_wakeup_fd(-1)
