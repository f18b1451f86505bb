"""The threads in which plain functions of users run: each call has one at once, and waits behind nobody's.

A pool with a queue would have a call wait for threads that others hold, begin one that was given up, or lose one with
its thread. Here a call goes to a thread that is idle, or to a new one; where none can be started it surely does not
begin. How many calls there are is the business of slots, and of whoever calls hooks. A thread outlives whatever is
raised in it from outside, and none of them holds up the end of the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
NAME = "couchjobs worker"
"""What the names of the threads begin with."""
_MOST_IDLE = 1000
"""Threads that are kept for the next call; others end."""


class _Call(Generic[T]):
    """One call, and where its value goes. The function raises nothing: see `boundary`."""

    def __init__(self, function: Callable[[], T], lost: Callable[[BaseException], T]) -> None:
        self._context = contextvars.copy_context()
        self._function = function
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._begun = False
        self.value: asyncio.Future[T] = self._loop.create_future()

    def run(self) -> None:
        """Call it, once, and say what it returns."""
        if not self._begun:
            self._begun = True
            self._tell(self._context.run(self._function))

    def interrupted(self, error: BaseException) -> None:
        """Take note that this was raised in its thread from outside: what was called has no value any more."""
        if self._begun:
            self._tell(self._lost(error))

    def _tell(self, value: T) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._set, value)

    def _set(self, value: T) -> None:
        if not self.value.done():
            self.value.set_result(value)


class _Thread(threading.Thread):
    """One thread. Wherever something is raised in it from outside, its next step goes on from what it holds then."""

    def __init__(self, name: str, note_idle: Callable[[_Thread], bool]) -> None:
        super().__init__(name=name, daemon=True)
        self._note_idle = note_idle
        self._is_idle = False
        self._woken: SimpleQueue[None] = SimpleQueue()
        self._call: _Call[Any] | None = None

    def take(self, call: _Call[Any]) -> None:
        """Run this call next."""
        self._call = call
        self._woken.put(None)

    def run(self) -> None:
        """Run calls until there are enough idle threads without this one."""
        while True:
            try:
                if not self._step():
                    return
            except BaseException as error:  # noqa: BLE001  by PyThreadState_SetAsyncExc
                with suppress(BaseException):
                    if self._call is not None:
                        self._call.interrupted(error)

    def _step(self) -> bool:
        """Run the call that there is, or wait for one; return False where there will be none."""
        if self._call is not None:
            self._call.run()
            self._is_idle = False
            self._call = None
            return True
        if not self._is_idle:
            self._is_idle = True  # before it is so: it must not be among the idle ones twice
            if not self._note_idle(self):
                return False
        self._woken.get()
        return True


class Threads:
    """Those of this process."""

    def __init__(self) -> None:
        self._idle: list[_Thread] = []
        self._numbers = itertools.count()

    def call(self, function: Callable[[], T], lost: Callable[[BaseException], T]) -> asyncio.Future[T]:
        """Call a function, which raises nothing, in a thread, with the context variables of here.

        `lost`: makes the value of the future where the thread is interrupted before the function's can be told.

        Raises:
            RuntimeError: no thread can be started; the function is not called.
        """
        call = _Call(function, lost)
        while self._idle:
            thread = self._idle.pop()
            if thread.is_alive():
                thread.take(call)
                return call.value
        thread = _Thread(f"{NAME} {next(self._numbers)}", self._note_idle)
        thread.take(call)
        thread.start()
        return call.value

    def _note_idle(self, thread: _Thread) -> bool:
        """Keep a thread for the next call; return False where there are enough."""
        if len(self._idle) >= _MOST_IDLE:
            return False
        self._idle.append(thread)
        return True

    def forget(self) -> None:
        """Know of none any more: in a process that was forked there are none."""
        self._idle = []
