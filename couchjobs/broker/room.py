"""How many jobs of all worker types, in all lanes, one daemon still has room for."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Room:
    """A count that the lanes of a daemon share. `most`: None for no limit."""

    def __init__(self, most: int | None = None) -> None:
        self.left = sys.maxsize if most is None else most
        self.listeners: list[Callable[[], None]] = []
        """Called when there is room again."""

    def take(self) -> None:
        """Take note of a job that begins."""
        self.left -= 1

    def give_back(self) -> None:
        """Take note of a job that has ended."""
        self.left += 1
        if self.left == 1:
            for listener in self.listeners:
                listener()
