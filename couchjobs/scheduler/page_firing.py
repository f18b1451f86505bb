"""What one page of a database's changes makes fire.

A page is tried until all of it is stored, or never can be. What of it has fired meanwhile fires once all the same: a
debounced trigger would open one window after the other, and retention may have removed a job in the meantime.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from itertools import islice

from couchjobs.couch.answers import Found
from couchjobs.couch.changes import Change
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document, Witness, generation
from couchjobs.errors import Unavailable
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.between import Change as Left
from couchjobs.scheduler.between import changes_between
from couchjobs.scheduler.event_jobs import CREATED, UPDATED, event_of, job_of, makers_of, without_proof
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.loops import Loops
from couchjobs.scheduler.past import NEW, Past
from couchjobs.scheduler.trigger import EventTrigger

_logger = get_logger(__name__)
_MOST_FIRED = 20_000
"""Firings of a page that are remembered: 6 MB. What is in it may change again and again until it is done with."""
_LOOKS = 6
"""Times that a page waits for a document that one copy of a cluster has told of, and no other one knows: some 5 s."""
_SLICE_S = 0.02
"""Seconds of asking rules after which others have their turn."""

_Key = tuple[str, str, str]
"""Of one firing: the trigger, the document and its revision."""


class PageFiring:
    """Fires the triggers that name one database, page by page of its changes.

    Args:
        connection: to the server.
        db: the tenant.
        doctype: of the database.
        firing: stores the jobs.
        past: what of the database has gone by.
    """

    def __init__(self, connection: Connection, db: Prefixer, doctype: str, firing: Firing, past: Past) -> None:
        self._db = db
        self._doctype = doctype
        self._database = connection.database(db.database(doctype))
        self._holds_jobs = self._database.name in (db.database(lane) for lane in connection.settings.all_lanes)
        self._largest = connection.settings.max_message_bytes
        self._firing = firing
        self._past = past
        self.loops = Loops()
        self._fired: dict[_Key, None] = {}
        """What has fired of a page that is not done with, the newest."""
        self._one_page = asyncio.Lock()
        """Held while a page fires: of two feeds that bring one change, the second finds that it has gone by."""
        self._looks: dict[str, int] = {}
        """By document of that page of which nobody knows, how often it was looked for."""

    def done(self) -> None:
        """Take note that all pages are done with: none of them comes again."""
        self._fired.clear()
        self._looks.clear()

    async def fire(self, triggers: Sequence[EventTrigger], page: Sequence[Change]) -> None:
        """Fire these triggers for the changes of a page that are news, and take note that they have gone by.

        Raises:
            CouchError: not all of it could be; the page is to be tried again.
            QueueClosedError: the broker is shut down.
        """
        async with self._one_page:
            await self._fire(triggers, await self._less_what_is_behind(page))

    async def _less_what_is_behind(self, page: Sequence[Change]) -> Sequence[Change]:
        """Return a page without older revisions of documents of which a later one has been brought.

        A revision of a lower generation may be the later one all the same, where that one was deleted: then it stays.
        """
        behind = {change.doc_id for change in page if self._past.is_behind(change)}
        if not behind:
            return page
        present: dict[str, str | None] = {}
        for one in await self._database.read(behind):
            document = one.known(self._database.name)
            present[one.doc_id] = None if document is None else document["_rev"]
        return [
            change
            for change in page
            if not self._past.is_behind(change)
            or present.get(change.doc_id) == (None if change.deleted else change.rev)
        ]

    async def _fire(self, triggers: Sequence[EventTrigger], page: Sequence[Change]) -> None:
        verbs: dict[str, tuple[str, ...]] = {}
        wanted: list[Change] = []
        for change in page:
            if change.doc_id.startswith("_design/") or self._past.has(change):
                continue
            possible = verbs[change.doc_id] = self._past.verbs(change)
            if any(self._may_match(trigger, change.doc_id, possible) for trigger in triggers):
                wanted.append(change)
        asked: list[tuple[str, str | None]] = [(change.doc_id, change.rev) for change in wanted]
        changes = {change.doc_id: change for change in wanted}
        async for answers in self._database.revisions(asked, revs=True):
            documents = [one.document for one in answers if one.document is not None]
            failed = await self._fire_all(triggers, verbs, documents)
            self._past.add(changes[one["_id"]] for one in documents if one["_id"] not in failed)
            for error in failed.values():
                raise error
            for one in answers:
                if one.document is None:
                    await self._check_why_absent(one)
        self._past.add(page)

    def _may_match(self, trigger: EventTrigger, doc_id: str, verbs: tuple[str, ...]) -> bool:
        """Return whether the document is needed to know; where each change counts, also those before a deletion."""
        rules = trigger.rules
        known = {*verbs, CREATED, UPDATED} if rules.wants_each(self._doctype) else verbs
        return any(rules.may_match(self._doctype, verb, doc_id) for verb in known)

    async def _check_why_absent(self, answer: Found) -> None:
        """Look why a row's document is not to be had: a later row tells more, or it can never be read.

        Raises:
            Unavailable: CouchDB does not say what became of it, or a copy does not have it yet.
        """
        if answer.unreadable:
            _logger.error("document cannot be read, and fires nothing", document=answer.doc_id, reason=answer.reason)
            return
        answer.known(self._database.name)
        present = await self._database.find(answer.doc_id)
        if present is not None:
            is_behind = generation(present["_rev"]) < generation(answer.rev or "0-")
        else:  # it was deleted since, unless nobody has ever had that revision: purged, or the copies are behind
            looks = self._looks[answer.doc_id] = self._looks.get(answer.doc_id, 0) + 1
            row = Witness(answer.doc_id, answer.rev or "")
            is_behind = looks <= _LOOKS and bool(await self._database.missing_revisions([row]))
        if is_behind:
            raise Unavailable(f"{answer.doc_id} in {self._database.name}: {answer.rev} is not to be had")

    async def _fire_all(
        self, triggers: Sequence[EventTrigger], verbs: dict[str, tuple[str, ...]], documents: list[Document]
    ) -> dict[str, BaseException]:
        """Fire what these documents make fire; return, by document, why something of it could not be stored."""
        parents = await self._parents([doc for doc in documents if verbs[doc["_id"]] != NEW])
        each = [trigger for trigger in triggers if trigger.rules.wants_each(self._doctype)]
        chains = (
            {document["_id"]: chain for document in documents if (chain := self._past.left_out(document))}
            if each
            else {}
        )
        between = await changes_between(self._database, chains)
        firings: list[tuple[Awaitable[None], list[_Key]]] = []
        debounced: dict[str, list[_Key]] = {}
        began = time.monotonic()
        for document in documents:
            document.pop("_revisions", None)
            old, possible_now = parents.get(document["_id"]), verbs[document["_id"]]
            changes = _to_look_at(triggers, each, between.get(document["_id"], []), (possible_now, document, old))
            for some, possible, present, before in changes:
                now_is, was = self._shown(present), before and self._shown(before)
                for trigger in some:
                    if time.monotonic() - began > _SLICE_S:
                        await asyncio.sleep(0)
                        began = time.monotonic()
                    key = trigger.id, present["_id"], present["_rev"]
                    if key in self._fired:
                        continue
                    if trigger.id in debounced:
                        debounced[trigger.id].append(key)
                        continue
                    event = event_of(trigger, self._doctype, possible, now_is, was)
                    if event is None:
                        continue
                    keys = [key]
                    if trigger.infos.debounce:
                        debounced[trigger.id] = keys
                    make_job = partial(job_of, self._db, self._doctype, trigger, event, self._largest)
                    firings.append((self._firing.fire(trigger.infos, make_job, makers_of(present)), keys))
        return await self._stored_all(firings)

    async def _stored_all(self, firings: list[tuple[Awaitable[None], list[_Key]]]) -> dict[str, BaseException]:
        """Wait for the firings, and remember those that are stored; return, by document, why others are not."""
        failed: dict[str, BaseException] = {}
        results = await asyncio.gather(*(firing for firing, _ in firings), return_exceptions=True)
        for (_, keys), error in zip(firings, results, strict=True):
            if error is None:
                trigger_id, doc_id, _ = keys[0]
                self.loops.note(trigger_id, doc_id)
                self._fired.update(dict.fromkeys(keys))
            else:
                failed |= dict.fromkeys((doc_id for _, doc_id, _ in keys), error)
        for key in [*islice(self._fired, max(0, len(self._fired) - _MOST_FIRED))]:
            del self._fired[key]
        return failed

    def _shown(self, document: Document) -> Document:
        """Return what of a document an event may carry."""
        return without_proof(document) if self._holds_jobs else document

    async def _parents(self, documents: list[Document]) -> dict[str, Document]:
        """Return the documents before these, by id; one that compaction took, or that was deleted, is left out."""
        wanted: list[tuple[str, str | None]] = []
        for document in documents:
            revisions = document["_revisions"]
            if len(revisions["ids"]) > 1:
                wanted.append((document["_id"], f"{revisions['start'] - 1}-{revisions['ids'][1]}"))
        parents: dict[str, Document] = {}
        async for answers in self._database.revisions(wanted):
            for one in answers:
                parent = one.known(self._database.name)
                if parent is not None and not parent.get("_deleted"):
                    parents[one.doc_id] = parent
        return parents


def _to_look_at(
    triggers: Sequence[EventTrigger], each: list[EventTrigger], left_out: list[Left], last: Left
) -> list[tuple[Sequence[EventTrigger], *Left]]:
    """Return the changes of one document, and which triggers look at each: some at all of them, all at the last."""
    if not left_out:
        return [(triggers, *last)]
    verbs, document, old = last
    rest = [trigger for trigger in triggers if trigger not in each]
    then = verbs if document.get("_deleted") else (UPDATED,)  # what it was created as is among those that were left out
    return [*((each, *one) for one in left_out), (each, then, document, old), (rest, verbs, document, old)]
