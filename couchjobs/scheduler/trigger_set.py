"""The triggers of one tenant in memory, kept up to date by the feed of their database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from couchjobs.couch.changes import ChangesFollower, current_sequence
from couchjobs.errors import BadDocumentError, MalformedTriggerError, NotFound, UnknownTriggerError
from couchjobs.log import get_logger
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.trigger import ClockTrigger, EventTrigger, new_trigger

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_LOOK_AGAIN_S = 0.5
_SURELY_MISSING = 3


class TriggerSet:
    """All enabled triggers, and the reasons of those that cannot be understood."""

    def __init__(self, store: TriggerStore, heartbeat_s: float) -> None:
        self._store = store
        self._database = store.database
        self._heartbeat_s = heartbeat_s
        self._listeners: list[asyncio.Event] = []
        self._revs: dict[str, str] = {}
        self.scheduled: dict[str, ClockTrigger] = {}
        self.events: dict[str, EventTrigger] = {}
        self.bad: dict[str, str] = {}
        """By id of the trigger: why it cannot be understood."""
        self.loaded = asyncio.Event()
        """Set once all triggers that were there at the start are known."""

    def listen(self) -> asyncio.Event:
        """Return an event that is set whenever a trigger changes."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    async def follow(self) -> None:
        """Read all triggers, then follow their changes. A database that does not exist yet is waited for."""
        missing = 0
        while True:
            try:
                await current_sequence(self._database)
                missing = 0
                await self._load_and_follow()
            except NotFound:
                missing += 1
                if missing == _SURELY_MISSING:
                    self._forget_all()
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def sweep_for_ever(self, interval_s: float) -> None:
        """Compare the revisions that are known with those of the database: the feed may have left one out."""
        await self.loaded.wait()
        while True:
            await asyncio.sleep(interval_s)
            try:
                present = await self._database.all_revisions()
            except NotFound:
                continue
            changed = [one for one in {*present, *self._revs} if present.get(one) != self._revs.get(one)]
            for trigger_id in changed:
                document = await self._database.find(trigger_id)
                if document is None:
                    self._forget(trigger_id)
                else:
                    self.take_in([document])
            if changed:
                self._notify()

    async def _load_and_follow(self) -> None:
        since = await current_sequence(self._database)
        seen: set[str] = set()
        async for documents in self._database.all_docs():
            self.take_in(documents)
            seen |= {document["_id"] for document in documents}
        for gone in self._revs.keys() - seen:
            self._forget(gone)
        self.loaded.set()
        self._notify()
        follower = ChangesFollower(self._database, since, heartbeat_s=self._heartbeat_s)
        while True:
            page = await follower.next_page()
            ids = [change.doc_id for change in page.changes if not change.doc_id.startswith("_design/")]
            found = await self._database.get_many(ids)
            for gone in set(ids) - found.keys():
                self._forget(gone)
            self.take_in(found.values())
            self._notify()

    def take_in(self, documents: Iterable[Document]) -> None:
        """Replace what is known of these triggers by what their documents say now."""
        for document in documents:
            trigger_id = document["_id"]
            self._forget(trigger_id)
            self._revs[trigger_id] = document["_rev"]
            try:
                infos = self._store.read(document)
                trigger = new_trigger(self._store.db, infos)
            except (BadDocumentError, MalformedTriggerError, UnknownTriggerError) as error:
                self.bad[trigger_id] = str(error)
                _logger.warning("bad trigger", trigger=trigger_id, reason=str(error))
                continue
            if infos.disabled:
                continue
            if isinstance(trigger, EventTrigger):
                self.events[trigger_id] = trigger
            elif isinstance(trigger, ClockTrigger):
                self.scheduled[trigger_id] = trigger

    def _forget(self, trigger_id: str) -> None:
        for known in (self.scheduled, self.events, self.bad, self._revs):
            known.pop(trigger_id, None)

    def _forget_all(self) -> None:
        for known in (self.scheduled, self.events, self.bad, self._revs):
            known.clear()
        self._notify()

    def _notify(self) -> None:
        for event in self._listeners:
            event.set()
