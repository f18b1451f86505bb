"""A daemon of many tenants: which of them are awake, and what wakes the others.

A tenant is woken when one of its databases changes, when its next tick or job is due, when a daemon has died that may
have left jobs behind, and now and then, for what nobody tells of. Of those that have nothing to do, the ones that were
active last stay awake, as many as there are feeds for; the others sleep. The daemon with the first right to a tenant
wakes it at once, the others a little later, in case that one does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from heapq import nlargest
from typing import Any

from couchjobs.broker.runtime import Runtime
from couchjobs.cluster.daemon import rank_of_whole
from couchjobs.cluster.peers import Tenants
from couchjobs.cluster.presence import Presence
from couchjobs.couch.connection import Connection
from couchjobs.couch.live_feeds import LiveFeeds
from couchjobs.couch.updates import DatabaseUpdates
from couchjobs.errors import ConfigurationError, CouchError
from couchjobs.figures import EVERY_S
from couchjobs.installation import install_control
from couchjobs.lifecycle import Lifecycle
from couchjobs.log import get_logger
from couchjobs.prefixer import USERS, Prefixer, escape
from couchjobs.scheduler.attention import Attention
from couchjobs.scheduler.sources import SOURCES
from couchjobs.supervisor import Supervisor
from couchjobs.tenants.named import Missed, Named, named_by
from couchjobs.tenants.places import Places
from couchjobs.tenants.tenant import Tenant
from couchjobs.waits import Signal, patiently
from couchjobs.workers.config import WorkersList
from couchjobs.workers.pool import ChildPool

_logger = get_logger(__name__)
_LOOK_S = 5.0
"""Seconds within which a tenant is noticed that comes or goes."""
_MISSED_FOR_S = 4.0
"""Seconds for which a tenant is not named by any look until it is dropped: two looks, where nothing hurries them."""
_WOKEN_TOGETHER = 16
"""Tenants that begin at once: each asks CouchDB some dozen things the first time."""
_MOST_SLOW = 32
"""Tenants that begin, beside those, and whose databases take long to answer, or never do."""
_SLOW_AFTER_S = 1.0
"""Seconds after which that is so; most begin within a tenth of it."""
_LINGER_S = 1.0
"""Seconds that a tenant stays awake after the last change, in any case: longer than it takes until one is told."""
_LONG_LINGER_S = 5.0
"""The same where nobody tells of changes, or another daemon comes first: to be woken again takes seconds there."""
_TRY_EACH_S = 5.0
"""Between two times that one is asked whether it has nothing to do."""
_FEEDS_EACH = 3
"""Feeds of a tenant that is awake: jobs, triggers, and mostly one more."""
_HELP_AFTER_S = 2.0
"""Seconds until the daemon with the second right wakes a tenant that has changed; twice that for the third, ..."""
_FIGURES_TOGETHER = 200
"""Tenants whose figures are written at once: one group commit; ten seconds later the next."""
_SLEEP_S = 90.0
"""A tenant that has nothing to do for less stays awake: to be woken costs CouchDB more than so long a watch."""
_MOST_AWAKE = 3
"""Times as many tenants as feeds are awake for that reason at most."""
_LOOK_AFTER_S = 900.0
"""Seconds between two looks at a tenant for what nobody tells of: lost claims, retention."""
_LOOK_AGAIN_S = 60.0
"""The same where the last one has failed."""
_MOST_LOOKED_FOR = 10_000
"""Names, some 1 MB; then the list of tenants may be read again for each of them."""
_WAKE_S = 0.1
"""Seconds at least for which one that has changed hands has its place among those that begin: 160 in a second.

A daemon that leaves has all those woken that it has served, and each looks for what it may have left.
"""
_LOOKED_AFTER_TOGETHER = 2
"""Tenants at a time: it is work for which nobody waits."""
_AGAIN_S = 5.0
"""Seconds until a tenant is woken again that could not begin."""
_LONGEST_WAIT_S = 5.0
"""Between two looks at who is due, where nothing has happened."""


class Host:
    """One such daemon: started once, closed once.

    Args:
        connection: to the server.
        workers: what it can do, for whomever.
        wanted: which tenants, as the option `--tenants` says it.
        pool: child processes for the functions; None: they run in this process.
    """

    def __init__(
        self, connection: Connection, workers: WorkersList, wanted: str, pool: ChildPool | None = None
    ) -> None:
        self.connection = connection
        self._named: Named = named_by(connection, wanted)
        self._presence = Presence(connection, None)
        self._sources_changed = self._presence.listen_to(SOURCES)
        self.runtime = Runtime(self._presence, workers, pool)
        self._attention = Attention()
        self._tenants: dict[str, Tenant] = {}
        self._ranks: dict[str, int] = {}
        """By key, how many daemons come before this one in the right to the tenant."""
        self._handed_over: set[str] = set()
        """Those that are to be woken for that alone; others come before them."""
        self._living: dict[str, Tenants] = {}
        """The daemons that live, and whom each of them serves."""
        self._looked_for: set[str] = set()
        """Databases of jobs that have changed, were nobody's, and have had the list of tenants read for that once."""
        self._missed = Missed(_MISSED_FOR_S)
        self._busy: dict[str, asyncio.Task[None]] = {}
        """By key, what wakes the tenant, or tries to have it sleep."""
        self._try_at: dict[str, float] = {}
        """By key, when to try next to have the tenant sleep."""
        self._news = Signal()
        self._places = Places(_WOKEN_TOGETHER, _MOST_SLOW, _SLOW_AFTER_S, self._news.set)
        self._look = Signal()
        self._jobs_database = f"/{escape(connection.settings.jobs_doctype)}"
        self._looked_after = 0
        self._tasks = Supervisor()
        self._life = Lifecycle("daemon of many tenants")
        self.id = self._presence.id
        self.workers = workers

    @property
    def tenants(self) -> list[Prefixer]:
        """Return those that are served now."""
        return [tenant.db for tenant in self._tenants.values()]

    @property
    def is_calm(self) -> bool:
        """Return whether nobody is being woken, or is to be."""
        return not self._busy and all(
            tenant.is_awake or tenant.due_at is None or tenant.due_at > time.monotonic()
            for tenant in self._tenants.values()
        )

    @property
    def awake(self) -> int:
        """Return how many tenants are awake."""
        return sum(tenant.is_awake for tenant in self._tenants.values())

    async def start(self) -> None:
        """Begin to serve the tenants that there are, and those that come.

        Raises:
            ConfigurationError: what names the tenants cannot be read.
            CouchError: CouchDB does not say which there are.
        """
        settings, server = self.connection.settings, self.connection.server
        async with self._life.starting() as to_close:
            for change in await patiently(lambda: install_control(self.connection), settings.request_timeout):
                _logger.info(change)
            server.live_feeds = LiveFeeds(settings.most_feeds, await server.max_open_shards())
            tenants = await patiently(self._named.tenants, settings.request_timeout)
            to_close.push_async_callback(self._write_figures)
            await self.runtime.start()
            to_close.push_async_callback(self.runtime.close)
            await self._presence.serve(self._named.told(tenants))
            await self._presence.take_jobs(self.runtime.workers.names(), self.runtime.producer.slots.count)
            await self._presence.take_triggers(True)
            to_close.push_async_callback(self._stop)
            await self._arrange(tenants)
            updates = DatabaseUpdates(server, self._databases, settings.feed_heartbeat)
            self._tasks.start("watch the clock", self._attention.watch)
            self._tasks.start("follow databases", lambda: self._follow(updates))
            self._tasks.start("look for tenants", self._look_for_tenants)
            self._tasks.start("watch daemons", self._watch_daemons)
            self._tasks.start("watch sources", self._watch_sources)
            self._tasks.start("wake tenants", self._run)
            self._tasks.start("keep figures", self._keep_figures)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Claim nothing more, let running jobs go on for `timeout` seconds, then put the others back in the queue.

        `timeout`: seconds; None: the setting `shutdown_timeout`.

        Raises:
            ClosedError: it does not run.
        """
        self.runtime.grace_s = self.connection.settings.shutdown_timeout if timeout is None else timeout
        await self._life.close()

    def stop_claiming(self) -> None:
        """Claim nothing more, from now on."""
        self.runtime.stop_claiming()

    def hurry(self) -> None:
        """Interrupt all running jobs now, for a shutdown that is under way."""
        self.runtime.hurry()

    async def _stop(self) -> None:
        self.runtime.stop_claiming()
        await self._tasks.stop()
        busy = [*self._busy.values()]
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await self._presence.take_triggers(False)
        await asyncio.gather(*(tenant.stop() for tenant in self._tenants.values()), return_exceptions=True)

    async def _keep_figures(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self._write_figures()

    async def _write_figures(self) -> None:
        """Write down what was done for tenants: so many at a time, those first that have waited longest."""
        news = [one for one in self._tenants.values() if one.figures is not None and one.figures.has_news]
        news.sort(key=lambda one: one.figures_at)
        await asyncio.gather(*(one.write_figures() for one in news[:_FIGURES_TOGETHER]))

    # --- which tenants there are ---

    def _databases(self) -> set[str]:
        return {name for tenant in self._tenants.values() for name in tenant.databases}

    async def _look_for_tenants(self) -> None:
        while True:
            await self._look.within(_LOOK_S)
            try:
                tenants = await self._named.tenants()
            except (ConfigurationError, CouchError) as error:
                _logger.warning("which tenants there are is not known now", reason=str(error))
                continue
            tenants += self._missed.too_shortly({key: one.db for key, one in self._tenants.items()}, tenants)
            if self._tenants and not tenants:
                _logger.warning("no tenant is named any more: all are dropped")
            await self._presence.serve(self._named.told(tenants))
            await self._arrange(tenants)

    async def _arrange(self, tenants: list[Prefixer]) -> None:
        """Have these tenants, and no others."""
        wanted = {db.key: db for db in tenants}
        for key, tenant in [*self._tenants.items()]:
            if tenant.db != wanted.get(key):
                del self._tenants[key]
                self._handed_over.discard(key)
                _logger.info("tenant dropped", tenant=key)
                self._begin(f"{key}\n", tenant, tenant.close(self.connection.settings.shutdown_timeout))
        spread = _LOOK_AFTER_S / max(1, len(wanted))
        for number, (key, db) in enumerate(wanted.items()):
            if key not in self._tenants and f"{key}\n" not in self._busy:
                tenant = self._tenants[key] = Tenant(db, self.runtime, self._attention)
                tenant.looked_after_at = time.monotonic() - number * spread
                _logger.debug("tenant taken on", tenant=key)
        self._rank()
        self._news.set()

    # --- what wakes them ---

    async def _follow(self, updates: DatabaseUpdates) -> None:
        live = self.connection.server.live_feeds
        async for names in updates.follow():
            changed = False
            if live is not None:
                live.are_told = updates.are_told
            for name in names:
                if live is not None:
                    live.tell(name)
                if name == USERS:
                    for one in self._tenants.values():
                        changed |= one.note_change(name)
                    continue
                owners = self._owners(name)
                if not owners:
                    self._note_unknown(name)
                for one in owners:
                    changed |= one.note_change(name)
            if changed:
                self._news.set()

    def _note_unknown(self, database: str) -> None:
        """Look which tenants there are, once for each database that may be a new one's: strangers' change often."""
        if database in self._looked_for or not f"/{database}".endswith(self._jobs_database):
            return
        if len(self._looked_for) >= _MOST_LOOKED_FOR:
            self._looked_for.clear()
        self._looked_for.add(database)
        self._look.set()

    def _owners(self, database: str) -> list[Tenant]:
        """Return whose database that may be, by its name: what is one's tenant may be another one's doctype."""
        parts = database.split("/")[:-1]
        keys = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
        return [tenant for key in keys if (tenant := self._tenants.get(key)) is not None]

    async def _watch_daemons(self) -> None:
        changed = self._presence.listen()
        while True:
            await changed.wait()
            changed.clear()
            self._rank()

    async def _watch_sources(self) -> None:
        while True:
            await self._sources_changed.wait()
            ids = self._sources_changed.take()
            for tenant in self._tenants.values():
                tenant.note_documents(ids)
            self._news.set()

    def _rank(self) -> None:
        """Find out anew which tenants are this daemon's; wake those that have changed hands, or may hold lost jobs."""
        present = time.monotonic()
        known = [*self._presence.peers.living()]
        peers = [(name, peer) for name, peer in known if peer.schedules and peer.moved]
        living = {name: peer.tenants for name, peer in known}  # one that was dead already seems to live for a while
        gone = [served for name, served in self._living.items() if name not in living]
        self._living = living
        if (live := self.connection.server.live_feeds) is not None:
            live.share(1 + sum(peer.serves_many for name, peer in known if name != self.id))
        ranks: dict[str, int] = {}
        for key, tenant in self._tenants.items():
            ranks[key] = rank_of_whole(self.id, key, [(name, peer) for name, peer in peers if key in peer.tenants])
            if any(key in served for served in gone) or ranks[key] != self._ranks.get(key):
                tenant.due_at = present
                if not tenant.is_awake:
                    self._handed_over.add(key)
        self._ranks = ranks
        self._news.set()

    async def _run(self) -> None:
        since = self._attention.since
        while True:
            if since != self._attention.since:  # the clock was set, or stood still: nothing is due when it was said
                since = self._attention.since
                for tenant in self._tenants.values():
                    tenant.due_at = time.monotonic()
            next_at = self._begin_due(time.monotonic())
            await self._news.within(max(0.0, next_at - time.monotonic()))

    def _begin_due(self, present: float) -> float:
        """Wake whom it is time to wake, those that have changed first, and have others sleep; return when to look."""
        next_at = present + _LONGEST_WAIT_S
        active = self._most_active()
        due: list[Tenant] = []
        for key, tenant in self._tenants.items():
            if key in self._busy:
                continue
            if tenant.is_awake:
                if tenant in active:
                    continue
                at = max(self._idle_at(key, tenant), self._try_at.get(key, 0.0))
                if at <= present:
                    self._begin(key, tenant, self._have_sleep(key, tenant))
            elif (at := self._wakes_at(key, tenant)) <= present:
                due.append(tenant)
                continue
            next_at = min(next_at, at)
        handed = self._handed_over
        due.sort(key=lambda one: (one.was_slow, one.db.key in handed, one.changed_at is None, one.tried_at))
        for tenant in due[: self._places.free]:  # the end of one wakes this loop again
            if not tenant.was_slow or not self._places.many_are_slow:
                self._begin(tenant.db.key, tenant, self._wake(tenant))
        return next_at

    def _wakes_at(self, key: str, tenant: Tenant) -> float:
        """Return when a tenant that sleeps is to be woken; it is asked of all of them, again and again."""
        at = float("inf") if tenant.due_at is None else tenant.due_at
        if tenant.changed_at is not None:
            at = min(at, tenant.changed_at + _HELP_AFTER_S * self._ranks.get(key, 0))
        if self._looked_after < _LOOKED_AFTER_TOGETHER:
            at = min(at, tenant.looked_after_at + _LOOK_AFTER_S)
        return at

    def _idle_at(self, key: str, tenant: Tenant) -> float:
        live = self.connection.server.live_feeds
        is_woken_at_once = live is not None and live.are_told and not self._ranks.get(key)
        linger = _LINGER_S if is_woken_at_once else _LONG_LINGER_S
        return max(tenant.last_change_at, tenant.tried_at) + linger

    def _most_active(self) -> set[Tenant]:
        """Give the feeds that there are to those that were active last; return them, less those of other daemons.

        Those of which this daemon comes first are before others.
        """
        live = self.connection.server.live_feeds
        if live is None:
            return set()
        places = max(1, live.most // _FEEDS_EACH)
        awake = [
            (not self._ranks.get(key), one.last_change_at, key) for key, one in self._tenants.items() if one.is_awake
        ]
        first = nlargest(places, awake)
        live.prefer({name for _, _, key in first for name in self._tenants[key].databases})
        return {self._tenants[key] for is_own, _, key in first if is_own}

    def _begin(self, key: str, tenant: Tenant, work: Coroutine[Any, Any, None]) -> None:
        name = f"tenant {key.strip()}"
        task = self._busy[key] = asyncio.create_task(work, name=name, context=tenant.context.copy())

        def end(_: asyncio.Task[None]) -> None:
            del self._busy[key]
            self._news.set()

        task.add_done_callback(end)

    async def _wake(self, tenant: Tenant) -> None:
        is_handed_over = tenant.db.key in self._handed_over
        self._handed_over.discard(tenant.db.key)
        tenant.changed_at, tenant.tried_at = None, time.monotonic()
        try:
            with self._places.taken():
                await tenant.wake()
                if is_handed_over:
                    await asyncio.sleep(tenant.tried_at + _WAKE_S - time.monotonic())
        except CouchError as error:
            _logger.warning("tenant cannot begin, and is tried again", tenant=tenant.db.key, reason=str(error))
            tenant.due_at = time.monotonic() + _AGAIN_S
            return
        except Exception:
            _logger.exception("tenant cannot begin, and is tried again", tenant=tenant.db.key)
            tenant.due_at = time.monotonic() + _LOOK_AFTER_S
            return
        finally:
            tenant.was_slow = time.monotonic() - tenant.tried_at > _SLOW_AFTER_S
        if tenant.looked_after_at + _LOOK_AFTER_S <= time.monotonic():
            await self._look_after(tenant)

    async def _look_after(self, tenant: Tenant) -> None:
        self._looked_after += 1
        try:
            await tenant.look_after()
        except CouchError as error:
            _logger.info("tenant is looked after again", tenant=tenant.db.key, reason=str(error))
            tenant.looked_after_at = time.monotonic() - _LOOK_AFTER_S + _LOOK_AGAIN_S
        except Exception:
            _logger.exception("tenant cannot be looked after", tenant=tenant.db.key)
            tenant.looked_after_at = time.monotonic()
        finally:
            self._looked_after -= 1

    async def _have_sleep(self, key: str, tenant: Tenant) -> None:
        many = self.awake > _MOST_AWAKE * self.connection.settings.most_feeds
        if await tenant.sleep_if_quiet(_LINGER_S if many else _SLEEP_S):
            self._try_at.pop(key, None)
        else:
            self._try_at[key] = time.monotonic() + _TRY_EACH_S
