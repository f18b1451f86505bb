"""Deadlines that are nearly always called off: of tries, of pushes. A timer of the event loop costs more than a try.

Those that are far away share the timers of the event loop, one for each quarter of a second, or second, and may come so
much late. Near ones have one of their own. Timers of which nothing is left are called off once there are many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

_NEAR_S = 2.0
"""Seconds: a deadline within them is met to the millisecond."""
_SLICE_S = 0.25
"""Seconds of deadlines that share a timer: so late may one be found."""
_FAR_S = 120.0
"""Seconds: the same of deadlines beyond them is a second."""
_FAR_SLICE_S = 1.0
"""Seconds whose far deadlines share one timer: so late they may be."""
LATEST_S = _FAR_SLICE_S
"""Seconds that a deadline is found late at most, however far away it was."""
_MANY = 1000
"""Timers, from which on those are looked for of which nothing is left: 0.3 MB."""


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
        self._timers: dict[tuple[float, int], asyncio.TimerHandle] = {}
        self._many = _MANY
        self._context = Context()
        """That of shared timers: they are nobody's."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Deadline:
        """Call back at that time of the event loop; where that is far away, later by `LATEST_S` at most."""
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
        length = _SLICE_S if away < _FAR_S else _FAR_SLICE_S
        place = length, int(when // length) + 1
        calls = self._slices.get(place)
        if calls is None:
            if len(self._slices) >= self._many:
                self._call_off_empty()
            calls = self._slices[place] = {}
            self._timers[place] = loop.call_at(place[1] * length, self._call, place, context=self._context)
        far = _Far(calls)
        calls[far] = callback, args
        return far

    def _call_off_empty(self) -> None:
        for place in [place for place, calls in self._slices.items() if not calls]:
            del self._slices[place]
            self._timers.pop(place).cancel()
        self._many = max(_MANY, 2 * len(self._slices))

    def _call(self, place: tuple[float, int]) -> None:
        calls = self._slices.pop(place)
        del self._timers[place]
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
