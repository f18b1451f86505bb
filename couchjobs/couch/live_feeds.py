"""How many feeds of a process wait at the server at once, where it follows many databases.

A feed that waits keeps the shards of its database open, and CouchDB opens so many at once (`[couchdb] max_dbs_open`,
500 by default): beyond, every other request fails with 500 "No DB shards could be opened" (measured: 1,000 long polls).
So the feeds of all processes stay under a fifth of that. The others are read when their database is said to have
changed. Where it is said which databases come first, no other one has a place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from couchjobs.errors import CouchError, Unavailable
from couchjobs.log import get_logger
from couchjobs.waits import Signal

_logger = get_logger(__name__)
_SHARE = 5
"""Which part of the shards that the server opens may be kept open from here: 1 in so many."""
_LEAST = 2
"""Shards that are had in any case."""
_FEWER_FOR_S = 5.0
"""Seconds in which further errors are those of the same moment: many feeds fail in it."""
_MORE_AFTER_S = 60.0
"""Seconds without an error after which a few more are tried."""
_LONGEST_S = 60.0
"""Seconds after which a feed is read though nothing was said of its database: what says so is a hint."""
_LONGEST_UNTOLD_S = 5.0
"""The same where the server does not say which databases change."""
_NO_SHARDS = "No DB shards could be opened"


class LiveFeeds:
    """Those of one process.

    Args:
        most: how many feeds wait at once.
        max_open: how many shards the server opens at once.
    """

    def __init__(self, most: int, max_open: int) -> None:
        self._most = most
        self._all_shards = max_open // _SHARE
        self._shards = self._most_shards = max(_LEAST, self._all_shards)
        self._next_change_at = 0.0
        """When the number of shards may be changed next, by `time.monotonic()`."""
        self._waiting = 0
        self._open = 0
        self._each = 1.0
        """Shards of a database, of those whose feeds waited last."""
        self._changed: dict[str, Signal] = {}
        self._preferred: set[str] | None = None
        """The databases that come first; None: all do."""
        self.are_told = False
        """Whether the server says which databases change."""

    @contextmanager
    def place(self, database: str, shards: int) -> Iterator[bool]:
        """Yield whether a feed of a database, of so many shards, may wait at the server inside the block."""
        self._grow_again(time.monotonic())
        comes_first = self._preferred is None or database in self._preferred
        if not comes_first or self._waiting >= self._most or self._open + shards > self._shards:
            yield False
            return
        self._waiting += 1
        self._open += shards
        self._each = self._open / self._waiting
        try:
            yield True
        finally:
            self._waiting -= 1
            self._open -= shards

    @property
    def most(self) -> int:
        """Return how many wait at most, where their databases have as many shards as those of the ones that wait."""
        return min(self._most, int(self._shards / self._each))

    def share(self, processes: int) -> None:
        """Share the shards out among so many processes that follow the same server."""
        self._most_shards = max(_LEAST, self._all_shards // max(1, processes))
        self._shards = min(self._shards, self._most_shards)

    def prefer(self, databases: set[str]) -> None:
        """Have these databases come first: the feed of one that did not asks for a place now."""
        new = databases - (self._preferred or set())
        self._preferred = databases
        for database in new:
            self.tell(database)

    def _grow_again(self, present: float) -> None:
        """Have more feeds wait, a quarter each time, where there was no error for a while: others had them open."""
        if self._shards < self._most_shards and present >= self._next_change_at + _MORE_AFTER_S:
            self._shards = min(self._most_shards, self._shards + max(1, self._shards // 4))
            self._next_change_at = present

    def note(self, error: CouchError) -> None:
        """Have fewer feeds wait, where an error, of whatever request, says that they are too many."""
        present = time.monotonic()
        if not (isinstance(error, Unavailable) and _NO_SHARDS in str(error)) or present < self._next_change_at:
            return
        self._next_change_at = present + _FEWER_FOR_S
        if self._shards > _LEAST:
            self._shards = max(_LEAST, self._shards // 2)
            _logger.warning("CouchDB cannot open more shards: fewer feeds wait at it", shards=self._shards)

    def tell(self, database: str) -> None:
        """Take note that a database has changed."""
        if (signal := self._changed.get(database)) is not None:
            signal.set()

    async def changed(self, database: str) -> bool:
        """Return as soon as the database is said to have changed since the last call, or after a while; which of it."""
        seconds = _LONGEST_S if self.are_told else _LONGEST_UNTOLD_S
        return await self._changed.setdefault(database, Signal()).within(seconds)
