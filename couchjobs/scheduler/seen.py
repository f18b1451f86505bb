"""What has been seen of a database: for each document, the revision that has gone by.

A feed gives old rows again: after a node has gone, a shard has moved, a copy has been restored; and a row comes where
only a branch that loses has changed. So the position in a feed says where to go on reading, and this says what is new:
a document's winning revision that has not gone by. Each of both is kept as a digest of 64 bits, 16 bytes a document, in
sorted arrays beside a small dict of what is newer: of a million documents that is 16 MB, filled in 6 s of CPU, and a
look-up takes 5 microseconds. Two of a million ids have one digest in one of 37 million such databases.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import compress

_MERGED_AT = 50_000
"""Entries of the dict from which on they are merged into the arrays, which takes 60 ms at a million documents."""
_MOST_BEFORE = 10
"""Databases that were made anew, one after the other, of which it is known what had been seen of them."""
_MOST_REMEMBERED = 2_000_000
"""Documents of these, all together, beyond the last of them: 32 MB."""
_DELETED = 1
"""The bit of a digest that says so."""
_BYTES = 16
"""Of one document: eight of its id's digest, eight of its revision's."""


class Seen:
    """The documents of one database that have been seen. It does not touch the network."""

    def __init__(self) -> None:
        self._ids = array("Q")
        self._revs = array("Q")
        self._newer: dict[int, int] = {}
        self.before: Seen | None = None
        """What had been seen of the database of that name before this one."""

    def __len__(self) -> int:
        self._merge(self._newer)
        return len(self._ids)

    def add(self, doc_id: str, rev: str, *, deleted: bool) -> None:
        """Take note that this winning revision of the document has gone by; `deleted`: it is a deletion."""
        self._newer[_digest(doc_id)] = _rev(rev, deleted=deleted)
        if len(self._newer) >= _MERGED_AT:
            self._merge(self._newer)

    def forget(self, doc_ids: Iterable[str]) -> None:
        """Take these documents for ones that have never been seen."""
        self._merge({**self._newer, **{_digest(doc_id): None for doc_id in doc_ids}})

    def adopt(self, other: Seen, doc_ids: Iterable[str]) -> None:
        """Take what another one knows of these documents for what is known of them."""
        known = {_digest(doc_id): other._find(doc_id) for doc_id in doc_ids}
        self._merge({**self._newer, **known})

    def copy(self) -> Seen:
        """Return the same, to be changed by itself."""
        self._merge(self._newer)
        other = Seen()
        other._ids, other._revs, other.before = self._ids[:], self._revs[:], self.before
        return other

    def as_bytes(self) -> bytes:
        """Return all of it: the digests of ids, sorted, then those of revisions, each as 8 bytes, the lowest first."""
        self._merge(self._newer)
        return b"".join(_little(part).tobytes() for part in (self._ids, self._revs))

    @classmethod
    def from_bytes(cls, data: bytes) -> Seen:
        """Return what `as_bytes` has told.

        Raises:
            ValueError: it is nothing of that kind.
        """
        if len(data) % _BYTES:
            raise ValueError(f"{len(data):,} bytes are no whole number of documents")
        seen, half = cls(), len(data) // 2
        for part, some in ((seen._ids, data[:half]), (seen._revs, data[half:])):
            part.frombytes(some)
        seen._ids, seen._revs = _little(seen._ids), _little(seen._revs)
        return seen

    @property
    def size(self) -> int:
        """Return of how many documents something is kept, but for those that are new since a while."""
        return len(self._ids)

    def unmarked(self) -> bytearray:
        """Return a mark for each document, none of them set, but for those that have changed lately."""
        return bytearray(len(self._ids))

    def mark(self, marks: bytearray, doc_ids: Iterable[str]) -> None:
        """Set the marks of these documents."""
        for doc_id in doc_ids:
            key = _digest(doc_id)
            at = bisect_left(self._ids, key)
            if at < len(self._ids) and self._ids[at] == key:
                marks[at] = 1

    def keep(self, marks: bytearray) -> None:
        """Forget the documents whose marks are not set, but for those that have changed lately."""
        if len(marks) == len(self._ids):
            self._ids, self._revs = array("Q", compress(self._ids, marks)), array("Q", compress(self._revs, marks))

    def renewed(self) -> Seen:
        """Return the same for a database that was made anew: no document is known in it, but revisions have gone by."""
        fresh = Seen()
        fresh.before = self if len(self) else self.before
        last, total = fresh, 0
        for _ in range(_MOST_BEFORE):
            if last.before is None:
                return fresh
            total += len(last.before)
            if last is not fresh and total > _MOST_REMEMBERED:
                break
            last = last.before
        last.before = None
        return fresh

    def has(self, doc_id: str, rev: str, *, deleted: bool) -> bool:
        """Return whether that very revision has gone by."""
        wanted, seen = _rev(rev, deleted=deleted), self
        while seen._find(doc_id) != wanted:
            if seen.before is None:
                return False
            seen = seen.before
        return True

    def knows(self, doc_id: str) -> bool:
        """Return whether the document was there when it was seen last; one that was deleted then is new again."""
        found = self._find(doc_id)
        return found is not None and not found & _DELETED

    def _find(self, doc_id: str) -> int | None:
        key = _digest(doc_id)
        if key in self._newer:
            return self._newer[key]
        at = bisect_left(self._ids, key)
        return self._revs[at] if at < len(self._ids) and self._ids[at] == key else None

    def _merge(self, changes: Mapping[int, int | None]) -> None:
        """Make the arrays hold what they hold, and these; None takes one out."""
        ids, revs, start = array("Q"), array("Q"), 0
        for key in sorted(changes):
            at = bisect_left(self._ids, key, start)
            ids.extend(self._ids[start:at])
            revs.extend(self._revs[start:at])
            rev = changes[key]
            if rev is not None:
                ids.append(key)
                revs.append(rev)
            start = at + (at < len(self._ids) and self._ids[at] == key)
        ids.extend(self._ids[start:])
        revs.extend(self._revs[start:])
        self._ids, self._revs, self._newer = ids, revs, {}


def _little(part: array[int]) -> array[int]:
    """Return the array with its bytes in the order of most machines."""
    if sys.byteorder == "little":
        return part
    turned = array("Q", part)
    turned.byteswap()
    return turned


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _rev(rev: str, *, deleted: bool) -> int:
    return _digest(rev) & ~_DELETED | (_DELETED if deleted else 0)
