"""Deadlines that are nearly always called off: of tries, of pushes. A timer of the event loop costs more than a try.

Those that are far away share the timers of the event loop, one for each quarter of a second, and may come so much late;
those that are more than a minute away share longer spans, of a 256th to a 128th of how far away they are, so that there
are never many timers. Near ones have one of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from math import frexp
from typing import Any, Protocol

_NEAR_S = 2.0
"""Seconds: a deadline within them is met to the millisecond."""
_SHORTEST_S = 0.25
_SLICES = 256


class Deadline(Protocol):
    """What was asked for."""

    def cancel(self) -> None:
        """Call it off; after it was called, nothing happens."""


Calls = dict["_Far", tuple[Callable[..., object], tuple[Any, ...]]]


class _Far:
    __slots__ = ("_calls",)

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def cancel(self) -> None:
        self._calls.pop(self, None)


class Deadlines:
    """Those of whatever has many at a time, in the event loop that runs."""

    def __init__(self) -> None:
        self._slices: dict[tuple[float, int], Calls] = {}
        """By their length, and how manieth they are."""
        self._context = Context()
        """That of shared timers: they are nobody's."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Deadline:
        """Call back at that time of the event loop; where that is far away, later by a quarter of a second at most.

        Beyond a minute, by a 128th of how far away it is.
        """
        loop = asyncio.get_running_loop()
        away = when - loop.time()
        return loop.call_at(when, callback, *args) if away < _NEAR_S else self._far(loop, when, away, callback, args)

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Deadline:
        """Call back in so many seconds, as `call_at` does."""
        loop = asyncio.get_running_loop()
        if seconds < _NEAR_S:
            return loop.call_later(seconds, callback, *args)
        return self._far(loop, loop.time() + seconds, seconds, callback, args)

    def _far(
        self,
        loop: asyncio.AbstractEventLoop,
        when: float,
        away: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> Deadline:
        length = max(_SHORTEST_S, 2.0 ** frexp(away / _SLICES)[1])
        place = length, int(when // length) + 1
        calls = self._slices.get(place)
        if calls is None:
            calls = self._slices[place] = {}
            loop.call_at(place[1] * length, self._call, place, context=self._context)
        far = _Far(calls)
        calls[far] = callback, args
        return far

    def _call(self, place: tuple[float, int]) -> None:
        calls = self._slices.pop(place)
        for far in [*calls]:
            if far not in calls:  # called off by one before it
                continue
            callback, args = calls.pop(far)
            try:
                callback(*args)
            except Exception as error:  # noqa: BLE001  as the event loop has it: the others are called all the same
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"a deadline's {callback!r} fails", "exception": error}
                )
