"""What a daemon has the first right to, among those that serve the same tenant.

Daemons of one tenant share everything of it: jobs by their ids, triggers and feeds one by one. Those that serve many
leave a tenant as a whole to one of them, and help where that does not get along: a tenant at rest needs nobody's
attention but one daemon's. Where daemons of both kinds serve a tenant, those that serve it alone come first, for all of
it: each daemon must come to the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator

from couchjobs.cluster.partition import Partition
from couchjobs.cluster.peers import Peer, Peers
from couchjobs.cluster.presence import Presence
from couchjobs.cluster.rendezvous import rank, whole
from couchjobs.couch.connection import Connection
from couchjobs.prefixer import Prefixer


def rank_of_whole(daemon: str, tenant: str, others: Collection[tuple[str, Peer]]) -> int:
    """Return how many of the others come before a daemon of many tenants in the right to all of one, by its key."""
    alike = [name for name, peer in others if peer.serves_many]
    return len(others) - len(alike) + rank(daemon, whole(tenant), alike)


class Daemon:
    """One daemon, for one tenant. `join` before use, `leave` after."""

    def __init__(self, connection: Connection, db: Prefixer, presence: Presence | None = None) -> None:
        """Be there for that tenant alone, unless a presence is given, which then others see to."""
        self._is_alone = presence is None
        self.presence = presence or Presence(connection, db)
        self.id = self.presence.id
        self.db = db
        self.settings = connection.settings
        self.partition = Partition(self.presence, db.key)

    async def join(self) -> None:
        """Say that this daemon lives; know the others when this returns.

        Raises:
            NotFound: there is no control database; `couchjobs init` makes it.
        """
        if self._is_alone:
            await self.presence.join()

    async def leave(self) -> None:
        """Say that this daemon has gone."""
        if self._is_alone:
            await self.presence.leave()

    async def take_triggers(self, takes: bool) -> None:
        """Say whether this daemon fires triggers."""
        if self._is_alone:
            await self.presence.take_triggers(takes)

    async def take_jobs(self, worker_types: Iterable[str], slots: int) -> None:
        """Say for which worker types this daemon claims jobs, and how many at once; none and 0: no longer."""
        names = set(worker_types)
        self.partition.take(names)
        if self._is_alone:
            await self.presence.take_jobs(names, slots)

    @property
    def peers(self) -> Peers:
        """Return the other daemons, of whatever tenant."""
        return self.presence.peers

    @property
    def sweep_interval(self) -> float:
        """Return how often is looked for what no feed tells of, in seconds."""
        return self.presence.sweep_interval

    @property
    def paused(self) -> frozenset[str]:
        """Return the worker types of which no job is to be claimed now."""
        return self.presence.pauses.of(self.db.key)

    def _others(self) -> Iterator[tuple[str, Peer]]:
        return self.peers.living(self.db.key)

    def living(self, worker_type: str | None = None) -> list[str]:
        """Return this daemon, and the other living ones of the tenant: those with that worker, if one is given."""
        others = (name for name, peer in self._others() if worker_type is None or worker_type in peer.worker_types)
        return [self.id, *others]

    def declared_elsewhere(self) -> frozenset[str]:
        """Return the triggers that the code of other living daemons of the tenant declares."""
        return frozenset[str]().union(*(peer.declares for _, peer in self._others()))

    def others_read_zones_differently(self) -> bool:
        """Return whether another daemon that fires triggers may read a local time differently."""
        return any(peer.schedules and peer.zones != self.presence.zones for _, peer in self._others())

    async def partition_changes(self, known: int) -> None:
        """Return as soon as the partition is another one than that of the version `known`."""
        while self.partition.version() == known:  # noqa: ASYNC110  time alone makes it so
            await asyncio.sleep(self.settings.look_interval)

    def listen(self) -> asyncio.Event:
        """Return an event that is set whenever a daemon comes or goes."""
        return self.presence.listen()

    def fires(self, key: str) -> bool:
        """Return whether this daemon, among those that fire triggers, has the first right to one, or to a feed.

        Daemons of which only old documents are known do not count: two that fire the same make the same job, but one
        that has died fires nothing.
        """
        return self.rank_for(key) == 0

    def rank_for(self, key: str) -> int | None:
        """Return how many daemons come before this one in the right to fire something; None: this one fires nothing."""
        if not self.presence.schedules:
            return None
        others = [(name, peer) for name, peer in self._others() if peer.schedules and peer.moved]
        if self.presence.serves_many:
            return rank_of_whole(self.id, self.db.key, others)
        return rank(self.id, key, [name for name, peer in others if not peer.serves_many])

    def answers_for(self, daemon: str, worker_types: Collection[str] = ()) -> bool:
        """Return whether it is this daemon, among those that claim jobs, that puts right what a dead one has left.

        `worker_types`: only daemons that claim jobs of one of these count; empty: of any.
        """
        others = [
            (name, peer)
            for name, peer in self._others()
            if peer.moved and (peer.worker_types.intersection(worker_types) if worker_types else peer.worker_types)
        ]
        if self.presence.serves_many:
            return rank_of_whole(self.id, self.db.key, others) == 0
        return rank(self.id, f"dead:{daemon}", [name for name, peer in others if not peer.serves_many]) == 0

    async def is_surely_dead(self, daemon: str) -> bool:
        """Return whether a daemon is dead, having read its document once more: the feed may be behind."""
        return await self.presence.is_surely_dead(daemon)
