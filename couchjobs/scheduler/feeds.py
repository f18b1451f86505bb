"""Which databases this daemon follows: those that triggers name, and to which it has the first right."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, Conflict, NotFound
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.daemon import Daemon
from couchjobs.scheduler.events import CHECKPOINT, EventFollower
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.supervisor import Supervisor

_logger = get_logger(__name__)


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
        self._followed: dict[str, _Followed] = {}
        self._tasks = Supervisor()

    async def run(self) -> None:
        """Start and stop followers as triggers and daemons come and go."""
        await self._triggers.loaded.wait()
        unwanted = await self._checkpointed()
        while True:
            self._changed.clear()
            self._daemons_changed.clear()
            wanted = self._wanted()
            for doctype in set(self._followed) - {one for one in wanted if self._is_mine(one)}:
                await self._unfollow(doctype)
            for doctype in unwanted - wanted.keys():
                await self._drop_checkpoint(doctype)
            unwanted = set(wanted)
            for doctype, triggers in wanted.items():
                if self._is_mine(doctype):
                    self._follow(doctype).triggers = triggers
            waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._daemons_changed)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def stop(self) -> None:
        """End all followers."""
        await self._tasks.stop()
        self._followed.clear()

    def _wanted(self) -> dict[str, list[EventTrigger]]:
        wanted: defaultdict[str, list[EventTrigger]] = defaultdict(list)
        for trigger in self._triggers.events.values():
            for doctype in trigger.rules.doctypes:
                try:
                    self._db.database(doctype)
                except ConfigurationError as error:
                    _logger.warning("no such database can exist", trigger=trigger.infos.id, reason=str(error))
                    continue
                wanted[doctype].append(trigger)
        return dict(wanted)

    def _is_mine(self, doctype: str) -> bool:
        return self._daemon.fires(f"feed:{doctype}")

    def _follow(self, doctype: str) -> EventFollower:
        followed = self._followed.get(doctype)
        if followed is None:
            follower = EventFollower(self._connection, self._db, doctype, self._firing)
            followed = _Followed(follower, self._tasks.start(f"follow {doctype}", follower.run))
            self._followed[doctype] = followed
        return followed.follower

    async def _unfollow(self, doctype: str) -> None:
        followed = self._followed.pop(doctype)
        followed.task.cancel()
        await asyncio.wait([followed.task])

    async def _checkpointed(self) -> set[str]:
        """Return the doctypes in whose databases this tenant has a position."""
        control = self._connection.control
        documents = await control.with_prefix(CHECKPOINT)
        tenant = (self._db.domain, self._db.db_prefix)
        return {doc["doctype"] for doc in documents if (doc.get("domain"), doc.get("prefix")) == tenant}

    async def _drop_checkpoint(self, doctype: str) -> None:
        """Forget the position where no trigger is left: a later one begins at the database's present state."""
        control = self._connection.control
        checkpoint = await control.find(CHECKPOINT + self._db.database(doctype))
        if checkpoint is not None:
            try:
                await control.delete(checkpoint["_id"], checkpoint["_rev"])
            except (Conflict, NotFound):
                _logger.debug("checkpoint is gone already", doctype=doctype)
