"""What a follower knows of the documents of its database: which changes are news, and what may be said of them.

It is filled by one pass over what is there, or over what has changed since that was written down, less what comes after
the position at which the follower begins. At the feed's beginning it is what was written down, and nothing else: all of
a new database is news, and where somebody has set a position back, what had gone by is not. Of a database that is too
large for it nothing is known: then positions alone say what is news.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from couchjobs.couch.changes import Change, pages_since
from couchjobs.couch.database import Database, Document, Witness, generation
from couchjobs.couch.identity import is_another_than
from couchjobs.couch.positions import newest_ids
from couchjobs.errors import BadRequest, PositionRefused
from couchjobs.scheduler.event_jobs import CREATED, UPDATED
from couchjobs.scheduler.remembered import Remembered
from couchjobs.scheduler.seen import Seen

NEW = (CREATED,)
"""What may be said of a document that was not there before."""
DOUBTED = 100
"""Documents, the newest of a cluster's database, of which the copies are compared."""
_DOUBTED_S = 10.0
"""Seconds in which the copies of a cluster agree on rows that one of them had first."""
_REMEMBERED = 10_000
"""Documents whose first revision is kept where nothing else is known of them: 1 MB."""
_MOST_BETWEEN = 200
"""Revisions of one document, the newest, in which what the feed has left out is looked for."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a follower begins: what it has come as far as, and what is known from before."""

    position: str
    witnesses: list[Witness]
    """Of what had been fired last before the position."""
    known: Remembered | None
    """What was written down of the database, by this daemon or another one."""


class Past:
    """Of one database."""

    def __init__(self) -> None:
        self.seen: Seen | None = None
        """None before it is filled, and where the database is too large for it."""
        self._created: OrderedDict[str, str] = OrderedDict()
        self._doubted: set[str] = set()
        """Of a cluster: documents that changed as the follower began. For a while a row of one is news: the copy that
        showed them may have been ahead of the one whose feed is followed."""
        self._doubted_until = 0.0
        self._brought: dict[str, int] = {}
        """By document, the generation of the revision that a second feed has brought, ahead of the first one."""
        self._unsure: set[str] = set()
        """Documents that changed while nobody followed, so that it is not known whether they were there before."""

    async def look_back(self, database: Database, begins: Beginning, newest: set[str] | None) -> int:
        """Take what is there, less what comes after the position, for seen; return how much of it was not written down.

        `newest`: of a cluster, what had changed last before that.

        Raises:
            PositionRefused: the server has no such position.
        """
        seen, unsure, later, rows = Seen(), set[str](), list[Change](), 0
        known = None if begins.known is None else begins.known.seen
        if begins.position == "0" and known is not None:
            seen = known.copy()
        elif begins.position != "0":
            seen, rows = await _seen_by_now(database, begins.known)
            try:
                later = [change async for page in pages_since(database, begins.position) for change in page.changes]
            except BadRequest as error:
                raise PositionRefused(str(error)) from error
            seen.forget(change.doc_id for change in later)
            unsure = {change.doc_id for change in later if not change.rev.startswith("1-")}
            if known is not None:
                seen.adopt(known, (change.doc_id for change in later))
                is_complete = begins.known is not None and begins.known.up_to.position == begins.position
                unsure = set() if is_complete else {doc_id for doc_id in unsure if not known.knows(doc_id)}
            for witness in begins.witnesses:
                seen.add(witness.doc_id, witness.rev, deleted=witness.deleted)
                unsure.discard(witness.doc_id)
        if newest is not None:
            self._doubted = await newest_ids(database, DOUBTED) - newest - {change.doc_id for change in later}
            self._doubted_until = time.monotonic() + _DOUBTED_S
        seen.before = None if known is None else known.before
        self.seen, self._unsure = seen, unsure
        return rows if known is not None else max(1, rows)

    async def prune(self, database: Database) -> None:
        """Forget documents that are not there any more, not even as deleted ones: nothing of them comes again."""
        if (seen := self.seen) is None:
            return
        marks = seen.unmarked()
        async for page in pages_since(database, "0"):
            seen.mark(marks, (change.doc_id for change in page.changes))
        seen.keep(marks)

    def add(self, changes: Iterable[Change]) -> None:
        """Take note that these changes have gone by."""
        if self.seen is None:
            return
        for change in changes:
            self.seen.add(change.doc_id, change.rev, deleted=change.deleted)
            self._unsure.discard(change.doc_id)
            self._doubted.discard(change.doc_id)

    @property
    def is_sure(self) -> bool:
        """Return whether of each document it is known whether it was there when the follower began."""
        return not self._unsure

    def note_brought(self, changes: Iterable[Change]) -> None:
        """Take note that a second feed has brought these changes, ahead of the first one."""
        self._brought.update((change.doc_id, generation(change.rev)) for change in changes)

    def forget_brought(self) -> None:
        """Take note that the first feed has caught up."""
        self._brought.clear()

    def is_behind(self, change: Change) -> bool:
        """Return whether a later revision of the document has been brought: it may be of a copy that is behind."""
        return bool(self._brought) and generation(change.rev) < self._brought.get(change.doc_id, 0)

    def has(self, change: Change) -> bool:
        """Return whether the change is no news."""
        if self.seen is None or self._is_doubted(change.doc_id):
            return False
        return self.seen.has(change.doc_id, change.rev, deleted=change.deleted)

    def verbs(self, change: Change) -> tuple[str, ...]:
        """Return what may be said of the change: of a document that is new, and changed since, that it is either."""
        if change.deleted:
            return ("DELETED",)
        first = change.rev.startswith("1-")
        if self.seen is not None and not self._is_unsure(change.doc_id):
            if self.seen.knows(change.doc_id):
                return (UPDATED,)
            return NEW if first else (CREATED, UPDATED)
        if not first or self._created.setdefault(change.doc_id, change.rev) != change.rev:
            return (UPDATED,)
        if len(self._created) > _REMEMBERED:
            self._created.popitem(last=False)
        return NEW

    def left_out(self, document: Document) -> list[str]:
        """Return the revisions of which the feed has shown the last alone, and the one before them ("": none was).

        The newest first, without the last; nothing of a document of which that is not known.
        """
        revisions = document["_revisions"]
        chain = [f"{revisions['start'] - age}-{one}" for age, one in enumerate(revisions["ids"][:_MOST_BETWEEN])]
        known = next((age for age, rev in enumerate(chain) if age and self._has_gone_by(document["_id"], rev)), 0)
        if not known and len(chain) > 1 and self._is_new(document["_id"]):
            return [*chain[1:], ""]
        return chain[1 : known + 1] if known > 1 else []

    def _is_new(self, doc_id: str) -> bool:
        return self.seen is not None and not self._is_unsure(doc_id) and not self.seen.knows(doc_id)

    def _has_gone_by(self, doc_id: str, rev: str) -> bool:
        seen = self.seen
        return seen is not None and (seen.has(doc_id, rev, deleted=False) or seen.has(doc_id, rev, deleted=True))

    def _is_doubted(self, doc_id: str) -> bool:
        return doc_id in self._doubted and time.monotonic() < self._doubted_until

    def _is_unsure(self, doc_id: str) -> bool:
        return doc_id in self._unsure or self._is_doubted(doc_id)


async def _seen_by_now(database: Database, known: Remembered | None) -> tuple[Seen, int]:
    """Return all that is there, and how many rows were read for it: those since what was written down, where one may.

    Raises:
        CouchError: the database does not say.
    """
    seen, since, rows = Seen(), "0", 0
    if known is not None and known.up_to.witnesses and not await is_another_than(database, known.up_to):
        seen, since = known.seen.copy(), known.up_to.position
    try:
        async for page in pages_since(database, since):
            rows += len(page.changes)
            for change in page.changes:
                seen.add(change.doc_id, change.rev, deleted=change.deleted)
    except BadRequest:
        if since == "0":
            raise
        return await _seen_by_now(database, None)
    return seen, rows
