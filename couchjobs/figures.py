"""What daemons have done, minute by minute, for charts that a restart does not empty, whichever daemon is asked.

A daemon has one small document for each hour in which it has done something, in the control database:
`figures:<tenant>:<hour>:<daemon>` = `{"minutes": {"07": {<worker>: [done, failed, retried, ran_s, waited, ...]}}}`.
Of hours that are long over it keeps the sums alone, as `{"hour": {...}}`; after 25 hours any daemon removes it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.couch.purge import remove
from couchjobs.errors import Conflict, CouchError
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.stats import Stats
from couchjobs.timestamps import now

_logger = get_logger(__name__)
_PREFIX = "figures:"
EVERY_S = 10.0
"""Seconds between two writes, where something has been done: so old is the newest bar of a chart."""
_KEPT = timedelta(hours=25)
_MOST_WORKERS = 100
"""Worker types that are told apart in a minute; what others have done is told as that of `...`."""
_OTHERS = "..."
_MOST = 1e12
_HOUR = "%Y-%m-%dT%H"


@dataclass(slots=True)
class Figures:
    """Of a span of time."""

    done: int = 0
    """Tries that ended well."""
    failed: int = 0
    """Jobs that failed for good, those that were cancelled left out."""
    retried: int = 0
    """Tries that failed, and are followed by others."""
    ran_s: float = 0.0
    """What all these tries took."""
    waited: int = 0
    """Tries whose wait is known: those that began."""
    waited_s: float = 0.0
    """From when they were due to their claim, together."""

    def add(self, other: Figures) -> None:
        """Add those of another span."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def since(self, earlier: Figures) -> Figures:
        """Return what has come since then."""
        return Figures(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))

    @property
    def tries(self) -> int:
        """Return how many have ended."""
        return self.done + self.failed + self.retried

    def __bool__(self) -> bool:
        """Return whether there is anything."""
        return any(getattr(self, name) for name in self.__slots__)

    def stored(self) -> list[float]:
        """Return them as JSON."""
        return [self.done, self.failed, self.retried, round(self.ran_s, 3), self.waited, round(self.waited_s, 3)]

    @classmethod
    def read(cls, value: Any) -> Figures:
        """Return what is stored so; nothing where it makes no sense."""
        names = cls.__slots__
        if isinstance(value, list) and len(value) == len(names) and all(map(_is_amount, value)):
            return cls(*value)
        return cls()


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST


ByWorker = dict[str, Figures]


def counted(stats: Stats) -> ByWorker:
    """Return what a process has counted so far, by worker type."""
    found: defaultdict[str, Figures] = defaultdict(Figures)
    names = {"done": "done", "failed": "failed", "retry": "retried"}
    for (worker, outcome), count in [*stats.ended.items()]:
        if outcome in names:
            setattr(found[worker], names[outcome], count)
    for worker, ran in [*stats.ran.items()]:
        found[worker].ran_s = ran.total
    for worker, waited in [*stats.waited.items()]:
        found[worker].waited, found[worker].waited_s = sum(waited.counts), waited.total
    return found


class FigureKeeper:
    """Writes down what one daemon does: `run` until it is cancelled, then `write` once more.

    Args:
        connection: to CouchDB.
        tenant: whose jobs they are.
        daemon: its id.
        stats: what it counts.
    """

    def __init__(self, connection: Connection, tenant: Prefixer, daemon: str, stats: Stats) -> None:
        self._control = connection.control
        self._tenant = tenant
        self._daemon = daemon
        self._stats = stats
        self._told = counted(stats)
        self._document: Document = {"_id": "", "minutes": {}}
        self._before: Document = {"minutes": {}}
        """That of the hour before, whose minutes are those of the last hour as well."""
        self._is_unwritten = False

    async def run(self) -> None:
        """Write every ten seconds, where something has been done."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.try_to_write()

    @property
    def has_news(self) -> bool:
        """Return whether something has been done since the last time."""
        return self._is_unwritten or counted(self._stats) != self._told

    async def try_to_write(self) -> None:
        """Do so, or leave it to the next time."""
        try:
            await self.write(now())
        except CouchError as error:
            _logger.debug("figures are written later", reason=str(error))

    async def write(self, present: datetime) -> None:
        """Add what has been done since the last time to the present minute.

        Raises:
            CouchError: that is not taken; it is written the next time.
        """
        total = counted(self._stats)
        news = {name: more for name, one in total.items() if (more := one.since(self._told.get(name, Figures())))}
        if not news and not self._is_unwritten:
            return
        doc_id = f"{_prefix(self._tenant)}{present.strftime(_HOUR)}:{self._daemon}"
        if self._document["_id"] != doc_id:
            over, self._before, self._document = self._before, self._document, {"_id": doc_id, "minutes": {}}
            await self._tidy(over, present)
        _add(self._document["minutes"].setdefault(present.strftime("%M"), {}), news)
        self._told, self._is_unwritten = total, True
        await self._put(self._document)
        self._is_unwritten = False

    async def _put(self, document: Document) -> None:
        """Store a document that is this daemon's alone: where there is another revision, an answer was lost."""
        try:
            document["_rev"] = await self._control.put(document)
        except Conflict:
            present = await self._control.find(document["_id"])
            document.pop("_rev", None)
            if present is not None:
                document["_rev"] = present["_rev"]
            document["_rev"] = await self._control.put(document)

    async def _tidy(self, over: Document, present: datetime) -> None:
        """Sum up an hour whose minutes no chart shows any more, and remove what is older than a day."""
        if over["minutes"]:
            total: ByWorker = defaultdict(Figures)
            for minute in over.pop("minutes").values():
                for name, one in minute.items():
                    total[name].add(Figures.read(one))
            await self._put(over | {"hour": _stored(total)})
        oldest = _prefix(self._tenant) + (present - _KEPT).strftime(_HOUR)
        async for revisions in self._control.revisions_with_prefix(_prefix(self._tenant)):
            try:
                await remove(self._control, {doc_id: rev for doc_id, rev in revisions.items() if doc_id < oldest})
            except CouchError as error:  # another daemon does it, or the next hour
                _logger.debug("old figures stay for now", reason=str(error))


def _prefix(tenant: Prefixer) -> str:
    return f"{_PREFIX}{tenant.key}:"


def _add(minute: dict[str, Any], news: Mapping[str, Figures]) -> None:
    for name, more in news.items():
        place = name if name in minute or len(minute) < _MOST_WORKERS else _OTHERS
        sum_of = Figures.read(minute.get(place))
        sum_of.add(more)
        minute[place] = sum_of.stored()


def _stored(figures: ByWorker) -> dict[str, list[float]]:
    return {name: one.stored() for name, one in figures.items()}


@dataclass(slots=True)
class Bar:
    """One bar of a chart: of all daemons and worker types."""

    start: datetime
    figures: Figures = field(default_factory=Figures)


async def last_hour(connection: Connection, tenant: Prefixer, present: datetime) -> list[Bar]:
    """Return the last 60 minutes, the present one last.

    Raises:
        CouchError: the control database cannot be read.
    """
    first = present.replace(second=0, microsecond=0) - timedelta(minutes=59)
    bars = [Bar(first + timedelta(minutes=number)) for number in range(60)]
    for hour in (first.strftime(_HOUR), present.strftime(_HOUR)):
        documents = await connection.control.with_prefix(f"{_prefix(tenant)}{hour}:")
        by_minute = {bar.start.strftime("%M"): bar for bar in bars if bar.start.strftime(_HOUR) == hour}
        for document in documents:
            for minute, workers in _items(document.get("minutes")):
                if minute in by_minute:
                    _sum(by_minute[minute].figures, workers)
        if first.strftime(_HOUR) == present.strftime(_HOUR):
            break
    return bars


async def last_day(connection: Connection, tenant: Prefixer, present: datetime) -> list[Bar]:
    """Return the last 24 hours, the present one last.

    Raises:
        CouchError: the control database cannot be read.
    """
    first = present.replace(minute=0, second=0, microsecond=0) - timedelta(hours=23)
    bars = {
        (first + timedelta(hours=number)).strftime(_HOUR): Bar(first + timedelta(hours=number)) for number in range(24)
    }
    prefix = _prefix(tenant)
    for document in await connection.control.with_prefix(prefix):
        bar = bars.get(document["_id"][len(prefix) :][: len("2026-01-01T00")])
        if bar is not None:
            _sum(bar.figures, document.get("hour"))
            for _, workers in _items(document.get("minutes")):
                _sum(bar.figures, workers)
    return [*bars.values()]


def _sum(figures: Figures, workers: Any) -> None:
    for _, one in _items(workers):
        figures.add(Figures.read(one))


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()
