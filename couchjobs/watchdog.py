"""A thread that looks whether the event loop still turns, and says what blocks it.

A daemon whose loop is blocked neither beats nor claims, so that the others take it for dead in time; this is for its
people, who want to know which worker function does that.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from typing import Self

from couchjobs.log import get_logger

_logger = get_logger(__name__)
_LOOK_S = 0.5
"""Between two looks at whether the event loop turns."""
_MOST_KEPT = 100
"""Tasks that have blocked and were not asked for, the newest."""
_blocked: dict[str, float] = {}


def blocked_for(task: str) -> float:
    """Return for how many seconds a task of that name was found to block the event loop since the last call, or 0."""
    return _blocked.pop(task, 0.0)


class Watchdog:
    """Watches the running loop while the context is open.

    Args:
        blocked_s: seconds after which a loop that does not turn is reported, once.
    """

    def __init__(self, blocked_s: float = 5.0) -> None:
        self._blocked_s = blocked_s
        self._turned = time.monotonic()
        self._done = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="couchjobs watchdog", daemon=True)
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.create_task(self._turn(), name="watchdog")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._task is not None:
            self._task.cancel()

    async def _turn(self) -> None:
        while True:
            self._turned = time.monotonic()
            await asyncio.sleep(_LOOK_S)

    def _watch(self) -> None:
        told_of = looked = time.monotonic()
        while not self._done.wait(_LOOK_S):
            present, turned = time.monotonic(), self._turned
            was_stopped = present - looked > self._blocked_s  # the whole process, not the loop
            looked = present
            if was_stopped or present - turned <= self._blocked_s:
                continue
            self._note(present - turned)
            if turned != told_of:
                told_of = turned
                self._tell(present - turned)

    def _note(self, seconds: float) -> None:
        """Take note of who blocks the loop, and for how long by now."""
        task = asyncio.current_task(self._loop)
        if task is not None:
            _blocked[task.get_name()] = seconds
            if len(_blocked) > _MOST_KEPT:
                del _blocked[next(iter(_blocked))]

    def _tell(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  the documented way to another thread's stack
        task = asyncio.current_task(self._loop)
        _logger.error(
            "the event loop is blocked: no beats, no claims; use a plain function, or await",
            seconds=round(seconds, 1),
            task=task.get_name() if task else None,
            stack="".join(traceback.format_stack(frame)[-8:]) if frame else "",
        )
