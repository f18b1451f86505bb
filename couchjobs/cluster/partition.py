"""Which jobs are assigned to a daemon: its partition of each worker type. The others leave them to it for a moment.

Partitions follow from the daemons that show life and from the ids of jobs, so that all daemons agree without asking one
another, more or less: where they do not, two try to claim a job, and one gets it. A daemon that stands still loses its
partition before it counts as dead, which harms nobody and helps its jobs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from couchjobs.cluster.peers import Peer
from couchjobs.cluster.presence import Presence
from couchjobs.cluster.rendezvous import BUCKETS, bucket, buckets_of, first_right, whole

_ALL = frozenset(range(BUCKETS))
_FRESH_BEATS = 2
"""Intervals without a beat after which a daemon has no partition: one may be late."""


class Partition:
    """The partition of one daemon, as it sees the others. `take` before use."""

    def __init__(self, presence: Presence, tenant: str) -> None:
        settings = presence.connection.settings
        self._daemon = presence.id
        self._peers = presence.peers
        self._serves_many = presence.serves_many
        self._tenant = tenant
        self._look_interval = settings.look_interval
        self._longest_silence = min(settings.dead_after, _FRESH_BEATS * settings.beat_interval)
        self._worker_types: frozenset[str] = frozenset()
        self._daemons: dict[str, tuple[str, ...]] = {}
        self._buckets: dict[str, frozenset[int]] = {}
        self._version = 0
        self._look_at = 0.0

    def take(self, worker_types: Iterable[str]) -> None:
        """Have a part of the jobs of these types, and of no others."""
        self._worker_types = frozenset(worker_types)
        self._look_at = 0.0

    def has(self, job_id: str, worker_type: str) -> bool:
        """Return whether the job is in the partition."""
        return self._peers.none or bucket(job_id) in self._buckets_of(worker_type)

    def may_have(self, job_id: str) -> bool:
        """Return the same of a job of which only the id is known: whether it is so for any of the worker types."""
        if self._peers.none:
            return True
        number = bucket(job_id)
        return any(number in self._buckets_of(worker_type) for worker_type in self._worker_types)

    def version(self) -> int:
        """Return a number that is another one when the partition has changed."""
        self._look()
        return self._version

    def _buckets_of(self, worker_type: str) -> frozenset[int]:
        self._look()
        return self._buckets.get(worker_type, frozenset())

    def _look(self) -> None:
        present = time.monotonic()
        if present < self._look_at:
            return
        self._look_at = present + self._look_interval
        peers = list(self._peers.living(self._tenant, self._longest_silence))
        daemons = {
            worker_type: self._sharing([(name, peer) for name, peer in peers if worker_type in peer.worker_types])
            for worker_type in self._worker_types
        }
        if daemons != self._daemons:
            buckets = {names: self._buckets_among(names) for names in {*daemons.values()}}
            self._daemons = daemons
            self._buckets = {worker_type: buckets[names] for worker_type, names in daemons.items()}
            self._version += 1

    def _sharing(self, others: list[tuple[str, Peer]]) -> tuple[str, ...]:
        """Return which daemons share the jobs of a type: those of the tenant alone, where there are any."""
        alone = sorted(name for name, peer in others if not peer.serves_many)
        if not self._serves_many:
            return (self._daemon, *alone)
        return () if alone else (self._daemon, *sorted(name for name, _ in others))

    def _buckets_among(self, names: tuple[str, ...]) -> frozenset[int]:
        """Return the buckets that are this daemon's among these daemons: where they serve many tenants, all or none."""
        if not self._serves_many:
            return buckets_of(self._daemon, names)
        return _ALL if names and first_right(whole(self._tenant), names) == self._daemon else frozenset()
