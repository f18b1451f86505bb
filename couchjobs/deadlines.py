"""Deadlines that are nearly always called off: of tries, of pushes. A timer of the event loop costs more than a try.

Those that are far away share the timers of the event loop, one for each quarter of a second, and may come so much late;
near ones have one of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

_NEAR_S = 2.0
"""Seconds: a deadline within them is met to the millisecond."""
_SLICES_PER_S = 4


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
        self._slices: dict[int, Calls] = {}
        self._context = Context()
        """That of shared timers: they are nobody's."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Deadline:
        """Call back at that time of the event loop, or up to a quarter of a second later where it is far away."""
        loop = asyncio.get_running_loop()
        if when - loop.time() < _NEAR_S:
            return loop.call_at(when, callback, *args)
        number = int(when * _SLICES_PER_S) + 1
        calls = self._slices.get(number)
        if calls is None:
            calls = self._slices[number] = {}
            loop.call_at(number / _SLICES_PER_S, self._call, number, context=self._context)
        far = _Far(calls)
        calls[far] = callback, args
        return far

    def _call(self, number: int) -> None:
        calls = self._slices.pop(number)
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
