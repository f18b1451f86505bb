"""Firing an @event trigger for documents that are there already, each once, because somebody wants that.

A document of which the trigger has a job still, of whatever revision, does not fire again. The jobs have the ids that
the feed's firings of the same revisions have: what is backfilled does not fire when a feed shows it later. A document
counts as CREATED; of a rule that is for updates alone, as UPDATED without the one before. Deletions are not looked for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.absence import is_surely_gone
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import BadDocumentError, ConfigurationError, HookError, NotFound, Refused, Unavailable
from couchjobs.jobs.job import Job
from couchjobs.jobs.lanes import stores
from couchjobs.jobs.places import HIGHEST
from couchjobs.jobs.request import PushResult
from couchjobs.scheduler.debounce import Debouncer
from couchjobs.scheduler.event_jobs import CREATED, UPDATED, event_of, job_of, without_proof
from couchjobs.scheduler.patterns import Patterns
from couchjobs.scheduler.sources import read_sources
from couchjobs.scheduler.trigger import EventTrigger, new_trigger
from couchjobs.triggers.infos import TriggerInfos

_TOGETHER = 500
"""Firings that are stored together: one batch of the writer."""


def _document_of(job_id: str) -> int:
    """Return what tells the document of a firing from others: its job's id without the revision, hashed."""
    name, _, rest = job_id.rpartition(":")
    return hash((name.rpartition(":")[0], rest))


@dataclass(slots=True)
class Backfilled:
    """How many documents a trigger fires for, and what came of them."""

    matching: int = 0
    """Of those that were looked at: all, unless a limit was reached."""
    fired: int = 0
    there: int = 0
    """Those whose jobs were there already."""
    refused: int = 0
    """Those whose jobs no daemon could run; the log says why."""


class Backfill:
    """The backfill of one trigger. The constructor does not touch the network.

    Raises:
        ConfigurationError: it is not fired by events, or disabled.
    """

    def __init__(self, connection: Connection, infos: TriggerInfos) -> None:
        self._connection = connection
        self._db = connection.settings.tenant
        trigger = new_trigger(self._db, infos)
        if not isinstance(trigger, EventTrigger):
            raise ConfigurationError(f"trigger {infos.id!r} is an {infos.type}: only an @event can be backfilled")
        if infos.disabled:
            raise ConfigurationError(f"trigger {infos.id!r} is disabled: enable it first")
        self._trigger = trigger
        self._broker = CouchBroker(connection)
        self._doctypes: list[str] = []

    async def count(self) -> Backfilled:
        """Return how many documents match, and of how many of them there is a job already; nothing is fired.

        Raises:
            ConfigurationError: events may not come from one of its databases.
        """
        await self._check_sources()
        done, fired = Backfilled(), await self._fired()
        async for jobs in self._pages():
            done.matching += len(jobs)
            done.there += sum(_document_of(job.id) in fired for job in jobs)
        return done

    async def _fired(self) -> set[int]:
        """Return the documents of which the trigger has a job, of whatever revision, as hashes."""
        trigger_id, found = self._trigger.id, set[int]()
        for store in stores(self._connection, self._db):
            async for rows in store.database.view_pages("jobs/by_trigger", [trigger_id], [trigger_id, HIGHEST]):
                found.update(_document_of(row["id"]) for row in rows)
        return found

    async def run(self, limit: int | None = None) -> Backfilled:
        """Fire for them, at most for `limit` that have not fired yet, in the order of their ids.

        Raises:
            ConfigurationError: events may not come from one of its databases.
            CouchError: CouchDB does not answer; run it again: what has fired does not fire again.
        """
        await self._check_sources()
        done = Backfilled()
        if self._trigger.infos.debounce:
            done.matching = (await self.count()).matching
            if done.matching and limit != 0:
                await Debouncer(self._connection, self._db, self._broker).fire(self._trigger.infos)
                done.fired = 1
            return done
        fired = await self._fired()
        async for jobs in self._pages():
            done.matching += len(jobs)
            left = deque(job for job in jobs if _document_of(job.id) not in fired)
            done.there += len(jobs) - len(left)
            while left and (limit is None or done.fired < limit):
                size = min(len(left), _TOGETHER if limit is None else limit - done.fired)
                for stored in await asyncio.gather(*(self._store(left.popleft()) for _ in range(size))):
                    done.fired += stored is not None and stored.created
                    done.there += stored is not None and not stored.created
                    done.refused += stored is None
            if limit is not None and done.fired >= limit:
                break
        return done

    async def _store(self, job: Job) -> PushResult | None:
        """Store the job; None where it never can be."""
        try:
            return await self._broker.pusher.store(job)
        except (BadDocumentError, HookError, Refused) as error:
            if isinstance(error, Refused):
                await self._broker.store_refused(job, str(error))
            job.logger.error("a firing makes no job, and never can", reason=str(error))  # noqa: TRY400
            return None

    async def _check_sources(self) -> None:
        sources, rules = await read_sources(self._connection, self._db), self._trigger.rules
        for doctype in sorted(rules.doctypes):
            if reason := await sources.refusal(doctype):
                raise ConfigurationError(reason)
        if reason := sources.pattern_refusal(rules.patterns):
            raise ConfigurationError(reason)
        existing = await Patterns(self._connection, self._db).doctypes(rules.patterns)
        self._doctypes = sorted(rules.doctypes | await sources.existing_of(rules.patterns, existing))

    async def _pages(self) -> AsyncIterator[list[Job]]:
        """Yield the jobs of all documents that the trigger fires for."""
        for doctype in self._doctypes:
            try:
                async for documents in self._connection.database(self._db.database(doctype)).all_docs():
                    jobs = [job for document in documents if (job := self._job(doctype, document)) is not None]
                    if jobs:
                        yield jobs
            except NotFound as error:
                if not await is_surely_gone(self._connection.database(self._db.database(doctype))):
                    raise Unavailable(f"{error}: run it again, what has fired does not fire again", 404) from error

    def _job(self, doctype: str, document: Document) -> Job | None:
        if self._db.database(doctype) in {self._db.database(lane) for lane in self._connection.settings.all_lanes}:
            document = without_proof(document)
        for verb in (CREATED, UPDATED):
            event = event_of(self._trigger, doctype, (verb,), document, None)
            if event is not None:
                largest = self._connection.settings.max_message_bytes
                return job_of(self._db, doctype, self._trigger, event, largest)
        return None
