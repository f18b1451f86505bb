"""Which databases this daemon follows: those that triggers name, that events may come from, and that are its to follow.

A database that does not exist is not asked for by a feed of its own: all of them are looked for together.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.absence import is_absent
from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, Conflict, Forbidden, NotFound, Unauthorized
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.events import EventFollower
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.patterns import Patterns
from couchjobs.scheduler.positions import CHECKPOINT, doctype_of
from couchjobs.scheduler.remembered import forget
from couchjobs.scheduler.sources import read_sources
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.supervisor import Supervisor
from couchjobs.triggers.event import is_pattern, name_pattern

_logger = get_logger(__name__)
_LOOK_S = 0.5
"""Seconds between two looks for databases that do not exist yet."""
_LONGEST_LAST_WRITE_S = 5.0
"""For the last positions, as the daemon ends; without them some changes are read again, and fire nothing."""
_LOOKED_AT = 10
"""How many databases are asked for together where the server does not tell of many at once; and of those that are
waited for, so many in a look."""
_SOURCES_S = 10.0
"""Seconds within which a change of the list of sources, or of who may write triggers, is noticed."""
_SELDOM = 6
"""Times as long between two looks of either kind, where a daemon serves many tenants."""


@dataclass(slots=True)
class _Followed:
    follower: EventFollower
    task: asyncio.Task[None]


class Feeds:
    """The followers of one daemon. `run` goes on until it is cancelled; `stop` ends the followers."""

    def __init__(
        self, connection: Connection, db: Prefixer, triggers: TriggerSet, daemon: Daemon, firing: Firing
    ) -> None:
        self._connection = connection
        self._db = db
        self._triggers = triggers
        self._daemon = daemon
        self._firing = firing
        self._changed = triggers.listen()
        self._daemons_changed = daemon.listen()
        self._ended = asyncio.Event()
        self._followed: dict[str, _Followed] = {}
        self._seldom = _SELDOM if daemon.presence.serves_many else 1
        self._paused: dict[str, EventFollower] = {}
        self._doubted: set[str] = set()
        """Of those that are paused, the doctypes that another daemon may have followed meanwhile."""
        self._absent: dict[str, EventFollower] = {}
        self._unwanted: set[str] | None = None
        self._patterns = Patterns(connection, db)
        self._named_patterns: set[str] | None = None
        self._refused: dict[str, str] = {}
        self._wanted: dict[str, list[EventTrigger]] = {}
        self._sources_at = float("-inf")
        self._is_looking = False
        self._tasks = Supervisor()

    async def run(self) -> None:
        """Start and stop followers as triggers, databases and daemons come and go."""
        await self._triggers.loaded.wait()
        if self._unwanted is None:
            self._unwanted = await self._checkpointed()
        self._changed.set()
        while True:
            await self._look()
            waits = [
                asyncio.ensure_future(event.wait()) for event in (self._changed, self._daemons_changed, self._ended)
            ]
            live = self._connection.server.live_feeds
            are_told = live is not None and live.are_told  # of a database that is waited for, too
            timeout = self._seldom * (_LOOK_S if self._absent and not are_told else _SOURCES_S)
            try:
                await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def stop(self) -> None:
        """End all followers; what they know stays, for when this runs again."""
        self._paused |= {doctype: one.follower for doctype, one in self._followed.items()}
        self._followed.clear()
        await self._tasks.stop()

    async def remember(self) -> None:
        """Have all followers write down what they have seen: nobody may follow for a while."""
        followers = [*(one.follower for one in self._followed.values()), *self._paused.values()]
        try:
            async with asyncio.timeout(_LONGEST_LAST_WRITE_S):
                await asyncio.gather(*(one.remember(in_any_case=True) for one in followers))
        except TimeoutError:
            _logger.warning("not all of what was seen is written down in time")

    @property
    def is_quiet(self) -> bool:
        """Return whether nothing is to be looked at; a database that is waited for tells of itself."""
        events = self._changed, self._daemons_changed, self._ended
        return not (self._is_looking or any(event.is_set() for event in events))

    async def has_more(self) -> bool:
        """Return whether a database that is followed has changes that have not been looked at."""
        followers = [*(one.follower for one in self._followed.values()), *self._paused.values()]
        return any([await follower.has_more() for follower in followers])

    def note_database(self, name: str) -> None:
        """Take note that a database has changed: where it was waited for, it is there."""
        if any(self._name_of(doctype) == name for doctype in self._absent):
            self._ended.set()

    def look_at_sources(self) -> None:
        """Look again which databases events may come from."""
        self._changed.set()

    @property
    def databases(self) -> set[str]:
        """Return the names of the databases that are followed, or waited for."""
        return {name for doctype in self._wanted if (name := self._name_of(doctype))}

    async def _look(self) -> None:
        """Make what is followed what should be; where CouchDB does not say what that is, leave it for now."""
        loop = asyncio.get_running_loop()
        changed = self._changed.is_set()
        if self._daemons_changed.is_set():
            self._doubted = {*self._paused}
        self._changed.take()
        for event in (self._daemons_changed, self._ended):
            event.clear()
        self._is_looking = True
        try:
            if changed or loop.time() - self._sources_at >= self._seldom * _SOURCES_S:
                await self._find_wanted()
                await self._keep_positions()
                self._sources_at = loop.time()
            await self._arrange()
        except BaseException:  # it may have been cut off: what is followed is not what should be
            self._changed.set()
            raise
        finally:
            self._is_looking = False

    async def _find_wanted(self) -> None:
        if not self._triggers.events:
            self._wanted, self._refused = {}, {}
            return
        sources = await read_sources(self._connection, self._db)
        patterns = {pattern for trigger in self._triggers.events.values() for pattern in trigger.rules.patterns}
        existing, cannot = await self._existing(patterns) if patterns else ({}, "")
        self._wanted, refused = await sources.admitted(self._triggers.events.values(), existing)
        firing = {one.id for triggers in self._wanted.values() for one in triggers}
        events = [one for one in self._triggers.events.values() if one.id in firing or one.id not in refused]
        admitted = {pattern for one in events for pattern in one.rules.patterns}
        await self._patterns.note({pattern: found for pattern, found in existing.items() if pattern in admitted})
        if cannot:
            hidden = {one.id: cannot for one in self._triggers.events.values() if one.rules.patterns}
            refused = hidden | refused
        for trigger_id, reason in refused.items():
            if self._refused.get(trigger_id) != reason:
                _logger.warning("trigger may not fire", trigger=trigger_id, reason=reason)
        self._refused = refused

    async def _existing(self, patterns: set[str]) -> tuple[dict[str, set[str]], str]:
        """Return, by pattern, the doctypes whose databases exist, or why that cannot be known."""
        try:
            existing = await self._patterns.doctypes(patterns)
        except (Forbidden, Unauthorized):
            return {}, (
                "databases by a pattern need the right to list all of them: an administrator's credentials for the "
                "daemon, or admin_only_all_dbs = false in CouchDB's section [chttpd]"
            )
        return existing, ""

    async def _may_follow(self, doctype: str) -> bool:
        """Return whether events may come from that database as it is now: it may have been made anew, for others."""
        sources = await read_sources(self._connection, self._db)
        if reason := await sources.refusal(doctype):
            _logger.warning("database is not followed", doctype=doctype, reason=reason)
            self._changed.set()
            return False
        return True

    async def _keep_positions(self) -> None:
        """Write the position of each follower that is not there any more, as when the control database was wiped."""
        followers = {
            CHECKPOINT + self._db.followed_as(doctype): one.follower for doctype, one in self._followed.items()
        }
        if followers:
            for one in await self._connection.control.read(followers):
                if one.absent:
                    await followers[one.doc_id].keep_position()

    async def _arrange(self) -> None:
        rules = [trigger.rules for trigger in self._triggers.events.values()]
        unwanted, meant = self._unwanted or set(), self._triggers.meant
        may_go_on = [*(one.names for one in rules), *map(name_pattern, meant)]  # what is mended goes on where it was
        named = {doctype for one in rules for doctype in one.doctypes} | {
            doctype for doctype in unwanted | self._wanted.keys() if any(names(doctype) for names in may_go_on)
        }
        mine = {doctype for doctype in self._wanted if self._is_mine(doctype)}
        for doctype in self._followed.keys() - mine:
            await self._unfollow(doctype)
        self._paused = {doctype: follower for doctype, follower in self._paused.items() if doctype in mine}
        if self._triggers.is_complete:
            names = {name for doctype in named if (name := self._name_of(doctype))}
            for doctype in unwanted - named:
                if self._name_of(doctype) not in names:  # `a.b` and `a-b` are one database
                    await self._drop_checkpoint(doctype)
            self._unwanted = named
            patterns = {pattern for one in rules for pattern in one.patterns} | {*filter(is_pattern, meant)}
            if patterns != self._named_patterns:
                await self._patterns.drop(patterns)
                self._named_patterns = patterns
        self._absent = {doctype: follower for doctype, follower in self._absent.items() if doctype in mine}
        for doctype in [one for one in self._followed if self._followed[one].task.done()]:
            self._absent[doctype] = self._followed.pop(doctype).follower
        present = await self._present(mine - self._followed.keys())
        for doctype in mine:
            if doctype in present:
                await self._follow(doctype)
            if doctype in self._followed:
                self._followed[doctype].follower.triggers = self._wanted[doctype]

    async def _present(self, doctypes: set[str]) -> set[str]:
        """Return those whose databases exist; of the others it is noted that they do not, where that is known."""
        if not doctypes:
            return set()
        names = {self._db.database(doctype): doctype for doctype in sorted(doctypes)}
        server = self._connection.server
        try:
            absent = await self._absent_of({names[name] for name in await server.missing([*names])})
            present = doctypes - absent
        except (Forbidden, Unauthorized, NotFound):
            present, absent = await self._present_one_by_one(names)
        for doctype in absent:
            if doctype not in self._absent:
                follower = self._new_follower(doctype)
                await follower.note_absent()
                _logger.info("database is waited for", database=self._db.database(doctype))
                self._absent[doctype] = follower
            self._absent[doctype] = self._absent.pop(doctype)  # the next look begins with others
        return present

    async def _absent_of(self, missing: set[str]) -> set[str]:
        """Return those of which CouchDB says more than that it cannot tell of them: all else fails in the same way."""
        known = missing & self._absent.keys()
        return known | {
            doctype
            for doctype in missing - known
            if await is_absent(self._connection.database(self._db.database(doctype)))
        }

    async def _present_one_by_one(self, names: dict[str, str]) -> tuple[set[str], set[str]]:
        """Return the doctypes whose databases exist, and those whose do not: of all of which that is not known yet.

        Of those that are waited for some are looked at, the longest unseen first.
        """
        waited_for = {doctype: number for number, doctype in enumerate(self._absent)}
        unknown = [name for name, doctype in names.items() if doctype not in waited_for]
        longest_unseen = sorted(names.keys() - {*unknown}, key=lambda name: waited_for[names[name]])
        asked = [*unknown, *longest_unseen[:_LOOKED_AT]]
        present: set[str] = set()
        for start in range(0, len(asked), _LOOKED_AT):
            part = asked[start : start + _LOOKED_AT]
            are_there = await asyncio.gather(*map(self._is_there, part))
            present |= {names[name] for name, is_there in zip(part, are_there, strict=True) if is_there}
        return present, {names[name] for name in asked} - present

    async def _is_there(self, name: str) -> bool:
        try:
            await self._connection.database(name).info()
        except NotFound:
            await self._connection.server.welcome()  # it is CouchDB that says so, and not what stands before it
            return False
        except (Forbidden, Unauthorized):
            return True  # the follower says what is wrong
        return True

    def _is_mine(self, doctype: str) -> bool:
        return self._daemon.fires(f"feed:{doctype}")

    async def _follow(self, doctype: str) -> None:
        follower = self._absent.get(doctype) or self._paused.get(doctype)
        if follower is not None and doctype in self._doubted and not await follower.is_up_to_date():
            follower = None
        for some in (self._absent, self._paused):
            some.pop(doctype, None)
        self._doubted.discard(doctype)
        if follower is None:
            follower = self._new_follower(doctype)
            if self._patterns.is_new(doctype):
                await follower.note_absent()  # it was, when its pattern was first looked at
        task = self._tasks.start(f"follow {doctype}", follower.run)
        self._followed[doctype] = _Followed(follower, task)
        task.add_done_callback(lambda ended: self._note_end(doctype, ended))

    def _note_end(self, doctype: str, task: asyncio.Task[None]) -> None:
        """Take note that a follower has ended by itself: one that is stopped here is no news."""
        followed = self._followed.get(doctype)
        if followed is not None and followed.task is task:
            self._ended.set()

    def _new_follower(self, doctype: str) -> EventFollower:
        return EventFollower(self._connection, self._db, doctype, self._firing, self._may_follow)

    async def _unfollow(self, doctype: str) -> None:
        followed = self._followed.pop(doctype)
        followed.task.cancel()
        await asyncio.wait([followed.task])

    async def _checkpointed(self) -> set[str]:
        """Return the doctypes in whose databases this tenant has a position."""
        documents = await self._connection.control.with_prefix(CHECKPOINT + self._db.key)
        return {doctype for document in documents if (doctype := doctype_of(document, self._db)) is not None}

    def _name_of(self, doctype: str) -> str:
        """Return the name of the database; empty where none can have it."""
        try:
            return self._db.database(doctype)
        except ConfigurationError:
            return ""

    async def _drop_checkpoint(self, doctype: str) -> None:
        """Forget the position where no trigger is left: a later one begins at the database's present state."""
        control = self._connection.control
        name = self._db.followed_as(doctype) if self._name_of(doctype) else ""
        await forget(control, name)
        checkpoint = await control.find(CHECKPOINT + name)
        if checkpoint is not None:
            try:
                await control.delete(checkpoint["_id"], checkpoint["_rev"])
            except Conflict:
                _logger.debug("checkpoint is gone already", doctype=doctype)
