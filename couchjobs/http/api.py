"""What the routes have in common: the tenant, and what works for it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from couchjobs.broker.runtime import Runtime
from couchjobs.client import Couchjobs
from couchjobs.cluster.peers import tenants_of
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import CouchjobsError
from couchjobs.http.jsonapi import ApiError
from couchjobs.jobs.freshness import Freshness
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.workers.pushing import Pusher


class Api:
    """What the routes of one tenant share."""

    def __init__(self, connection: Connection, runtime: Runtime | None = None, base: str = "") -> None:
        """Take the tenant of the connection's settings.

        Args:
            connection: to CouchDB.
            runtime: what the daemon of this process runs jobs with; None: there is none here.
            base: what the paths of the tenant begin with.
        """
        self.base = base
        self.is_of_many = False
        """Whether it also stands for all the tenants of this process."""
        self.presence = runtime.presence if runtime else None
        self.stats = runtime.stats if runtime else None
        self._runtime = runtime
        self.connection = connection
        self.settings = connection.settings
        self.db = connection.settings.tenant
        self.client = Couchjobs.over(connection)
        self.pusher = Pusher(connection)
        self.scheduler = CouchScheduler(connection)
        self.freshness = Freshness(connection, self.db)

    @property
    def feed_age_s(self) -> float | None:
        """Return for how long the feed of jobs has not been answered, 0 while it is well; None: nobody follows it."""
        if self._runtime is None:
            return None
        followers = [lane.follower for lane in self._runtime.producer.lanes if lane.follower is not None]
        return max((one.unanswered_s for one in followers), default=None)

    @property
    def is_stopping(self) -> bool:
        """Return whether the daemon of this process claims nothing more."""
        return self._runtime is not None and not self._runtime.producer.is_open

    def serves(self, daemon: Document) -> bool:
        """Return whether a daemon, by its document, serves the tenant."""
        return self.is_of_many or self.db.key in tenants_of(daemon)

    async def queue_len(self, worker: str) -> int:
        """Return how many jobs of a worker type are queued."""
        return await self.client.queue_len(worker)

    async def all(self, ids: Iterable[str], change: Callable[[str], Awaitable[object]], together: int) -> int:
        """Change all of these, some together; return of how many that was taken, the others being gone, or not his."""
        changed, rest = 0, iter(ids)
        while part := [*itertools.islice(rest, together)]:
            found = await asyncio.gather(*map(change, part), return_exceptions=True)
            for one in found:
                if isinstance(one, BaseException) and not isinstance(one, CouchjobsError | ApiError):
                    raise one
            changed += sum(not isinstance(one, BaseException) for one in found)
        return changed


API: web.AppKey[Api] = web.AppKey("api", Api)
