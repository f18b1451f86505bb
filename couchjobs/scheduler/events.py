"""Firing by changes of documents: one follower a database, each with a checkpoint.

The checkpoint (`checkpoint:<database>` in the control database) is written after the jobs of everything before it
are stored. It says where to go on reading; what is new is said by what has been seen (see seen), which is filled by
one pass of the feed's bare rows when a daemon begins to follow, less what comes after the checkpoint. So a feed that
rewinds, a copy that is restored or a branch that loses fires nothing that is older than the trigger or has fired,
whether or not its job is still there. Two daemons that read the same rows make the same job ids and bodies: one
document. A trigger that comes to a database that is followed joins at the follower's position; the first one begins at
the database's present state, or at its beginning where the database did not exist yet. Where the checkpoint itself is
lost while a daemon follows, that daemon's own position is written anew. While a feed gives old rows again, what is
new is read beside them (see newest).

What remains: where a daemon begins to follow while the feed itself rewinds (it and a node of the cluster have died at
once), old rows look like new ones, and only the ids of jobs that are still there guard them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from couchjobs.couch.absence import is_absent, is_surely_gone
from couchjobs.couch.changes import PAGE, Change, ChangesFollower
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document, Witness, sequence_number
from couchjobs.couch.identity import Known, copies_of, instance_of, is_another_than, purges_of, rows_of
from couchjobs.couch.positions import current_sequence, newest_ids
from couchjobs.couch.surely import write_or_raise
from couchjobs.errors import NotFound, PositionRefused, Unavailable
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.newest import NewestChanges
from couchjobs.scheduler.page_firing import PageFiring
from couchjobs.scheduler.past import DOUBTED, Beginning, Past
from couchjobs.scheduler.positions import LOOPS, LOST, new_position, witnesses_of, written
from couchjobs.scheduler.remembered import Remembered, remember, remembered
from couchjobs.scheduler.seen import Seen
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.timestamps import format_time, now

_logger = get_logger(__name__)
_LOOK_AGAIN_S = 0.5
"""Before what failed, or is not there, is looked at again."""
_REMEMBERED_EACH_S = 300.0
"""Seconds between two times that what has been seen is written down."""
_MOST_GONE = 100_000
"""Documents that are known and no longer there, not even as deleted ones, beside as many as are there: 1.6 MB."""
_FEW = 100_000
"""Documents of a database of which it is written down now and then, whatever has changed: 1.6 MB."""
_SHARE = 4
"""Of more of them, once one in so many has changed since: 64 bytes a change."""


class EventFollower:
    """Follows the database of one doctype and fires the triggers that name it. `run` goes on until it is cancelled."""

    def __init__(
        self,
        connection: Connection,
        db: Prefixer,
        doctype: str,
        firing: Firing,
        may_follow: Callable[[str], Awaitable[bool]],
    ) -> None:
        """Take what says whether events may come from the database as it is when it begins to be followed."""
        self._may_follow = may_follow
        self.triggers: Sequence[EventTrigger] = ()
        self._db = db
        self._doctype = doctype
        self._database = connection.database(db.database(doctype))
        self._name = db.followed_as(doctype)
        self._control = connection.control
        self._writer = connection.writer(self._control.name)
        self._heartbeat_s = connection.settings.feed_heartbeat
        self._checkpoint = new_position(db, doctype)
        self._follower: ChangesFollower | None = None
        self._instance = ""
        self._position: str | None = None
        """Up to where this follower has fired, or found nothing to fire; None before it has begun."""
        self._reached = Known("0")
        """What it had come as far as when it last stored its position, or began at a stored one."""
        self._rereads = False
        """Whether it reads old rows again: where it is among them is no position for anybody else."""
        self._most_seen = connection.settings.max_seen_documents
        self.past = Past()
        self._firing = PageFiring(connection, db, doctype, firing, self.past)
        self._newest = NewestChanges(self._database, self._heartbeat_s, self._fire_newest)
        self._tried = 0
        """How much of that it was when CouchDB did not take it, of a large database."""
        self._unwritten = 0
        """How much of what has been seen is not written down yet, in rows of the feed."""
        self._remember_at = 0.0

    async def note_absent(self) -> None:
        """Take note that the database does not exist yet: where nobody has followed it, all of it will be new."""
        if await self._stored() is None:
            await self._begin("0")

    async def run(self) -> None:
        """Follow the database until it is gone, which is noted."""
        while True:
            try:
                present = await current_sequence(self._database)
                if not await self._may_follow(self._doctype):
                    return
                await self._follow(present)
            except PositionRefused as error:
                await self._begin_again(str(error))
                await asyncio.sleep(_LOOK_AGAIN_S)
            except NotFound:
                if self._position is None and await is_absent(self._database):
                    await self.note_absent()
                if await is_surely_gone(self._database):
                    _logger.warning("database is gone, and waited for", database=self._database.name)
                    self._position = "0"
                    await self._save("0")
                    return
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _stored(self) -> Document | None:
        try:
            return await self._control.find(self._checkpoint["_id"])
        except NotFound as error:
            raise Unavailable(str(error), 404) from error

    async def is_up_to_date(self) -> bool:
        """Return whether nobody else has written the position since this follower did; a lost one, it writes again."""
        stored = await self._stored()
        return stored is None or stored.get("_rev") == self._checkpoint.get("_rev")

    async def _begin(self, present: str, instance: str = "") -> None:
        """Find out where to begin: where this follower was, where another one was, or at `present` of that instance."""
        stored = await self._stored()
        if stored is not None and (self._position is None or stored.get("seq") == self._position):
            self._checkpoint = stored
            self._position = str(stored.get("seq", present))
            self._reached = Known(self._position, str(stored.get("instance", "")), self._witnesses())
            return
        self._checkpoint = stored or {**new_position(self._db, self._doctype), "instance": self._instance or instance}
        if not (self._rereads or (stored is not None and self._is_earlier(self._position or "", stored))):
            await self._save(self._position or present)

    async def _follow(self, present: str) -> None:
        info = await self._database.info()
        instance = instance_of(info)
        newest: set[str] | None = None
        if self.past.seen is None and copies_of(info) > 1:
            newest = await newest_ids(self._database, 2 * DOUBTED)
        await self._begin(present, instance)
        known = str(self._checkpoint.get("instance", "")) or self._instance or instance
        self._checkpoint["instance"] = self._instance = instance
        if known != instance:
            await self._begin_anew(present)
        elif await is_another_than(self._database, Known(self._position or "0", instance, self._witnesses())):
            raise PositionRefused(f"the database is an older copy of what it was at {(self._position or '')[:40]!r}")
        if self.past.seen is None:
            await self._look_back(info, newest)
            await self.remember()
        since = self._position or present
        _logger.info("following", database=self._database.name, since=since)
        follower = self._follower = ChangesFollower(
            self._database,
            since,
            heartbeat_s=self._heartbeat_s,
            instance=instance,
            witnesses=self._witnesses(),
            purges=purges_of(info),
        )
        try:
            await self._fire_pages(follower)
        finally:
            await self._newest.stop()

    async def _fire_pages(self, follower: ChangesFollower) -> None:
        while True:
            page = await follower.next_page()
            info = await self._fire(page.changes)
            self._position = page.last_seq
            is_full = len(page.changes) >= PAGE
            self._rereads = self._rereads and is_full
            are_old = self._rereads or (is_full and self._is_earlier(page.last_seq, self._checkpoint))
            self._unwritten += 1 if are_old else len(page.changes)
            follower.done(page)
            follower.purges = purges_of(info)  # of what comes next: a row of this page may have been purged before that
            if not are_old:
                await self._end_newest()
                await self._save(page.last_seq, follower.witnesses)
            elif self.past.seen is not None:
                self._newest.begin()
            if not self._newest.are_read:
                self._firing.done()
            if time.monotonic() > self._remember_at:
                await self._forget_what_is_gone(info)
                await self.remember()

    async def _fire(self, changes: list[Change]) -> Document:
        """Fire what is new among changes; return what the database says of itself.

        Raises:
            PositionRefused: it was made anew, for others, perhaps: nothing of it is fired.
        """
        info = await self._database.info()
        if instance_of(info) != self._instance:
            raise PositionRefused("the database was made anew")
        await self._firing.fire(self.triggers, changes)
        return info

    async def _fire_newest(self, changes: list[Change]) -> None:
        await self._fire(changes)
        self.past.note_brought(changes)

    async def _end_newest(self) -> None:
        await self._newest.end()
        self.past.forget_brought()

    @staticmethod
    def _is_earlier(seq: str, checkpoint: Document) -> bool:
        """Return whether a position is of old rows that come again: the one that is stored stays where it was."""
        return 0 < sequence_number(seq) < sequence_number(str(checkpoint.get("seq", "")))

    async def _forget_what_is_gone(self, info: dict[str, Any]) -> None:
        """Forget documents that were purged, where they are most of what is known; and all, where that is too much."""
        seen = self.past.seen
        if self._rereads or seen is None or seen.size <= min(self._most_seen, 2 * rows_of(info) + _MOST_GONE):
            return
        self._remember_at = time.monotonic() + _REMEMBERED_EACH_S
        await self.past.prune(self._database)
        if len(seen) > self._most_seen:
            _logger.warning("too many documents to remember what has fired", database=self._database.name)
            self.past.seen = None

    def _witnesses(self) -> list[Witness]:
        """Return what the database must know that has come as far as the position; of its beginning, nothing does."""
        return [] if self._position in (None, "0") else witnesses_of(self._checkpoint)

    async def has_more(self) -> bool:
        """Return whether there are changes that have not been looked at."""
        return self._follower is None or await self._follower.has_more()

    async def remember(self, *, in_any_case: bool = False) -> None:
        """Write down what has been seen, unless it is written; of a large database, where it is worth that.

        `in_any_case`: of that, too.
        """
        self._remember_at = time.monotonic() + _REMEMBERED_EACH_S
        seen, unwritten = self.past.seen, self._unwritten
        if seen is None or not unwritten or self._rereads:
            return
        if not (in_any_case or len(seen) <= _FEW or unwritten - self._tried >= len(seen) // _SHARE):
            return
        reached = self._reached if self.past.is_sure else Known("0")
        if await remember(self._control, self._name, self._instance, Remembered(seen, reached)):
            self._unwritten -= unwritten
            self._tried = 0
        else:
            self._tried = unwritten

    async def keep_position(self) -> None:
        """Write the position again, where it has been lost."""
        self._unwritten = max(1, self._unwritten)
        if self._position is not None and not self._rereads:
            await self._save(self._position, self._witnesses())

    async def _begin_again(self, reason: str) -> None:
        """Read the feed from its beginning where the server has no such position: what has been seen fires nothing."""
        await self._end_newest()
        if self.past.seen is not None:
            _logger.warning("the feed is read from its beginning", database=self._database.name, reason=reason)
            self._position, self._rereads = "0", True
            return
        await self._lose_position(await current_sequence(self._database), reason)

    async def _begin_anew(self, present: str) -> None:
        """Begin with a database that was made anew: what is not known from before is new in it.

        Where that is not known, the last rows before the position tell: a copy, as after a move of the server, has
        them, and is gone on with at `present`.
        """
        await self._end_newest()
        before = self.past.seen
        if before is None and (known := await remembered(self._control, self._name, None)) is not None:
            before = known.seen
        witnesses = self._witnesses()
        if before is None and len(await self._database.missing_revisions(witnesses)) < len(witnesses):
            await self._lose_position(present, "the database is a copy, and what had fired before is not known")
            return
        _logger.warning("database was made anew, and is read from its beginning", database=self._database.name)
        self.past.seen, self._rereads = Seen() if before is None else before.renewed(), False
        self._unwritten, self._reached = 1, Known("0")
        await self.remember(in_any_case=True)
        await self._save("0")

    async def _lose_position(self, present: str, reason: str) -> None:
        """Go on from the present, and say so where people look."""
        _logger.error(
            "the position in the feed is lost: changes between it and now may have fired nothing",
            database=self._database.name,
            reason=reason,
        )
        await self._save(present, lost={"at": format_time(now()), "reason": reason})

    async def _look_back(self, info: dict[str, Any], newest: set[str] | None) -> None:
        """Take what is there, less what comes after the position, for seen; `newest`: see `Past`."""
        if rows_of(info) > self._most_seen:
            _logger.warning("too many documents to remember what has fired", database=self._database.name)
            return
        known = await remembered(self._control, self._name, self._instance)
        begins = Beginning(self._position or "0", self._witnesses(), known)
        self._unwritten = await self.past.look_back(self._database, begins, newest)

    async def _save(self, seq: str, witnesses: Iterable[Witness] = (), lost: Document | None = None) -> None:
        last = [written(one) for one in witnesses]
        while True:
            told = {
                **({LOST: lost} if lost else {}),
                **({LOOPS: self._firing.loops.found} if self._firing.loops.found else {}),
            }
            self._checkpoint = {**self._checkpoint, "seq": seq, "last": last, **told}
            answer = await write_or_raise(self._writer, self._checkpoint)
            if answer.stored:
                self._checkpoint["_rev"] = answer.rev
                self._position = seq
                self._reached = Known(seq, self._instance, self._witnesses())
                return
            self._checkpoint = await self._stored() or new_position(self._db, self._doctype)
