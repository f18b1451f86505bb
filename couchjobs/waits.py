"""Waiting: for a signal or a time, after a failure, for a server that does not answer.

A loop that has something to do does it, computes from the present at which it did it when there is something to do
again, and waits for that time or a signal. What happens between the two sets the signal, and ends the wait at once: so
nothing is slept through.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from couchjobs.errors import Unavailable

T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
"""After the first failure."""
LONGEST_PAUSE_S = 10.0
"""After many, where somebody has refused something."""
LONGEST_OUTAGE_PAUSE_S = 2.0
"""Seconds after which CouchDB is asked again that did not answer: so much later may work go on after an outage."""
_SLICE_S = 0.02
"""Seconds that a long computation may hold the loop before others have their turn."""


class Signal:
    """Says to one loop that something has changed, however often that was since it last looked."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the loop, or keep it from sleeping the next time."""
        self._event.set()

    async def within(self, seconds: float | None) -> bool:
        """Wait until the signal is set, for so many seconds at most, None being for ever; return whether it was.

        It is no longer set afterwards: what happens from now on sets it again.
        """
        try:
            if not self._event.is_set() and seconds != 0:
                async with asyncio.timeout(seconds):
                    await self._event.wait()
            else:
                await asyncio.sleep(0)
            return self._event.is_set()
        except TimeoutError:
            return False
        finally:
            self._event.clear()


class ChangedIds(asyncio.Event):
    """Set whenever documents change; knows which."""

    def __init__(self) -> None:
        super().__init__()
        self._ids: set[str] = set()

    def note(self, ids: Iterable[str]) -> None:
        """Take note that these have changed."""
        self._ids.update(ids)
        self.set()

    def take(self) -> set[str]:
        """Return which have changed since the last call."""
        self.clear()
        ids, self._ids = self._ids, set()
        return ids


class Turns:
    """Gives the others of the loop their turn, whenever computing has taken a while: jobs wait, and beats."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        """Return whether this has computed for 20 ms without a pause."""
        return time.monotonic() - self._began > _SLICE_S

    async def turn(self) -> None:
        """Let others go on, where it is their turn."""
        if self.over:
            await asyncio.sleep(0)
            self._began = time.monotonic()


def backoff(failures: int, first: float = _FIRST_PAUSE_S, longest: float = LONGEST_PAUSE_S) -> float:
    """Return how many seconds to wait after so many failures in a row: doubled each time, with jitter of a half."""
    return min(longest, first * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)  # noqa: S311  not a secret


async def patiently(step: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Return what a step returns that may be done again, and is where CouchDB does not answer, for so many seconds.

    Raises:
        Unavailable: it did not answer, the last time either.
    """
    loop = asyncio.get_running_loop()
    deadline, failures = loop.time() + seconds, 0
    while True:
        try:
            return await step()
        except Unavailable:
            failures += 1
            if loop.time() > deadline:
                raise
            await asyncio.sleep(backoff(failures, longest=LONGEST_OUTAGE_PAUSE_S))
