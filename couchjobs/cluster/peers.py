"""The other daemons, as one of them sees them: who lives, who is dead, who has gone.

Every daemon counts in its document while it lives. The count is timed by the observer's own monotonic clock, so that
the clocks of hosts are never compared: one that stands still for `dead_after` belongs to a dead daemon. Time in which
the observer could see nothing does not count.

A daemon also tells in its document which others it has seen standing still, at which count and for how long. One that
has just been started believes that of a count that has not moved since: so a death that its predecessor was watching,
and then died itself, is not timed anew from the start.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from couchjobs.couch.database import Document
from couchjobs.errors import ConfigurationError
from couchjobs.jobs.job import CLIENT_WORKER
from couchjobs.prefixer import Prefixer, escape

_LONGEST_S = 3600.0
"""Seconds that a daemon may ask to be still."""
PREFIX = "daemon:"
"""What the ids of daemon documents begin with."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """Those that a daemon serves: by their keys, the beginnings of the names of their databases. None: all."""

    keys: frozenset[str] | None

    def __contains__(self, key: str) -> bool:
        return self.keys is None or key in self.keys

    def written(self) -> list[str] | str:
        """Return how the document of a daemon says it."""
        return "all" if self.keys is None else sorted(self.keys)


@dataclass(slots=True)
class Peer:
    """Another daemon. One that was there before the observer lives for certain once its count has been seen to move."""

    worker_types: frozenset[str]
    schedules: bool
    tenants: Tenants
    beat: object
    seen: float
    moved: bool
    declares: frozenset[str] = frozenset()
    """The triggers that its code declares."""
    zones: str = ""
    """A digest of its data of time zones; empty where it has not said."""
    still_since: float | None = None
    """Since when it has stood still according to others."""
    dead_after: float = 0.0
    """Seconds that it may be still by its own settings; 0 where it has not said."""
    serves_many: bool = False
    """Whether it is told its tenants by a list, and leaves each as a whole to one daemon."""


class Peers:
    """All daemons but `own`."""

    def __init__(self, own: str, dead_after: float) -> None:
        self._own = own
        self._dead_after = dead_after
        self._peers: dict[str, Peer] = {}
        self._absent: dict[str, float] = {}
        self._sees_since = time.monotonic()

    @property
    def none(self) -> bool:
        """Return whether no other daemon is known."""
        return not self._peers

    def note(self, documents: Iterable[Document], *, moved: bool) -> bool:
        """Take note of daemon documents, as read at the start or as changed since; return whether one is new."""
        new = False
        documents = list(documents)
        for document in documents:
            daemon = document["_id"].removeprefix(PREFIX)
            beat = document.get("beat", 0)
            known = self._peers.get(daemon)
            if daemon != self._own and (known is None or known.beat != beat):
                new |= known is None
                self._absent.pop(daemon, None)
                self._peers[daemon] = _read(document, beat, moved=moved)
        for document in documents:
            self._believe(document.get("still"))
        return new

    def _believe(self, told: object) -> None:
        """Take note of what a daemon tells of others that stand still."""
        for daemon, still in told.items() if isinstance(told, dict) else ():
            known = self._peers.get(daemon)
            if known is None or not isinstance(still, dict) or still.get("beat") != known.beat:
                continue
            seconds = still.get("seconds")
            if isinstance(seconds, int | float) and seconds >= 0:
                since = time.monotonic() - seconds
                known.still_since = since if known.still_since is None else min(since, known.still_since)

    def still(self) -> dict[str, dict[str, object]]:
        """Return the daemons that have been still for a while, as this daemon tells others of them."""
        seconds = {daemon: self._silence_of(peer) for daemon, peer in self._peers.items()}
        return {
            daemon: {"beat": self._peers[daemon].beat, "seconds": round(silence, 1)}
            for daemon, silence in seconds.items()
            if silence > self._patience(self._peers[daemon]) / 2
        }

    def gone(self, daemon: str) -> None:
        """Take note that the document of a daemon is no longer there."""
        if self._peers.pop(daemon, None) is not None:
            self._absent[daemon] = time.monotonic()

    def forget(self, daemon: str) -> None:
        """Forget a daemon of which nothing is left."""
        self._peers.pop(daemon, None)
        self._absent.pop(daemon, None)

    def blinded(self) -> None:
        """Take note that nothing could be seen until now."""
        self._sees_since = time.monotonic()
        for peer in self._peers.values():
            peer.still_since = None

    def beat_of(self, daemon: str) -> object:
        """Return the last count of a daemon that was seen, None where it is not known."""
        return self._peers[daemon].beat if daemon in self._peers else None

    def living(self, tenant: str | None = None, within: float | None = None) -> Iterator[tuple[str, Peer]]:
        """Yield the daemons that have been still for less than `within` seconds; None: so long as makes them dead.

        `tenant`: the key of one whose daemons are wanted; None: all.
        """
        return (
            (daemon, peer)
            for daemon, peer in self._peers.items()
            if (tenant is None or tenant in peer.tenants)
            and self._silence_of(peer) <= (self._patience(peer) if within is None else within)
        )

    def is_dead(self, daemon: str, times: float = 1.0) -> bool:
        """Return whether a daemon has been still, or has had no document, for `times` as long as it takes to be dead.

        The time of one that was never heard of begins with the first question.
        """
        if daemon == self._own:
            return False
        known = self._peers.get(daemon)
        if known is not None:
            return self._silence_of(known) > times * self._patience(known)
        return self._silence(self._absent.setdefault(daemon, time.monotonic())) > times * self._dead_after

    def suspects(self) -> list[str]:
        """Return the daemons that are dead by now, or soon may be: those that are still, and those that are gone."""
        return [daemon for daemon in (*self._peers, *self._absent) if self.is_dead(daemon)]

    def _patience(self, peer: Peer) -> float:
        """Return after how many seconds it is dead: who beats more seldom than this daemon does has longer."""
        return max(self._dead_after, peer.dead_after)

    def _silence_of(self, peer: Peer) -> float:
        seen = self._silence(peer.seen)
        return seen if peer.still_since is None else max(seen, time.monotonic() - peer.still_since)

    def _silence(self, since: float) -> float:
        return time.monotonic() - max(since, self._sees_since)


def taken_types(documents: Iterable[Document], db: Prefixer) -> set[str]:
    """Return the worker types whose jobs somebody takes: daemons of that tenant, by their documents, and clients."""
    peers = (_read(document, None, moved=False) for document in documents)
    return {CLIENT_WORKER}.union(*(peer.worker_types for peer in peers if db.key in peer.tenants))


def takers(documents: Iterable[Document], db: Prefixer) -> dict[str, list[str]]:
    """Return who takes the jobs of each worker type: daemons of that tenant, by their documents."""
    found: dict[str, list[str]] = {}
    for document in documents:
        peer = _read(document, None, moved=False)
        if db.key in peer.tenants:
            for name in peer.worker_types:
                found.setdefault(name, []).append(str(document["_id"]).removeprefix(PREFIX))
    return found


def told_other_lanes(documents: Iterable[Document], db: Prefixer, lanes: dict[str, str]) -> list[str]:
    """Return the daemons of that tenant, by their documents, that look for some worker's jobs in another database."""
    return [
        document["_id"]
        for document in documents
        if db.key in _read(document, None, moved=False).tenants and (document.get("lanes") or {}) != lanes
    ]


def sharing_databases(documents: Iterable[Document], db: Prefixer, doctype: str) -> list[str]:
    """Return the prefixes of other tenants whose databases are this one's too: `a.b`, `a-b` and `a:b` are one name."""
    prefixes = {document.get("prefix") for document in documents} - {db.db_prefix}
    found = []
    for prefix in prefixes:
        try:
            if isinstance(prefix, str) and Prefixer(db.domain, prefix).database(doctype) == db.database(doctype):
                found.append(prefix)
        except ConfigurationError:
            continue
    return sorted(found)


def _read(document: Document, beat: object, *, moved: bool) -> Peer:
    return Peer(
        _texts(document.get("worker_types")),
        document.get("schedules") is True,
        tenants_of(document),
        beat,
        time.monotonic(),
        moved,
        declares=_texts(document.get("declares")),
        zones=str(document.get("zones") or ""),
        dead_after=seconds_of(document.get("dead_after")),
        serves_many="tenants" in document,
    )


def seconds_of(value: object) -> float:
    """Return a duration of a daemon's document; 0 where that says none."""
    is_told = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST_S
    return float(value) if is_told else 0.0  # type: ignore[arg-type]


def _texts(value: object) -> frozenset[str]:
    return frozenset(one for one in value if isinstance(one, str)) if isinstance(value, list) else frozenset()


def tenants_of(document: Document) -> Tenants:
    """Return those that a daemon serves, by its document."""
    told = document.get("tenants")
    if told == "all":
        return Tenants(None)
    if isinstance(told, list):
        return Tenants(frozenset(key for key in told if isinstance(key, str)))
    return Tenants(frozenset({escape(str(document.get("prefix") or ""))}))
