"""Turns for plain hooks that no slot bounds: so many threads at once, those included that were left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from couchjobs.workers.boundary import LeftBehindError, is_coroutine

T = TypeVar("T")

MOST_AT_ONCE = 32
"""Calls of one hook: a push of thousands of jobs has no thread for each."""


async def in_turn(seconds: float, hook: Callable[..., Any], call: Callable[[], Awaitable[T]]) -> T:
    """Return what a call of the hook returns that ends in time (see `call_in_time`), made once there is a turn for it.

    Raises:
        TimeoutError: there is no turn, for none of the calls that run has ended within so many seconds.
        BaseException: whatever the call raises.
    """
    if is_coroutine(hook):
        return await call()
    key = (id(asyncio.get_running_loop()), id(hook))
    turns = _turns.setdefault(key, _Turns(hook))
    turns.wanted += 1
    try:
        await turns.take(seconds)
        thread: asyncio.Future[Any] | None = None
        try:
            return await call()
        except LeftBehindError as error:
            thread = error.hook
            raise
        finally:
            if thread is None:
                turns.give_back()
            else:
                thread.add_done_callback(lambda _: _end_of(key, turns))
    finally:
        turns.wanted -= 1
        _forget(key, turns)


def _end_of(key: tuple[int, int], turns: _Turns) -> None:
    turns.give_back()
    _forget(key, turns)


def _forget(key: tuple[int, int], turns: _Turns) -> None:
    """Forget the turns of a hook that nobody calls any more."""
    if not turns.wanted and turns.free == MOST_AT_ONCE:
        _turns.pop(key, None)


class _Turns:
    """The calls of one plain hook, which is kept, so that no other one has its id."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.wanted = 0
        """How many are wanted now, or run, but for those that were left behind."""
        self.free = MOST_AT_ONCE
        self._hook = hook
        self._ended = 0
        self._news = asyncio.Event()

    async def take(self, patience_s: float) -> None:
        """Wait for a turn, as long as others come to theirs.

        Raises:
            TimeoutError: none of those that run has ended for a while.
        """
        while self.free <= 0:
            self._news.clear()
            ended = self._ended
            try:
                await asyncio.wait_for(self._news.wait(), patience_s)
            except TimeoutError:
                if self._ended == ended:
                    raise TimeoutError(f"{MOST_AT_ONCE} calls of it do not end") from None
        self.free -= 1

    def give_back(self) -> None:
        """Take note that a call has ended."""
        self.free += 1
        self._ended += 1
        self._news.set()


_turns: dict[tuple[int, int], _Turns] = {}
"""By event loop and hook, while there are calls."""
