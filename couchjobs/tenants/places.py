"""The places of those that begin at once: few, but one that takes long holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Places:
    """So many places; one whose holder takes long is free for others before he leaves.

    Args:
        count: of those who have just begun.
        slow: of those who take longer than `slow_after_s` seconds; while there are so many, they keep their places.
        slow_after_s: seconds.
        freed: called when one is free again.
    """

    def __init__(self, count: int, slow: int, slow_after_s: float, freed: Callable[[], None]) -> None:
        self._count = count
        self._most_slow = slow
        self._slow_after_s = slow_after_s
        self._freed = freed
        self._quick: set[object] = set()
        self._slow: set[object] = set()

    @property
    def free(self) -> int:
        """Return how many are free."""
        return max(0, self._count - len(self._quick))

    @property
    def many_are_slow(self) -> bool:
        """Return whether half of the slow places are taken: whoever is known to be slow waits for others then."""
        return 2 * len(self._slow) >= self._most_slow

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have one, whether any is free or not."""
        holder = object()
        self._quick.add(holder)
        timer = asyncio.get_running_loop().call_later(self._slow_after_s, self._give_up, holder)
        try:
            yield
        finally:
            timer.cancel()
            self._quick.discard(holder)
            self._slow.discard(holder)
            self._freed()

    def _give_up(self, holder: object) -> None:
        if holder in self._quick and len(self._slow) < self._most_slow:
            self._quick.discard(holder)
            self._slow.add(holder)
            self._freed()
        elif holder in self._quick:
            asyncio.get_running_loop().call_later(self._slow_after_s, self._give_up, holder)
