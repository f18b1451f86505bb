"""Firing by changes of documents: one follower a database, each with a checkpoint.

The checkpoint (`checkpoint:<database>` in the control database) is written after the jobs of everything before it
are stored. A feed that rewinds, or another daemon that has read the same rows, makes the same job ids and bodies
again: one document. A trigger that comes to a database that is followed joins at the follower's position; the first
one begins at the database's present state, or at its beginning where the database did not exist yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from couchjobs.couch.changes import Change, ChangesFollower, Page, current_sequence
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import generation
from couchjobs.couch.settle import settle_allowed
from couchjobs.errors import NotFound, TooLarge, Unavailable, Unreadable
from couchjobs.jobs.ids import event_id
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import new_job
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.trigger import EventTrigger

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_LOOK_AGAIN_S = 0.5
_SURELY_MISSING = 3
_REMEMBERED = 10_000
CHECKPOINT = "checkpoint:"


class EventFollower:
    """Follows the database of one doctype and fires the triggers that name it. `run` goes on until it is cancelled."""

    def __init__(self, connection: Connection, db: Prefixer, doctype: str, firing: Firing) -> None:
        self.triggers: Sequence[EventTrigger] = ()
        self._db = db
        self._doctype = doctype
        self._firing = firing
        self._database = connection.database(db.database(doctype))
        self._control = connection.control
        self._writer = connection.writer(self._control.name)
        self._heartbeat_s = connection.settings.feed_heartbeat
        self._checkpoint = self._new_checkpoint()
        self._created: dict[str, str] = {}

    async def run(self) -> None:
        """Follow the database; one that does not exist yet is waited for, and then read from its beginning."""
        missing = 0
        while True:
            try:
                present = await current_sequence(self._database)
                missing = 0
                await self._follow(present)
            except NotFound:
                missing += 1
                if missing == _SURELY_MISSING or (missing == 1 and await self._stored() is None):
                    self._checkpoint = await self._stored() or self._new_checkpoint()
                    await self._save("0")
                    _logger.info("database is waited for", database=self._database.name)
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _stored(self) -> Document | None:
        try:
            return await self._control.find(self._checkpoint["_id"])
        except NotFound as error:
            raise Unavailable(str(error), 404) from error

    async def _follow(self, present: str) -> None:
        stored = await self._stored()
        if stored is not None:
            self._checkpoint = stored
        else:
            self._checkpoint = self._new_checkpoint()
            await self._save(present)
        _logger.info("following", database=self._database.name, since=self._checkpoint["seq"])
        follower = ChangesFollower(self._database, self._checkpoint["seq"], heartbeat_s=self._heartbeat_s)
        while True:
            page = await follower.next_page()
            await self._fire(page)
            await self._save(page.last_seq)

    async def _save(self, seq: str) -> None:
        while True:
            self._checkpoint = {**self._checkpoint, "seq": seq}
            answer = await settle_allowed(self._writer, self._checkpoint)
            if answer.stored:
                self._checkpoint["_rev"] = answer.rev
                return
            self._checkpoint = await self._stored() or self._new_checkpoint()

    def _new_checkpoint(self) -> Document:
        return {
            "_id": CHECKPOINT + self._database.name,
            "domain": self._db.domain,
            "prefix": self._db.db_prefix,
            "doctype": self._doctype,
        }

    async def _fire(self, page: Page) -> None:
        triggers = self.triggers
        verbs: dict[str, str] = {}
        wanted: list[Change] = []
        for change in page.changes:
            if change.doc_id.startswith("_design/"):
                continue
            verb = verbs[change.doc_id] = self._verb(change)
            if any(trigger.rules.may_match(self._doctype, verb, change.doc_id) for trigger in triggers):
                wanted.append(change)
        missing = {change.doc_id: change for change in wanted}
        async for documents in self._database.revisions([(change.doc_id, change.rev) for change in wanted], revs=True):
            for document in documents:
                missing.pop(document["_id"], None)
            await self._fire_all(triggers, verbs, documents)
        late = [found for change in missing.values() if (found := await self._read_surely(change)) is not None]
        await self._fire_all(triggers, verbs, late)

    async def _read_surely(self, change: Change) -> Document | None:
        """Return the document of a row that the copy asked first does not have; None where a later row tells more.

        Raises:
            Unavailable: no copy that answers now has it.
        """
        try:
            return await self._database.get(change.doc_id, rev=change.rev, revs=True)
        except (TooLarge, Unreadable):
            return None
        except NotFound:
            present = await self._database.find(change.doc_id)
            if present is not None and generation(present["_rev"]) < generation(change.rev):
                raise Unavailable(f"{change.doc_id} in {self._database.name}: {change.rev} is not to be had") from None
            return None

    async def _fire_all(
        self, triggers: Sequence[EventTrigger], verbs: dict[str, str], documents: list[Document]
    ) -> None:
        parents = await self._parents([doc for doc in documents if verbs[doc["_id"]] != "CREATED"])
        firings: list[Awaitable[None]] = []
        debounced: set[str] = set()
        for document in documents:
            document.pop("_revisions", None)
            verb, old = verbs[document["_id"]], parents.get(document["_id"])
            for trigger in triggers:
                if trigger.id in debounced or not trigger.rules.matches(self._doctype, verb, document, old):
                    continue
                if trigger.infos.debounce:
                    debounced.add(trigger.id)
                make_job = partial(self._job, trigger, verb, document, old)
                firings.append(self._firing.fire(trigger.infos, make_job))
        results = await asyncio.gather(*firings, return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    def _verb(self, change: Change) -> str:
        if change.deleted:
            return "DELETED"
        if not change.rev.startswith("1-") or self._created.setdefault(change.doc_id, change.rev) != change.rev:
            return "UPDATED"
        if len(self._created) > _REMEMBERED:
            del self._created[next(iter(self._created))]
        return "CREATED"

    async def _parents(self, documents: list[Document]) -> dict[str, Document]:
        """Return the documents before these, by id; one that compaction took, or that was deleted, is left out."""
        wanted: list[tuple[str, str | None]] = []
        for document in documents:
            revisions = document["_revisions"]
            if len(revisions["ids"]) > 1:
                wanted.append((document["_id"], f"{revisions['start'] - 1}-{revisions['ids'][1]}"))
        found = await self._database.get_revisions(wanted)
        return {document["_id"]: document for document in found if not document.get("_deleted")}

    def _job(self, trigger: EventTrigger, verb: str, document: Document, old: Document | None) -> Job:
        event: dict[str, Any] = {"domain": self._db.domain, "verb": verb, "doc": document}
        if self._db.prefix:
            event["prefix"] = self._db.prefix
        if old is not None:
            event["old"] = old
        job_id = event_id(self._doctype, document["_id"], document["_rev"], trigger.infos.id)
        job = new_job(self._db, trigger.infos.job_request_with_event(event, id=job_id))
        job.queued_at = None  # no time that all daemons would agree on; the claim fills it in
        return job
