"""Rendezvous hashing: all daemons agree on who has the first right to something, without asking one another.

Where a daemon comes or goes, only what it had changes hands. Source: Thaler and Ravishankar, "A Name-Based Mapping
Scheme for Rendezvous", 1996.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from hashlib import blake2b

BUCKETS = 512
"""Into so many parts jobs are divided, each of which is assigned to one daemon: see `bucket`."""


def first_right(key: str, daemons: Sequence[str]) -> str | None:
    """Return the daemon that has the first right to `key`, None where there are no daemons."""
    if len(daemons) < 2:
        return daemons[0] if daemons else None
    text = key.encode("utf-8", "surrogatepass")
    return max(daemons, key=lambda daemon: _weight(text, daemon))


def rank(daemon: str, key: str, others: Sequence[str]) -> int:
    """Return how many of the others come before `daemon` in the right to `key`."""
    text = key.encode("utf-8", "surrogatepass")
    own = _weight(text, daemon) if others else (b"", daemon)
    return sum(_weight(text, other) > own for other in others)


def _weight(text: bytes, daemon: str) -> tuple[bytes, str]:
    return blake2b(text, key=daemon.encode()[:64], digest_size=8).digest(), daemon


def whole(tenant: str) -> str:
    """Return the key of the right to all of a tenant, by its key."""
    return f"tenant:{tenant}"


def bucket(key: str) -> int:
    """Return which part of all jobs the one with this id belongs to. It costs a hundredth of asking for each job."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % BUCKETS


def buckets_of(daemon: str, daemons: Sequence[str]) -> frozenset[int]:
    """Return the buckets to which `daemon` has the first right among these."""
    return frozenset(number for number in range(BUCKETS) if first_right(f"jobs:{number}", daemons) == daemon)
