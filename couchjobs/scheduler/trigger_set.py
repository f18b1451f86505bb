"""The triggers of one tenant in memory, kept up to date by the feed of their database.

A trigger is forgotten where CouchDB says that its document is absent, or that all of the database is gone, beyond
doubt; what is unknown stays as it was. Whatever a document holds, the others are taken in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from couchjobs.couch.absence import is_surely_gone
from couchjobs.couch.answers import Found
from couchjobs.couch.changes import Change, ChangesFollower
from couchjobs.couch.database import Document, generation
from couchjobs.couch.positions import position_before
from couchjobs.errors import CouchError, CouchjobsError, NotFound, PositionRefused
from couchjobs.log import get_logger
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.trigger import ClockTrigger, EventTrigger, new_trigger
from couchjobs.triggers.event import doctypes_meant
from couchjobs.triggers.kinds import may_be_event
from couchjobs.waits import ChangedIds

_logger = get_logger(__name__)
_LOOK_AGAIN_S = 0.5
"""Before triggers that could not be read are read again."""
_LOOKS = 20
"""Times that one is read of which one copy of a cluster knew, and the others do not: it may have been purged."""
_LAST_ROWS = 100
"""Rows of the feed that are looked at once more after all triggers were read: the copy that was read may be behind."""


@dataclass(slots=True)
class _Awaited:
    """A trigger that is asked for again."""

    row: Change | None = None
    """What the feed has shown of it; None: nothing yet."""
    looks: int = _LOOKS


class TriggerSet:
    """All triggers that fire by themselves, and the reasons of those that cannot be understood."""

    def __init__(self, store: TriggerStore, heartbeat_s: float) -> None:
        self._store = store
        self._database = store.database
        self._heartbeat_s = heartbeat_s
        self._listeners: list[ChangedIds] = []
        self._changed: set[str] = set()
        self._revs: dict[str, str] = {}
        self.scheduled: dict[str, ClockTrigger] = {}
        """Those that fire by the clock, disabled ones included: their schedules live on."""
        self.events: dict[str, EventTrigger] = {}
        self.bad: dict[str, str] = {}
        """By id of the trigger: why it cannot be understood."""
        self._meant: dict[str, frozenset[str]] = {}
        """By id of such a trigger: the doctypes that it seems to name, or named when it was understood last."""
        self._unknown: dict[str, _Awaited] = {}
        """Of which CouchDB has not said what they are, or a copy of it is behind what the feed has shown."""
        self._unreadable: set[str] = set()
        """Those of the bad ones of which not even the document can be read: they may name any database."""
        self._look_again = asyncio.Event()
        self._follower: ChangesFollower | None = None
        self.loaded = asyncio.Event()
        """Set once all triggers that were there at the start are known."""

    def listen(self) -> ChangedIds:
        """Return an event that is set whenever triggers change."""
        changes = ChangedIds()
        self._listeners.append(changes)
        return changes

    async def follow(self) -> None:
        """Read all triggers, then follow their changes. A database that does not exist yet is waited for."""
        while True:
            try:
                await self._load_and_follow()
            except PositionRefused as error:
                self._follower = None
                _logger.warning("all triggers are read again", reason=str(error))
            except NotFound:
                self._follower = None
                if self._revs and await is_surely_gone(self._database):
                    _logger.warning("the database of triggers is gone", database=self._database.name)
                    self._forget_all()
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def sweep_for_ever(self, interval_s: float) -> None:
        """Compare the revisions that are known with those of the database: the feed may have left one out."""
        await self.loaded.wait()
        if self._unknown:  # the last look may have been cut off
            self._look_again.set()
        while True:
            try:
                async with asyncio.timeout(interval_s):
                    while True:
                        await self._look_again.wait()
                        self._look_again.clear()
                        await asyncio.sleep(_LOOK_AGAIN_S)
                        await self._read_unknown(self._unknown)
            except TimeoutError:
                if self._unknown:  # the look at them may have been cut off
                    self._look_again.set()
            try:
                present = await self._database.all_revisions()
                changed = [one for one in {*present, *self._revs} if present.get(one) != self._revs.get(one)]
                self._take_in_answers(await self._database.read(changed))
            except NotFound:
                continue

    async def has_more(self) -> bool:
        """Return whether there are changes that have not been taken in."""
        return self._follower is None or bool(self._unknown) or await self._follower.has_more()

    async def _load_and_follow(self) -> None:
        if self._follower is None:
            self._follower = await self._load()
        follower = self._follower
        while True:
            page = await follower.next_page()
            rows = {change.doc_id: change for change in page.changes if not change.doc_id.startswith("_design/")}
            self._unknown |= {trigger_id: _Awaited(change) for trigger_id, change in rows.items()}
            await self._read_unknown(rows)
            follower.done(page)

    async def _load(self) -> ChangesFollower:
        """Read all triggers, and return what goes on from there."""
        since = await position_before(self._database, _LAST_ROWS)
        seen: set[str] = set()
        async for answers in self._database.all_found():
            self._take_in_answers(answers)
            seen |= {one.doc_id for one in answers}
        for gone in (self._revs.keys() | self.bad.keys()) - seen:
            self._forget(gone)
        self.loaded.set()
        self._notify()
        return ChangesFollower(self._database, since, heartbeat_s=self._heartbeat_s)

    async def _read_unknown(self, ids: Iterable[str]) -> None:
        """Ask for triggers of which it is not known by now what they are; again, where a copy is behind."""
        try:
            answers = await self._database.read([*ids])
        except CouchError:
            self._look_again.set()
            raise
        behind = {one.doc_id for one in answers if self._is_behind(one)}
        self._take_in_answers([one for one in answers if one.doc_id not in behind])
        if behind:
            self._look_again.set()

    def _is_behind(self, answer: Found) -> bool:
        """Return whether an answer is older than what the feed has shown, and worth another look."""
        awaited = self._unknown.get(answer.doc_id)
        if awaited is None or awaited.row is None or answer.is_unknown or answer.unreadable or awaited.looks <= 0:
            return False
        awaited.looks -= 1
        if answer.document is None:
            return not awaited.row.deleted
        return generation(answer.document["_rev"]) < generation(awaited.row.rev)

    def _take_in_answers(self, answers: list[Found]) -> None:
        """Take in what CouchDB says of triggers; those of which it does not say are asked for again."""
        self.take_in(one.document for one in answers if one.document is not None)
        for one in answers:
            awaited = self._unknown.pop(one.doc_id, None)
            if one.absent:
                self._forget(one.doc_id)
            elif one.unreadable:
                self._note_bad(one.doc_id, one.reason, self._forget(one.doc_id))
                self._unreadable.add(one.doc_id)
            elif one.document is None:
                self._unknown[one.doc_id] = awaited or _Awaited()
                self._look_again.set()
        if answers:
            self._notify()

    def take_in(self, documents: Iterable[Document]) -> None:
        """Replace what is known of these triggers by what their documents say now."""
        for document in documents:
            trigger_id = document["_id"]
            named = self._forget(trigger_id)
            if may_be_event(document.get("type")):
                named |= doctypes_meant(document)
            self._revs[trigger_id] = document["_rev"]
            try:
                infos = self._store.read(document)
                trigger = new_trigger(self._store.db, infos)
            except CouchjobsError as error:
                self._note_bad(trigger_id, str(error), named)
                continue
            except Exception as error:  # no document may stop the others
                _logger.exception("bad trigger", trigger=trigger_id)
                self._note_bad(trigger_id, f"{type(error).__name__}: {error}", named)
                continue
            if isinstance(trigger, ClockTrigger):
                self.scheduled[trigger_id] = trigger
            elif isinstance(trigger, EventTrigger) and not infos.disabled:
                self.events[trigger_id] = trigger

    @property
    def _all_known(self) -> tuple[dict[str, Any], ...]:
        return self.scheduled, self.events, self.bad, self._meant, self._revs

    def _note_bad(self, trigger_id: str, reason: str, meant: frozenset[str]) -> None:
        self.bad[trigger_id] = reason
        self._meant[trigger_id] = meant
        _logger.warning("bad trigger", trigger=trigger_id, reason=reason)

    def may_be_clock(self, trigger_id: str) -> bool:
        """Return whether there is, or may be, such a trigger that fires by the clock, disabled or not."""
        return any(trigger_id in known for known in (self.scheduled, self.bad, self._unknown))

    @property
    def is_complete(self) -> bool:
        """Return whether it is known of every trigger what its document says, or seems to."""
        return not self._unknown and not self._unreadable

    @property
    def meant(self) -> frozenset[str]:
        """Return the doctypes and patterns that triggers name which cannot be understood now: they may be mended."""
        return frozenset[str]().union(*self._meant.values())

    def _forget(self, trigger_id: str) -> frozenset[str]:
        """Forget a trigger; return the doctypes and patterns that it has named."""
        self._changed.add(trigger_id)
        event, named = self.events.get(trigger_id), self._meant.get(trigger_id, frozenset())
        self._unreadable.discard(trigger_id)
        for known in self._all_known:
            known.pop(trigger_id, None)
        return named | event.rules.doctypes | event.rules.patterns if event is not None else named

    def _forget_all(self) -> None:
        self._changed.update(self._revs)
        self._unreadable.clear()
        for known in self._all_known:
            known.clear()
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, set()
        for listener in self._listeners:
            listener.note(changed)
