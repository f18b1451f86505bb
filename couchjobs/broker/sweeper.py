"""What the feed does not tell of one database of jobs: the view of due jobs, the truth.

The view is read at the start, every sweep interval, and where there were too many candidates and they are used up.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from couchjobs.broker.lane import Lane
from couchjobs.broker.producer import Producer
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Row, Update
from couchjobs.errors import CouchError, NotFound
from couchjobs.installation import JOBS_DESIGN, install
from couchjobs.log import get_logger
from couchjobs.timestamps import format_time, moment, now, parse_time
from couchjobs.waits import Signal

_logger = get_logger(__name__)
_DESIGN = {f"_design/{name}" for name in JOBS_DESIGN}
_BEYOND = 250
"""Rows of jobs that seem to be due later, looked at in each sweep."""
_AHEAD = 3
"""Sweep intervals ahead of which jobs become candidates that wait for their time."""
_BY_ID = 2000
"""Rows beyond those whose documents are read at once, of which the ids are kept: few pages of a view are cheaper."""
_MOST_PAGES = 50
"""Pages of the view that one sweep reads at most of one worker type, where those before hold nothing to claim."""
_REFILL_PAUSE_S = 0.1
"""Seconds between two looks for candidates that found no place: the view costs CouchDB more than the feed."""
_LONGEST_REFILL_PAUSE_S = 1.6
"""The same where the last looks have found nothing for this daemon: what is there is that of others."""
_LOOK_AGAIN_S = 1.0
"""Seconds until views that are missing are looked for again."""
_PATIENCE_S = 60.0
"""Seconds of failures for which a tenant stays awake for a view that is to be read: some never can be."""


class Sweeper:
    """Reads the view of due jobs of one lane. `run` goes on until it is cancelled.

    Args:
        connection: to the server.
        lane: the lane.
        producer: whom ids are handed to.
    """

    def __init__(self, connection: Connection, lane: Lane, producer: Producer) -> None:
        self._connection = connection
        self._interval = lane.daemon.sweep_interval
        self._most = connection.settings.max_candidates
        self._lane = lane
        self._producer = producer
        self.has_swept = Signal()
        """For the feed: the view has been read as it is, or cannot be."""
        self._sweep_by = math.inf
        self._swept_at: float | None = None
        self._failing_since = 0.0
        self._refilled_at = 0.0
        self._refill_pause_s = _REFILL_PAUSE_S

    def sweep_by(self, in_s: float) -> None:
        """Sweep in so many seconds at the latest, and with the views up to date."""
        self._sweep_by = min(self._sweep_by, time.monotonic() + in_s)
        self._lane.to_sweep.set()

    def note_views(self, changed: Iterable[str]) -> None:
        """Take note of the ids of documents that have changed: where they are views, those are looked at."""
        if not _DESIGN.isdisjoint(changed):
            self._lane.have_views_checked()

    async def run(self) -> None:
        """Read the view of due jobs whenever it is time for it."""
        while True:
            self._lane.is_being_swept = True
            try:
                await self._run_until_views_are_missing()
            except Exception as error:
                self._failing_since = self._failing_since or time.monotonic()
                self._lane.is_being_swept = time.monotonic() - self._failing_since < _PATIENCE_S
                self._swept_at = None
                self.has_swept.set()
                if not isinstance(error, NotFound):
                    raise
                database = self._lane.store.database
                if await database.exists():
                    _logger.warning("views are missing, and installed again", database=database.name)
                    await install(self._connection, self._lane.store.db)
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _run_until_views_are_missing(self) -> None:
        if self._swept_at is None:
            await self._sweep("false")
            self._swept_at = time.monotonic()
            self.has_swept.set()
        while True:
            self._lane.is_being_swept = True
            if self._lane.views_unchecked:
                self._lane.views_unchecked = False
                await self._look_at_views()
            await self._refill()
            is_asked = time.monotonic() >= self._sweep_by
            if is_asked or time.monotonic() - self._swept_at >= self._interval:
                asked_by = self._sweep_by
                await self._sweep("true" if is_asked else "lazy")
                self._swept_at = time.monotonic()
                if is_asked and self._sweep_by == asked_by:
                    self._sweep_by = math.inf
            self._lane.is_being_swept, self._failing_since = False, 0.0
            await self._lane.to_sweep.within(self._next_in(self._swept_at))

    def _next_in(self, swept_at: float) -> float:
        """Return in how many seconds there is something to do."""
        present = moment()
        waits = [min(swept_at + self._interval, self._sweep_by) - present.monotonic]
        overflow_in = self._lane.backlog.overflow_in(present)
        if overflow_in is not None:
            waits.append(max(overflow_in, self._refilled_at + self._refill_pause_s - present.monotonic))
        return max(0.0, min(waits))

    async def _look_at_views(self) -> None:
        try:
            await install(self._connection, self._lane.store.db)
        except CouchError as error:
            _logger.warning("views not looked at, and read as they are", reason=str(error))

    async def _refill(self) -> None:
        """Look for candidates that found no place, not even in reserve."""
        present = moment()
        if present.monotonic - self._refilled_at < self._refill_pause_s:
            return
        types = self._lane.backlog.overflowed(present)
        for number, worker_type in enumerate(types):
            try:
                await self._sweep_type(worker_type, "true")
            except BaseException:  # it may have been cut off: what is noted nowhere would not be looked for again
                for one in types[number:]:
                    self._lane.backlog.note_overflow(one, 0.0)
                raise
        if types:
            self._refilled_at = time.monotonic()
            found = self._lane.backlog.ready() or self._lane.backlog.has_reserve
            self._refill_pause_s = _REFILL_PAUSE_S if found else min(_LONGEST_REFILL_PAUSE_S, 2 * self._refill_pause_s)

    async def _sweep(self, update: Update) -> None:
        for worker_type in [*self._lane.workers.names(), None]:
            await self._sweep_type(worker_type, update)

    async def _sweep_type(self, worker_type: str | None, update: Update) -> None:
        for part in ("first", "due"):
            await self._sweep_part(worker_type, part, update)

    async def _sweep_part(self, worker_type: str | None, part: str, update: Update) -> None:
        """Read rows until there are as many candidates as this daemon looks ahead, or none more that are due soon."""
        until = now() + timedelta(seconds=_AHEAD * self._interval)
        horizon = format_time(until)
        low, most = [worker_type, part], self._most
        high = [*low, horizon if part == "due" else {}]
        docid: str | None = None
        by_id = _BY_ID if worker_type is not None and part == "due" else 0
        for _ in range(_MOST_PAGES):
            rows = await self._lane.store.database.view(
                "queue/due", low, high, limit=most + by_id + 1, update=update, startkey_docid=docid
            )
            await self._take([row for row in rows[:most] if _due_time(row) <= until.timestamp()])
            if len(rows) <= most:
                if part == "due":
                    await self._look_beyond(worker_type, horizon, update)
                return
            low, docid = rows[most]["key"], rows[most]["id"]
            if worker_type is None or self._lane.backlog.known(worker_type) >= most:
                break
        if worker_type is not None:
            self._keep_in_reserve(worker_type, rows[most:], by_id)

    def _keep_in_reserve(self, worker_type: str, rows: list[Row], count: int) -> None:
        """Keep the ids of so many rows, as far as they are due, and note from when on there is more than that."""
        lane, present = self._lane, now().timestamp()
        due = [row for row in rows[:count] if row["value"] is None and _due_time(row) <= present]
        may_have = lane.daemon.partition.may_have
        ids = [row["id"] for row in due if row["id"] not in lane.executions and may_have(row["id"])]
        for row in rows[:count]:
            if row["value"] is not None:
                self._producer.settle(lane, row["id"])
        if not lane.backlog.keep_in_reserve(worker_type, ids):
            lane.backlog.note_overflow(worker_type, _due_time(rows[0]))
        elif len(due) < len(rows):
            lane.backlog.note_overflow(worker_type, _due_time(rows[len(due)]))

    async def _look_beyond(self, worker_type: str | None, horizon: str, update: Update) -> None:
        """Read a page of what seems to be due later: the row does not tell a time to wait for from a wrong clock's."""
        backlog = self._lane.backlog
        ready = backlog.ready(worker_type) if worker_type is not None else 0
        low: list[Any] = [worker_type, "due", horizon]
        high: list[Any] = [worker_type, "due", {}]
        rows = await self._lane.store.database.view("queue/due", low, high, limit=_BEYOND, update=update)
        await self._take(rows)
        if worker_type is not None and len(rows) == _BEYOND and backlog.ready(worker_type) > ready:
            backlog.note_overflow(worker_type, 0.0)

    async def _take(self, rows: list[Row]) -> None:
        calm: dict[str, None] = {}
        for row in rows:
            if row["id"] in self._lane.executions:
                continue
            if row["value"] is None:
                calm[row["id"]] = None
            else:
                self._producer.settle(self._lane, row["id"])
        await self._producer.read(self._lane, calm)


def _due_time(row: Row) -> float:
    """Return when the job of a row is due; 0 where that is not to be read from it."""
    try:
        due = parse_time(row["key"][-1])
    except (ValueError, TypeError):
        return 0.0
    return due.timestamp() if due else 0.0
