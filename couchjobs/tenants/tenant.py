"""One tenant of a daemon of many: awake, with feeds, schedules and duties, or asleep, which costs nothing but memory.

It sleeps once all is done, and says when it must be woken: at the next tick, or when a job is due. What it knows stays.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from contextvars import copy_context

from structlog.contextvars import bind_contextvars

from couchjobs.broker.couch import CouchBroker
from couchjobs.broker.runtime import Runtime
from couchjobs.errors import ClosedError, CouchError
from couchjobs.figures import FigureKeeper
from couchjobs.installation import install
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.attention import Attention
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.sources import list_id

_logger = get_logger(__name__)


class Tenant:
    """One of the tenants of one daemon.

    Args:
        db: which.
        runtime: what runs its jobs, and those of the others.
        attention: what watches the clock for all.
    """

    def __init__(self, db: Prefixer, runtime: Runtime, attention: Attention) -> None:
        self.db = db
        self.context = copy_context()
        """That of its tasks: each of their lines in the log names the tenant."""
        self.context.run(bind_contextvars, tenant=db.key)
        self._connection = runtime.presence.connection
        self._runtime = runtime
        self._attention = attention
        self._broker, self._scheduler = self._new()
        self._started = False
        self.figures: FigureKeeper | None = None
        """For charts, once it has begun."""
        self.figures_at = 0.0
        """When they were last written."""
        self._turn = asyncio.Lock()
        self.is_awake = False
        self.was_slow = False
        """Whether it took long to begin, or to fail, when it was last woken."""
        self.tried_at = 0.0
        """When that was, by `time.monotonic()`."""
        self.due_at: float | None = time.monotonic()
        """When it is to be woken at the latest, by `time.monotonic()`; None: when something changes."""
        self.changed_at: float | None = None
        """When it was first heard, since it was woken, that one of its databases has changed."""
        self.last_change_at = 0.0
        """When that was last heard."""
        self.looked_after_at = 0.0
        """When its duties were last done."""

    @property
    def databases(self) -> set[str]:
        """Return the names of its databases, and of those whose documents fire its triggers."""
        triggers = self.db.database(self._connection.settings.triggers_doctype)
        return self._broker.databases | self._scheduler.sources | {triggers}

    def _new(self) -> tuple[CouchBroker, CouchScheduler]:
        scheduler = CouchScheduler(self._connection, self.db, self._attention)
        return CouchBroker(self._connection, self.db, self._runtime), scheduler

    def note_change(self, database: str) -> bool:
        """Take note that a database has changed; return whether that may be something to do."""
        if database not in self.databases and not self._scheduler.may_begin_to_follow(database):
            return False
        self._scheduler.note_database(database)
        self.last_change_at = time.monotonic()
        self.changed_at = self.changed_at or self.last_change_at
        return True

    def note_documents(self, ids: set[str]) -> None:
        """Take note that these documents of the control database have changed: the list of its sources, perhaps."""
        if list_id(self._connection, self.db) in ids:
            self._scheduler.look_at_sources()
            self.due_at = time.monotonic()

    async def wake(self) -> None:
        """Go on where it was; the first time, begin.

        Raises:
            CouchError: CouchDB does not let it begin.
        """
        async with self._turn:
            if self.is_awake:
                return
            self.due_at = None
            if self._started:
                self._broker.resume()
                self._scheduler.resume()
            else:
                await self._start()
            self.is_awake = True

    async def _start(self) -> None:
        for change in await install(self._connection, self.db):
            _logger.info(change, tenant=self.db.key)
        try:
            async with AsyncExitStack() as where_it_fails:
                await self._broker.start_workers(self._runtime.workers)
                where_it_fails.push_async_callback(self._broker.shutdown_workers, 0)
                await self._scheduler.start_scheduler(self._broker)
                where_it_fails.pop_all()
        except BaseException:  # what has failed to start is never started again
            self._broker, self._scheduler = self._new()
            raise
        self._started = True
        self.figures = FigureKeeper(self._connection, self.db, self._runtime.presence.id, self._broker.stats)

    async def look_after(self) -> None:
        """Do once what is done now and then.

        Raises:
            CouchError: CouchDB does not take it.
        """
        await self._broker.look_after()
        self.looked_after_at = time.monotonic()

    async def sleep_if_quiet(self, least_s: float) -> bool:
        """Sleep, if there is nothing to do, nor will be for so many seconds; return whether it does."""
        async with self._turn:
            if not self.is_awake:
                return True
            if not self._is_quiet or (in_s := self._next_in()) < least_s:
                return False
            self.changed_at = None
            await self._pause()
            if not self._is_quiet or await self._has_more():  # what was being done was cut off, or a row has come
                self._broker.resume()
                self._scheduler.resume()
                return False
            if in_s < float("inf"):  # what was asked for meanwhile stands
                self.due_at = min(self.due_at or float("inf"), time.monotonic() + in_s)
            self.is_awake = False
            return True

    @property
    def _is_quiet(self) -> bool:
        return self._broker.is_quiet and self._scheduler.is_quiet

    def _next_in(self) -> float:
        waits = (self._broker.next_in(), self._scheduler.next_in())
        return min((wait for wait in waits if wait is not None), default=float("inf"))

    async def _has_more(self) -> bool:
        try:
            return await self._broker.has_more() or await self._scheduler.has_more()
        except CouchError:
            return True

    async def _pause(self) -> None:
        await self._scheduler.pause()
        await self._broker.pause()

    async def stop(self) -> None:
        """Look for nothing any more, whatever is known; jobs that run go on."""
        async with self._turn:
            await self._pause()
            self.is_awake = False
            await self._scheduler.remember()

    async def write_figures(self) -> None:
        """Write down what was done, for charts."""
        self.figures_at = time.monotonic()
        if self.figures is not None:
            await self.figures.try_to_write()

    async def close(self, grace_s: float) -> None:
        """End it for good: running jobs may go on for so many seconds."""
        async with self._turn:
            with suppress(ClosedError):
                await self._scheduler.shutdown_scheduler()
            with suppress(ClosedError):
                await self._broker.shutdown_workers(grace_s)
            self.is_awake = False
            await self.write_figures()
