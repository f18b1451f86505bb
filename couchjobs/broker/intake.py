"""How queued jobs become candidates: by the changes feed, which is a hint, and by the view of due jobs, the truth.

The feed is asked for its next page only when few candidates are ready, or after a short while, for cancellations; and
not before the writes that were out when the last page came have been answered. A job's three revisions are one row if
nobody asks in between, and CouchDB pays for each row: so there is one page a commit, large under load, at once at rest.
A page brings its documents along where most rows are likely to be jobs to claim; of a large page of other daemons' jobs
the rows alone are looked at, and not at once (see left_rows). Where a worker type has free slots and no candidate, the
feed is read at full pace, past whatever lies before its jobs. The view is read at the start, every sweep interval, and
where candidates had to be left out. A daemon begins with the feed's beginning, which needs no index, unless the
database is large.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

from couchjobs.broker.candidates import Candidates
from couchjobs.broker.left_rows import LeftRows
from couchjobs.broker.runner import Runner
from couchjobs.broker.triage import Triage
from couchjobs.couch.changes import ChangesFollower, Page, current_sequence
from couchjobs.couch.database import Document, Row, Update
from couchjobs.errors import CouchError, NotFound, PositionRefused
from couchjobs.installation import JOBS_DESIGN
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.recovery.daemon import Daemon
from couchjobs.settings import Settings
from couchjobs.timestamps import format_time, now, parse_time

_logger = get_logger(__name__)
_LARGE_DATABASE = 100_000
_PAGE = 1000
_SMALL_PAGE = 250
_LONGEST_PAUSE_S = 0.25
_REFILL_PAUSE_S = 0.1
_AHEAD = 3
_STARVED_PAUSE_S = 0.1
_OTHERS_PAUSE_S = 0.1
_FEW = 50
_LOOK_AGAIN_S = 1.0
_DESIGN = {f"_design/{name}" for name in JOBS_DESIGN}
_MOST_PAGES = 50
"""Pages of the view that one sweep reads at most of one worker type, where those before hold nothing to claim."""


class Intake:
    """Finds candidates for one lane. `follow` and `sweep_for_ever` run until they are cancelled.

    Args:
        store: the jobs.
        daemon: this daemon, for the first right to a job.
        candidates: where they go.
        worker_types: those that this daemon has.
        settings: of the process.
        runner: the slots, and the jobs in them.
        triage: what documents are shown to.
        give_up_doubtful: gives up claims of unclear answer.
        reinstall: called where the database of jobs, or its views, were missing, or are others now.
    """

    def __init__(
        self,
        store: JobStore,
        daemon: Daemon,
        candidates: Candidates,
        worker_types: Sequence[str],
        settings: Settings,
        runner: Runner,
        triage: Triage,
        give_up_doubtful: Callable[[], Awaitable[None]],
        reinstall: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._daemon = daemon
        self._candidates = candidates
        self._worker_types = worker_types
        self._settings = settings
        self._triage = triage
        self._runner = runner
        self._give_up_doubtful = give_up_doubtful
        self._reinstall = reinstall
        self._look_again: dict[str, float] = {}
        self._follower: ChangesFollower | None = None
        self._sweep_at_once = False
        self._sweep_soon = asyncio.Event()
        self._views_changed = False
        self._left = LeftRows(settings.first_right_delay)
        self._shares_version = 0
        self.taken = asyncio.Event()
        """Set by the broker when it has taken candidates."""

    async def follow(self) -> None:
        """Read the feed of the jobs database, page by page, at the pace of the workers; a missing one is waited for."""
        missing = False
        while True:
            try:
                if self._follower is None:
                    self._follower = await self._begin()
                    if missing:
                        await self._reinstall()
                    missing = False
                await self._read_pages(self._follower)
            except PositionRefused as error:
                _logger.warning("the feed is read from its beginning", reason=str(error))
                missing, self._follower = True, None
            except NotFound:
                if not missing:
                    _logger.warning("there is no database of jobs", database=self._store.database.name)
                missing, self._follower = True, None
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _read_pages(self, follower: ChangesFollower) -> None:
        behind = documents = True
        while True:
            in_time = await self._until_hungry(behind)
            room = self._settings.max_candidates - self._candidates.ready()
            limit = max(_SMALL_PAGE, min(_PAGE, room)) if in_time else _PAGE
            page = await follower.next_page(limit, documents=documents)
            wanted, left = await self._take_in_page(page)
            follower.done(page)
            rows = len(page.changes)
            too_large = documents and all(change.document is None for change in page.changes)
            behind, documents = rows == limit, not too_large and rows - wanted < max(_FEW, rows // 2)
            await self._store.writer.answered(_LONGEST_PAUSE_S)
            if left > _FEW and not wanted and not behind:
                await asyncio.sleep(_OTHERS_PAUSE_S)

    async def _begin(self) -> ChangesFollower:
        info = await self._store.database.info()
        since = "0"
        if info["doc_count"] > _LARGE_DATABASE:
            since = await current_sequence(self._store.database)
            self._sweep_at_once = True
            self._sweep_soon.set()
        heartbeat_s = self._settings.feed_heartbeat
        instance = str(info.get("instance_start_time", ""))
        return ChangesFollower(self._store.database, since, heartbeat_s=heartbeat_s, leaves=True, instance=instance)

    async def _until_hungry(self, behind: bool) -> bool:
        """Return True as soon as few candidates are ready; False where the next page must not wait for that."""
        if self._candidates.hungry():
            return True
        starved = any(not self._candidates.ready(worker_type) for worker_type in self._runner.free_slots())
        if starved and behind:
            return False
        try:
            async with asyncio.timeout(_STARVED_PAUSE_S if starved else _LONGEST_PAUSE_S):
                while not self._candidates.hungry():
                    self.taken.clear()
                    await self.taken.wait()
        except TimeoutError:
            return False
        return True

    async def _take_in_page(self, page: Page) -> tuple[int, int]:
        """Make candidates of what the page shows; return how many documents that took, and how many rows are left."""
        documents: list[Document] = []
        unread: list[str] = []
        left, present, few = 0, time.monotonic(), len(page.changes) <= _FEW
        for job_id, rev, deleted, document, in_conflict in page.changes:
            if rev in self._store.own_revisions or self._candidates.knows(job_id, rev):
                continue
            self._candidates.forget(job_id)
            self._left.forget(job_id)
            if job_id in _DESIGN:
                self._views_changed = True
                self._sweep_soon.set()
            if deleted or job_id.startswith("_design/") or self._runner.is_claiming(job_id, rev):
                continue
            runs = self._runner.runs(job_id)
            mine = runs or self._daemon.shares.may_hold(job_id)
            if in_conflict:
                self._triage.note_conflict(job_id)
                if mine and not runs:
                    self._triage.settle(job_id)
                    continue
            if document is not None and (mine or few) and not in_conflict:
                documents.append(document)
            elif mine:
                unread.append(job_id)
            else:
                self._left.note(job_id, present)
                left += 1
        await self._triage.take_in(documents)
        await self._triage.read(unread)
        return len(documents) + len(unread), left

    def look_again(self, job_id: str, in_s: float = 0.0) -> None:
        """Read the job again in so many seconds: there is something about it that no row of the feed will tell."""
        self._look_again[job_id] = time.monotonic() + in_s
        if not in_s:
            self._sweep_soon.set()

    def _ripe(self) -> set[str]:
        """Remove and return the jobs that are to be read again by now."""
        present = time.monotonic()
        ripe = {job_id for job_id, when in self._look_again.items() if when <= present}
        for job_id in ripe:
            del self._look_again[job_id]
        return ripe

    def _rows_to_read(self) -> set[str]:
        rows: list[str] = []
        if (version := self._daemon.shares.version()) != self._shares_version:
            self._shares_version = version
            rows = self._left.take_if(self._daemon.shares.may_hold)
            self._candidates.reconsider(self._daemon.shares.holds)
            self._triage.found()
        free = self._runner.free_slots()
        idle = sum(slots for worker_type, slots in free.items() if not self._candidates.ready(worker_type))
        return {*rows, *self._left.take_ripe(min(idle, _PAGE), time.monotonic())}

    async def sweep_for_ever(self) -> None:
        """Read the view of due jobs every sweep interval, and at once where jobs were left out."""
        while True:
            try:
                await self._sweep_until_views_are_missing()
            except NotFound:
                if await self._store.database.exists():
                    _logger.warning("views are missing, and installed again", database=self._store.database.name)
                    await self._reinstall()
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _sweep_until_views_are_missing(self) -> None:
        loop = asyncio.get_running_loop()
        await self._sweep([*self._worker_types, None], "false")
        last = loop.time()
        while True:
            self._sweep_soon.clear()
            if self._views_changed:
                self._views_changed = False
                try:
                    await self._reinstall()
                except CouchError as error:
                    _logger.warning("views not looked at, and read as they are", reason=str(error))
            again = self._ripe() | self._rows_to_read()
            try:
                await self._triage.read(again)
            except CouchError:
                for job_id in again:
                    self.look_again(job_id, _LOOK_AGAIN_S)
                raise
            await self._give_up_doubtful()
            await self._sweep(self._candidates.overflowed(time.time()), "true")
            if self._sweep_at_once or loop.time() - last >= self._settings.sweep_interval:
                update: Update = "true" if self._sweep_at_once else "lazy"
                self._sweep_at_once = False
                await self._sweep([*self._worker_types, None], update)
                last = loop.time()
            try:
                async with asyncio.timeout(min(_REFILL_PAUSE_S, self._settings.sweep_interval)):
                    await self._sweep_soon.wait()
            except TimeoutError:
                continue

    async def _sweep(self, worker_types: Iterable[str | None], update: Update) -> None:
        for worker_type in worker_types:
            for part in ("first", "due"):
                await self._sweep_part(worker_type, part, update)

    async def _sweep_part(self, worker_type: str | None, part: str, update: Update) -> None:
        """Read rows until there are as many candidates as this daemon looks ahead, or none more that are due soon."""
        horizon = format_time(now() + timedelta(seconds=_AHEAD * self._settings.sweep_interval))
        low, most = [worker_type, part], self._settings.max_candidates
        high = [*low, horizon if part == "due" else {}]
        docid: str | None = None
        for _ in range(_MOST_PAGES):
            rows = await self._store.database.view(
                "queue/due", low, high, limit=most + 1, update=update, startkey_docid=docid
            )
            await self._take_in_rows([row for row in rows[:most] if str(row["key"][-1]) <= horizon])
            if len(rows) <= most:
                if part == "due":
                    await self._look_beyond(worker_type, horizon, update)
                return
            low, docid = rows[most]["key"], rows[most]["id"]
            if worker_type is None or self._candidates.known(worker_type) >= most:
                break
        if worker_type is not None:
            self._candidates.left_out(worker_type, _due_time(rows[most]))

    async def _look_beyond(self, worker_type: str | None, horizon: str, update: Update) -> None:
        """Read a page of what seems to be due later: the row does not tell a time to wait for from a wrong clock's."""
        ready = self._candidates.ready(worker_type) if worker_type is not None else 0
        low: list[Any] = [worker_type, "due", horizon]
        high: list[Any] = [worker_type, "due", {}]
        rows = await self._store.database.view("queue/due", low, high, limit=_SMALL_PAGE, update=update)
        await self._take_in_rows(rows)
        if worker_type is not None and len(rows) == _SMALL_PAGE and self._candidates.ready(worker_type) > ready:
            self._candidates.left_out(worker_type, 0.0)

    async def _take_in_rows(self, rows: list[Row]) -> None:
        calm: dict[str, None] = {}
        for row in rows:
            if self._runner.runs(row["id"]):
                continue
            if row["value"] is None:
                calm[row["id"]] = None
            else:
                self._triage.settle(row["id"])
        await self._triage.read(calm)


def _due_time(row: Row) -> float:
    """Return when the job of a row is due; 0 where that is not to be read from it."""
    try:
        due = parse_time(row["key"][-1])
    except (ValueError, TypeError):
        return 0.0
    return due.timestamp() if due else 0.0
