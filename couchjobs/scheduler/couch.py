"""The scheduler whose triggers are documents of a CouchDB database."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from couchjobs.broker.couch import CouchBroker
from couchjobs.broker.protocol import check_kind
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import BadDocumentError, ClosedError, TriggerNotFoundError
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import new_job
from couchjobs.lifecycle import Lifecycle
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.attention import Attention
from couchjobs.scheduler.debounce import Debouncer
from couchjobs.scheduler.declared import declare, ids_declared_by
from couchjobs.scheduler.feeds import Feeds
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.rebuild import clean, rebuild
from couchjobs.scheduler.secrets import read_secret
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.ticker import Ticker
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import now
from couchjobs.triggers.delivery import charset_of, delivery_id, payload_of, read_delivery
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.waits import patiently


class CouchScheduler:
    """Fires the triggers of one tenant. The constructor does not touch the network."""

    def __init__(self, connection: Connection, db: Prefixer | None = None, attention: Attention | None = None) -> None:
        """Take the tenant of the settings unless `db` says another, and who watches the clock, unless this does."""
        self._attention = attention
        self._connection = connection
        self._db = db or connection.settings.tenant
        self._store = TriggerStore(connection, self._db)
        self.triggers = TriggerSet(self._store, connection.settings.feed_heartbeat)
        self._tasks = Supervisor()
        self._broker: CouchBroker | None = None
        self._ticker: Ticker | None = None
        self._feeds: Feeds | None = None
        self._debouncer: Debouncer | None = None
        self._life = Lifecycle("scheduler")

    async def start_scheduler(self, broker: CouchBroker) -> None:
        """Begin to fire into `broker`.

        Raises:
            ClosedError: the scheduler runs already, or has run.
            ConfigurationError: the broker is of another kind.
        """
        check_kind(broker, CouchBroker)
        settings = self._connection.settings
        async with self._life.starting() as to_close:
            self._broker = broker
            broker.daemon.presence.declares = ids_declared_by(broker.workers)
            to_close.push_async_callback(broker.daemon.leave)
            await broker.daemon.join()
            await patiently(lambda: self._declare(changes=True), settings.request_timeout)
            to_close.push_async_callback(broker.daemon.take_triggers, False)
            await broker.daemon.take_triggers(True)
            self._debouncer = Debouncer(self._connection, self._db, broker)
            firing = Firing(broker, self._debouncer)
            self._ticker = Ticker(self._connection, self.triggers, self._store, broker.daemon, firing, self._attention)
            self._feeds = Feeds(self._connection, self._db, self.triggers, broker.daemon, firing)
            to_close.push_async_callback(self._feeds.remember)
            to_close.push_async_callback(self.pause)
            self.resume()

    async def _declare(self, *, changes: bool) -> None:
        if self._broker is not None:
            elsewhere = self._broker.daemon.declared_elsewhere()
            await declare(self._store, self._broker.workers, elsewhere, changes=changes)

    async def _keep_declared(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await self._declare(changes=False)  # of two versions that run, the one that was started last is right

    def resume(self) -> None:
        """Begin, or go on, to look at triggers."""
        if self._ticker is not None and self._feeds is not None and self._broker is not None:
            interval_s = self._broker.daemon.sweep_interval
            self._tasks.start("follow triggers", self.triggers.follow)
            self._tasks.start("sweep triggers", lambda: self.triggers.sweep_for_ever(interval_s))
            self._tasks.start("keep declared schedules", lambda: self._keep_declared(interval_s))
            self._tasks.start("clock", self._ticker.run)
            self._tasks.start("feeds", self._feeds.run)

    async def pause(self) -> None:
        """Fire nothing until `resume`; what is known of triggers stays."""
        await self._tasks.stop()
        if self._feeds is not None:
            await self._feeds.stop()

    async def remember(self) -> None:
        """Write down what is to be known when somebody follows the sources again."""
        if self._feeds is not None:
            await self._feeds.remember()

    @property
    def is_quiet(self) -> bool:
        """Return whether nothing is to be fired before `next_in`, as far as is known."""
        if self._ticker is None or self._feeds is None or not self.triggers.loaded.is_set():
            return False
        return self._ticker.is_quiet and self._feeds.is_quiet

    async def has_more(self) -> bool:
        """Return whether CouchDB has changes of triggers or sources that have not been looked at.

        Raises:
            CouchError: it does not say.
        """
        return await self.triggers.has_more() or (self._feeds is not None and await self._feeds.has_more())

    def next_in(self) -> float | None:
        """Return in how many seconds the next tick comes, None where there is none."""
        return self._ticker.next_in() if self._ticker is not None else None

    def note_database(self, name: str) -> None:
        """Take note that a database has changed: perhaps it is one that is waited for."""
        if self._feeds is not None:
            self._feeds.note_database(name)

    def look_at_sources(self) -> None:
        """Look again which databases events may come from: their list has changed."""
        if self._feeds is not None:
            self._feeds.look_at_sources()

    def may_begin_to_follow(self, database: str) -> bool:
        """Return whether some trigger's pattern may name a database that is not followed yet."""
        own = database.removeprefix(f"{self._db.key}/") if self._db.key else database
        return any(trigger.rules.patterns and trigger.rules.names(own) for trigger in self.triggers.events.values())

    @property
    def sources(self) -> set[str]:
        """Return the names of the databases whose documents fire triggers."""
        return self._feeds.databases if self._feeds is not None else set()

    async def shutdown_scheduler(self) -> None:
        """Fire nothing more.

        Raises:
            ClosedError: the scheduler does not run.
        """
        await self._life.close()

    async def poll_scheduler(self, now: datetime) -> None:
        """Fire every tick that has come by `now`, as the scheduler does by itself.

        Raises:
            ClosedError: the scheduler does not run.
        """
        if not self._life.is_("running") or self._ticker is None:
            raise ClosedError(f"the scheduler is {self._life.state}")
        await self._ticker.fire_due(now)

    async def fire_webhook(self, trigger_id: str, payload: Any, *, manual: bool = False) -> Job | None:
        """Fire a @webhook trigger and return its job; the unguessable id is the secret.

        Raises:
            TriggerNotFoundError: there is no @webhook with that id, or it is disabled; nobody is told which.
            ClosedError: the scheduler is shut down. It need not run: whoever has a connection may fire.
        """
        return await self._fire_webhook(await self._webhook(trigger_id), payload, manual=manual)

    async def deliver(
        self, trigger_id: str, raw: bytes, content_type: str, headers: Mapping[str, str], *, manual: bool = False
    ) -> Job | None:
        """Fire a @webhook trigger by what was sent to it; return its job, or the one that a delivery has made already.

        Raises:
            TriggerNotFoundError: there is no @webhook with that id, or it is disabled; nobody is told which.
            RefusedDelivery: the trigger does not take it.
            BadDocumentError: the payload is larger than a message may be, or nothing that JSON holds.
        """
        infos = await self._webhook(trigger_id)
        delivery = read_delivery(infos)
        if delivery.secret is not None:
            delivery.check(
                raw, headers, await read_secret(self._connection, self._db, delivery.secret), now().timestamp()
            )
        kind = delivery.kind_of(content_type, is_empty=not raw)
        payload = payload_of(kind, raw, content_type, charset_of(headers))
        key = delivery.key(headers, payload)
        more: Document = {}
        if kept := delivery.kept(headers):
            more["payload_headers"] = kept
        if kind == "raw":
            body = {"content_type": content_type, "data": base64.b64encode(raw).decode()}
            more["_attachments"] = {payload["attachment"]: body}
        job_id = None if key is None else delivery_id(infos.id, key)
        return await self._fire_webhook(infos, payload, manual=manual, job_id=job_id, more=more)

    async def _webhook(self, trigger_id: str) -> TriggerInfos:
        if self._life.is_("closed"):
            raise ClosedError("the scheduler is closed")
        unknown = TriggerNotFoundError("no webhook with that id")
        try:
            infos = await self._store.get(trigger_id)
        except (TriggerNotFoundError, BadDocumentError):
            raise unknown from None
        if infos.type != "@webhook" or infos.disabled:
            raise unknown
        return infos

    async def _fire_webhook(
        self,
        infos: TriggerInfos,
        payload: Any,
        *,
        manual: bool,
        job_id: str | None = None,
        more: Document | None = None,
    ) -> Job | None:
        broker = self._broker or CouchBroker(self._connection, self._db)
        self._debouncer = self._debouncer or Debouncer(self._connection, self._db, broker)
        if infos.debounce:
            patience_s = self._connection.settings.push_timeout
            return await self._debouncer.fire(infos, payload, manual=manual, patience_s=patience_s)
        job = new_job(self._db, infos.job_request(payload=payload, manual=manual, id=job_id))
        job.document().update(more or {})
        stored = await broker.pusher.store(job)
        return None if stored is None else stored.job

    async def clean(self) -> None:
        """Drop all schedule state of the tenant; daemons that run make it anew, beginning now."""
        await clean(self._connection, self._db)

    async def rebuild(self, db: Prefixer) -> None:
        """Drop all schedule state and make it anew from the triggers and their jobs, with daemons running or not."""
        await rebuild(self._connection, db, TriggerStore(self._connection, db))

    async def add_trigger(self, db: Prefixer, infos: TriggerInfos) -> TriggerInfos:
        """Store a trigger and return it as it was stored.

        Raises:
            UnknownTriggerError: its type is not known.
            MalformedTriggerError: its arguments cannot be parsed.
            Conflict: there is a trigger with that id.
        """
        return await TriggerStore(self._connection, db).add(infos)

    async def get_trigger(self, db: Prefixer, trigger_id: str) -> TriggerInfos:
        """Return the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """
        return await TriggerStore(self._connection, db).get(trigger_id)

    async def delete_trigger(self, db: Prefixer, trigger_id: str) -> None:
        """Delete the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """
        await TriggerStore(self._connection, db).delete(trigger_id)

    async def get_all_triggers(self, db: Prefixer) -> list[TriggerInfos]:
        """Return all triggers that can be read, ordered by id."""
        return await TriggerStore(self._connection, db).all()
