"""Removing finished jobs, a small step at a time: those that the rules of retention keep no longer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from couchjobs.couch.absence import is_surely_gone
from couchjobs.couch.answers import Written
from couchjobs.couch.database import Document, Row
from couchjobs.couch.purge import PURGED_TOGETHER, is_single_node, purge
from couchjobs.errors import BadRequest, Forbidden, NotFound, Unauthorized, Unavailable
from couchjobs.jobs.job import ENDED, Job
from couchjobs.jobs.lives import pusher_of
from couchjobs.jobs.places import HIGHEST
from couchjobs.jobs.retention import Retention, Rule
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.timestamps import format_time, parse_time

_logger = get_logger(__name__)

_MOST_IN_CONFLICT = 20_000
"""Some 2 MB of ids."""
_PAGE = 1000
"""Rows of one request."""
_LONGEST_TIME = 64
"""Characters of a time as the view keeps it; what is longer is in it as an empty one."""
_LEAST_REPLAY_S = 120.0
"""Seconds that a job of a trigger stays after its end, whatever the rules: until nobody fires for the same again."""
_REPLAYED_FOR = 3.0
"""Times `dead_after`: so long after its end whoever goes on for a dead daemon has looked at what that had fired."""


@dataclass(slots=True)
class _Group:
    worker: str
    state: str
    count: int
    rule: Rule


class Remover:
    """Removes jobs of one database."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._retention = Retention()
        self._now = datetime.now(UTC)
        self._purges: bool | None = None
        self.refused = 0
        """Jobs that CouchDB does not remove for this user, as far as was tried."""
        self.unanswered = 0
        """Jobs of which it does not say whether they are removed."""
        self.reason = ""
        """What it says of the last of them."""

    async def steps(self, retention: Retention, now: datetime, *, dry: bool = False) -> AsyncIterator[int]:
        """Remove what is kept no longer; yield after each step how many jobs that were. `dry`: remove nothing.

        Where this host's clock is ahead of the server's, that one counts: what is removed does not come back.

        Raises:
            NotFound: the database, or its views, do not exist.
            CouchError: CouchDB does not answer; what is left is found the next time.
        """
        in_conflict: set[str] = set()  # another leaf would be the job then: they are settled first
        async for rows in self._store.database.view_pages("queue/conflicts", None, {}, page=_PAGE):
            in_conflict.update(row["id"] for row in rows)
            if len(in_conflict) > _MOST_IN_CONFLICT:
                _logger.warning("too many jobs are in conflict: nothing is removed", database=self._store.database.name)
                return
        now = min(now, self._servers_time() or now)
        self._retention, self._now = retention, now
        for group in await self._groups(retention):
            async for found in self._removable(group, now):
                documents = await self._free(one for one in found if one["_id"] not in in_conflict)
                yield len(documents) if dry else await self._remove(documents)

    def check_all(self) -> None:
        """Check that all is removed that was tried to be.

        Raises:
            Forbidden: CouchDB does not remove some for this user.
            Unavailable: it does not say what has become of some.
        """
        if self.refused:
            told = f"{self.refused:,} jobs are not removed: that needs a worker or an administrator"
            raise Forbidden(f"{told} ({self.reason})")
        if self.unanswered:
            told = f"{self.unanswered:,} jobs may be removed or not, for CouchDB does not say"
            raise Unavailable(f"{told} ({self.reason}): try again")

    def _servers_time(self) -> datetime | None:
        """Return what the server's clock said with its last answer; None where it does not say."""
        try:
            return parsedate_to_datetime(self._store.database.server.date or "").astimezone(UTC)
        except ValueError:
            return None

    async def _groups(self, retention: Retention) -> list[_Group]:
        rows = await self._store.database.reduced("jobs/by_state", [""], [{}], group_level=2, stable=True)
        counts: dict[tuple[str, str], int] = {}
        for row in rows:
            match row["key"]:
                case [str(worker), str(state)]:
                    counts[worker, state] = int(row["value"])
        hidden = {(worker, state.value) for worker in retention.workers for state in ENDED} - counts.keys()
        groups = []
        for worker, state in [*counts, *hidden]:  # CouchDB counts names that look alike as those of the first of them
            rule = retention.of(worker, state)
            if rule is not None and (rule.keep is not None or rule.at_most is not None):
                groups.append(_Group(worker, state, counts.get((worker, state), sys.maxsize), rule))
        return groups

    async def _removable(self, group: _Group, now: datetime) -> AsyncIterator[list[Document]]:
        """Yield the jobs of a group that are kept no longer, the oldest first.

        The view is read as it was when the groups were counted: to bring it up to date takes it longer, where jobs run,
        than all the rest, and what has ended since is to be kept for a while yet. Which of two is the newer one, the
        view alone says: it orders what people write for times in a way of its own.
        """
        rule, surplus = group.rule, await self._newest_surplus(group)
        ended_before = datetime.min.replace(tzinfo=UTC)
        if rule.keep is not None:
            ended_before = now - timedelta(seconds=rule.keep)
            for first, last in ((None, format_time(ended_before)), (format_time(now), HIGHEST)):  # of odd times, too
                async for rows in self._rows(group, first, last):
                    yield [one for _, one in await self._read(group, rows) if _ended_at(one) < ended_before]
        if surplus is not None:
            async for rows in self._rows(group, None, surplus["key"][-1]):
                older = [
                    row
                    for row in rows
                    if row["key"][0] == group.worker and (row["key"] != surplus["key"] or row["id"] <= surplus["id"])
                ]
                yield [
                    one
                    for row, one in await self._read(group, older)
                    if row["key"][-1] == _queued_at(one) and _ended_at(one) >= ended_before
                ]

    async def _rows(self, group: _Group, first: Any, last: Any) -> AsyncIterator[list[Row]]:
        """Yield the rows of a group from one time to another, in steps."""
        low, high = [group.worker, group.state, first], [group.worker, group.state, last]
        pages = self._store.database.view_pages("jobs/by_state", low, high, page=_PAGE, update="false", stable=True)
        async for rows in pages:
            for begin in range(0, len(rows), PURGED_TOGETHER):
                yield rows[begin : begin + PURGED_TOGETHER]

    async def _read(self, group: _Group, rows: list[Row]) -> list[tuple[Row, Document]]:
        """Return the rows with their documents, but for those of other groups: what they are by now decides."""
        by_id = {row["id"]: row for row in rows}
        found = await self._store.database.read(by_id)
        return [
            (by_id[one.doc_id], one.document)
            for one in found
            if one.document is not None and self._is_of(group, one.document) and not self._may_fire_again(one.document)
        ]

    def _may_fire_again(self, document: Document) -> bool:
        """Return whether what made the job may be seen again, by a daemon that goes on for a dead one.

        The job is then what says that its trigger has fired, so that it stays, whatever the rule.
        """
        replayed_for = timedelta(seconds=max(_LEAST_REPLAY_S, _REPLAYED_FOR * self._store.dead_after))
        return bool(document.get("trigger_id")) and abs(_ended_at(document) - self._now) < replayed_for

    def _is_of(self, group: _Group, document: Document) -> bool:
        """Return whether the rule of the group is that of a job: CouchDB holds some different names for the same."""
        worker, state = document.get("worker"), document.get("state")
        return isinstance(worker, str) and state == group.state and self._retention.of(worker, state) is group.rule

    async def _newest_surplus(self, group: _Group) -> Row | None:
        """Return the row of the newest job that is one too many: whatever others remove, the newer ones stay."""
        left = group.rule.at_most
        if left is None or group.count <= left:
            return None
        high, low = [group.worker, group.state, HIGHEST], [group.worker, group.state]
        async for rows in self._store.database.view_pages(
            "jobs/by_state", high, low, page=_PAGE, descending=True, update="false", stable=True
        ):
            for row in rows:
                left -= row["key"][0] == group.worker
                if left < 0:
                    return row
        return None

    async def _free(self, documents: Iterable[Document]) -> list[Document]:
        """Return those that may go: not what a job has pushed that may be tried, and then pushes the same again."""
        found = [*documents]
        pushers = {one["_id"]: pusher for one in found if (pusher := pusher_of(one)) is not None}
        busy: set[tuple[str, str]] = set()
        for worker in {worker for _, worker in pushers.values()}:
            ids = {job_id for job_id, of_type in pushers.values() if of_type == worker}
            database = self._store.database_of(worker)
            try:
                for one in await database.read(ids):
                    if one.is_unknown or (one.document is not None and one.document.get("state") not in ENDED):
                        busy.add((one.doc_id, worker))
            except NotFound:
                if not await is_surely_gone(database):
                    busy |= {(job_id, worker) for job_id in ids}
        return [one for one in found if pushers.get(one["_id"]) not in busy]

    async def _remove(self, documents: list[Document]) -> int:
        if not documents:
            return 0
        if self._purges is None:
            self._purges = await is_single_node(self._store.database.server)
        if self._purges:
            try:
                return len(await purge(self._store.database, {one["_id"]: one["_rev"] for one in documents}))
            except (BadRequest, Forbidden, NotFound, Unauthorized):
                self._purges = False
        deletions = [{"_id": one["_id"], "_rev": one["_rev"], "_deleted": True} for one in documents]
        answers = await asyncio.gather(*(self._store.writer.write(deletion) for deletion in deletions))
        for answer in answers:
            if answer.written is Written.REFUSED or answer.own_error:
                self.refused += 1
                self.reason = answer.reason
            elif answer.written is Written.UNKNOWN:
                self.unanswered += 1
                self.reason = answer.reason
        return sum(answer.stored for answer in answers)


def _ended_at(document: Document) -> datetime:
    """Return when a job ended, or, where a client has not said, when it was queued; never, where nobody can say."""
    job = Job.read(document)
    said = job.queued_at if _says_no_time(document.get("finished_at")) else job.finished_at
    return said or datetime.max.replace(tzinfo=UTC)


def _says_no_time(value: object) -> bool:
    """Return whether a field is empty, as Go writes it, too; not whether it is unreadable."""
    try:
        return not value or (isinstance(value, str) and parse_time(value) is None)
    except ValueError:
        return False


def _queued_at(document: Document) -> object:
    """Return where the view puts a job that has ended; it was queued again where a row says otherwise."""
    at = document.get("queued_at")
    at = "" if at in (None, "", 0, False) else at  # as JavaScript has it: an empty list is a value
    return "" if isinstance(at, str) and len(at.encode("utf-16-le")) > 2 * _LONGEST_TIME else at
