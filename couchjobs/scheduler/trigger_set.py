"""The triggers of one tenant in memory, kept up to date by the feed of their database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from couchjobs.couch.changes import ChangesFollower, current_sequence
from couchjobs.couch.database import Database
from couchjobs.errors import BadDocumentError, MalformedTriggerError, NotFound, UnknownTriggerError
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.trigger import ClockTrigger, EventTrigger, new_trigger
from couchjobs.triggers.infos import TriggerInfos

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_LOOK_AGAIN_S = 0.5
_SURELY_MISSING = 3


class TriggerSet:
    """All enabled triggers, and the reasons of those that cannot be understood."""

    def __init__(self, db: Prefixer, database: Database, heartbeat_s: float) -> None:
        self._db = db
        self._database = database
        self._heartbeat_s = heartbeat_s
        self._listeners: list[asyncio.Event] = []
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

    async def _load_and_follow(self) -> None:
        since = await current_sequence(self._database)
        seen: set[str] = set()
        async for documents in self._database.all_docs():
            self.take_in(documents)
            seen |= {document["_id"] for document in documents}
        for gone in [*self.scheduled, *self.events, *self.bad]:
            if gone not in seen:
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
            try:
                infos = TriggerInfos.from_document(document)
                trigger = new_trigger(self._db, infos)
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
        for known in (self.scheduled, self.events, self.bad):
            known.pop(trigger_id, None)

    def _forget_all(self) -> None:
        for known in (self.scheduled, self.events, self.bad):
            known.clear()
        self._notify()

    def _notify(self) -> None:
        for event in self._listeners:
            event.set()
