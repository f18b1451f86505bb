"""Rendezvous hashing: all daemons agree on who has the first right to something, without asking one another.

Where a daemon comes or goes, only what it had changes hands. Source: Thaler and Ravishankar, "A Name-Based Mapping
Scheme for Rendezvous", 1996.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b


def first_right(key: str, daemons: Sequence[str]) -> str | None:
    """Return the daemon that has the first right to `key`, None where there are no daemons."""
    if len(daemons) < 2:
        return daemons[0] if daemons else None
    text = key.encode("utf-8", "surrogatepass")
    return max(daemons, key=lambda daemon: (blake2b(text, key=daemon.encode()[:64], digest_size=8).digest(), daemon))
