"""Looking at the jobs of a tenant. Rows of a view say which jobs; what they say is read from the documents."""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

from couchjobs.couch.codec import encode
from couchjobs.couch.connection import Connection, connected
from couchjobs.couch.database import Database, Document, Row, Update
from couchjobs.durations import read_seconds
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.lanes import find_job, store_of, stores
from couchjobs.jobs.places import HIGHEST, order_of
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now, parse_time

_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_MOST = 50
"""Jobs of one answer, as the Go server has it."""
_BY_TIME = "jobs/by_queued_at"
_PAGE = 500
"""Rows of one request."""
_FIRST = 25
"""Documents that are read first; then twice as many, and so on."""


async def get_job(db: Prefixer, job_id: str) -> Job:
    """Return the job.

    Raises:
        JobNotFoundError: there is none with that id.
    """
    async with connected() as connection:
        return (await find_job(connection, db, job_id))[1]


async def get_jobs(db: Prefixer, trigger_id: str, limit: int = 0) -> list[Job]:
    """Return the jobs of a trigger, newest first; at most `limit`, and 50 where that is not from 1 to 50."""
    count = limit if 0 < limit <= _MOST else _MOST
    jobs: list[Job] = []
    async with connected() as connection:
        for store in stores(connection, db):
            rows = await store.database.view(
                "jobs/by_trigger", [trigger_id, HIGHEST], [trigger_id], limit=count, descending=True
            )
            jobs += await _jobs(store, rows)
    jobs.sort(key=lambda job: format_time(job.queued_at) if job.queued_at else "~", reverse=True)
    return jobs[:count]


async def iter_jobs_before_date(db: Prefixer, date: datetime) -> AsyncIterator[Job]:
    """Yield all jobs queued before `date`, a page in memory at a time. Undated ones are left out.

    The oldest come first; where worker types have lanes of their own, lane after lane.
    """
    async with connected() as connection:
        for store in stores(connection, db):
            async for rows in store.database.view_pages("jobs/by_queued_at", "0", format_time(date)):
                for job in await _jobs(store, rows):
                    if job.queued_at is not None and job.queued_at < date:
                        yield job


async def get_jobs_before_date(db: Prefixer, date: datetime) -> list[Job]:
    """Return all jobs queued before `date`, as `iter_jobs_before_date` yields them; for many, use that."""
    return [job async for job in iter_jobs_before_date(db, date)]


async def iter_queued_jobs(db: Prefixer, worker_type: str) -> AsyncIterator[Job]:
    """Yield the jobs of a worker type that are queued or running, a page in memory at a time."""
    async with connected() as connection:
        store = store_of(connection, db, worker_type)
        database = store.database
        for state in (State.QUEUED, State.RUNNING):
            async for rows in database.view_pages("jobs/by_state", [worker_type, state], [worker_type, state, HIGHEST]):
                async for document in _documents(database, rows):
                    if (job := store.shown(document)).state is state:
                        yield job


async def get_queued_jobs(db: Prefixer, worker_type: str) -> list[Job]:
    """Return the jobs of a worker type that are queued or running, all of them. For many, use `iter_queued_jobs`."""
    return [job async for job in iter_queued_jobs(db, worker_type)]


async def get_lasts_jobs(db: Prefixer, worker_type: str) -> list[Job]:
    """Return a worker type's newest 50 jobs of each state: queued, running, done, errored; oldest of those first."""
    jobs: list[Job] = []
    async with connected() as connection:
        store = store_of(connection, db, worker_type)
        for state in State:
            rows = await store.database.view(
                "jobs/by_state", [worker_type, state, HIGHEST], [worker_type, state], limit=_MOST, descending=True
            )
            jobs += reversed(await _jobs(store, rows))
    return jobs


After = tuple[Any, str]
"""Where the views have a job, and its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs; None asks for nothing. Times are those at which jobs were queued."""

    worker: str | None = None
    workers: tuple[str, ...] | None = None
    """Of one of these, where `worker` asks for nothing."""
    state: State | None = None
    trigger: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: After | None = None
    """Those that follow it are wanted."""
    cancelled: bool | None = None
    """Whether jobs are wanted that were cancelled: True for them alone, False for the others."""

    def matches(self, document: Document) -> bool:
        """Return whether the document is such a job, its time left out, which the views have looked at."""
        return (
            self.worker in (None, document.get("worker"))
            and (self.workers is None or document.get("worker") in self.workers)
            and self.state in (None, document.get("state"))
            and self.trigger in (None, document.get("trigger_id"))
            and self.cancelled in (None, bool(document.get("cancelled")))
        )


def past(value: datetime | timedelta | str | None) -> datetime | None:
    """Return the moment that is meant: a time, `2026-01-31` (its beginning, in UTC), or so long ago, such as `1h`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, timedelta):
        return now() - value
    if value is not None and not isinstance(value, datetime | str):
        raise ValueError(f"{value!r:.80} is no time: a datetime, a timedelta, or text such as 2026-01-31 or 1h")
    if not isinstance(value, str):
        return value
    with suppress(ValueError, OverflowError):
        return now() - timedelta(seconds=read_seconds(value))
    if _DATE.fullmatch(value):
        value += "T00:00:00Z"
    if (time := parse_time(value)) is None:
        raise ValueError(f"{value!r} is before all jobs")
    return time


async def newest(
    connection: Connection, db: Prefixer, wanted: JobFilter, limit: int, *, update: Update = "true"
) -> list[Document]:
    """Return the newest of these jobs, as documents, newest first; one that no daemon has seen yet is the newest.

    `update`: whether the views are brought up to date first.

    Raises:
        NotFound: the database of jobs, or its views, do not exist.
    """
    return (await page_of(connection, db, wanted, limit, update=update))[0]


async def page_of(
    connection: Connection,
    db: Prefixer,
    wanted: JobFilter,
    limit: int,
    *,
    most_bytes: int = sys.maxsize,
    update: Update = "true",
) -> tuple[list[Document], After | None]:
    """Return what `newest` returns, and after what the next page begins; None where there are no more of these jobs.

    `most_bytes`: of their documents together, as JSON: fewer than `limit` are returned rather than more than that, but
    for those of one request to CouchDB, and one in any case.

    Raises:
        NotFound: the database of jobs, or its views, do not exist.
    """
    found: list[_Found] = []
    oldest: tuple[Any, ...] = ()
    has_more = False
    for store in stores(connection, db):
        for start, end in await _ranges(store.database, wanted, update):
            left, of_others = most_bytes, len(found)
            async for place, document in _walk(store.database, start, end, wanted, limit + 1, update):
                order, size = _order(place, document), len(encode(document)) if most_bytes < sys.maxsize else 0
                if order < oldest:
                    break
                found.append(_Found(order, size, place, document))
                left -= size
                if left < 0:
                    break
            if 0 < of_others < len(found):  # those of one range are as the view has them
                found.sort(key=attrgetter("order"), reverse=True)
            if len(found) > limit:
                found, oldest = found[: limit + 1], max(oldest, found[limit].order)
            sizes = [*accumulate(one.size for one in found)]
            if sizes and sizes[-1] > most_bytes:  # what is older, in other ranges too, is for the next page
                found, has_more = found[: max(1, bisect_right(sizes, most_bytes))], True
                oldest = found[-1].order
    has_more |= len(found) > limit
    page = found[:limit]
    after = (page[-1].place, page[-1].document["_id"]) if has_more and page else None
    return [one.document for one in page], after


class _Found(NamedTuple):
    order: tuple[Any, ...]
    size: int
    place: Any
    document: Document


async def each(connection: Connection, db: Prefixer, wanted: JobFilter) -> AsyncIterator[Document]:
    """Yield all of these jobs, as documents, a page in memory at a time.

    Raises:
        NotFound: the database of jobs, or its views, do not exist.
    """
    for store in stores(connection, db):
        for start, end in await _ranges(store.database, wanted, "true"):
            async for _, document in _walk(store.database, start, end, wanted, sys.maxsize, "true"):
                yield document


def _order(place: Any, document: Document) -> tuple[Any, ...]:
    return *order_of(place), document["_id"].encode("utf-8", "surrogatepass")


async def _ranges(database: Database, wanted: JobFilter, update: Update) -> list[tuple[Any, Any]]:
    """Return the ranges of keys that hold these jobs, each from the newest to the oldest."""
    if wanted.since and wanted.until and wanted.since >= wanted.until:
        return []
    high: Any = wanted.after[0] if wanted.after else (format_time(wanted.until) if wanted.until else HIGHEST)
    low = [format_time(wanted.since)] if wanted.since else []
    if wanted.trigger is not None:
        return [([wanted.trigger, high], [wanted.trigger, *low])]
    if _by_state(wanted):
        workers = [wanted.worker] if wanted.worker is not None else wanted.workers
        if workers is None:
            workers = await _worker_types(database, update)
        states = [wanted.state] if wanted.state else [*State]
        return [([worker, state, high], [worker, state, *low]) for worker in workers for state in states]
    return [(high, low[0] if low else None)]


def _by_state(wanted: JobFilter) -> bool:
    """Return whether the view by worker type and state tells: without it all jobs would be looked at for a state."""
    return wanted.trigger is None and not (wanted.worker is None and wanted.workers is None and wanted.state is None)


async def _worker_types(database: Database, update: Update) -> list[str]:
    rows = await database.reduced("jobs/by_state", [""], [{}], group_level=1, update=update)
    return [row["key"][0] for row in rows if isinstance(row["key"][0], str)]


async def _walk(
    database: Database, start: Any, end: Any, wanted: JobFilter, limit: int, update: Update
) -> AsyncIterator[tuple[Any, Document]]:
    """Yield these jobs, and where the view has each."""
    if limit < 1:
        return
    view = _BY_TIME
    if wanted.trigger is not None:
        view = "jobs/by_trigger"
    elif _by_state(wanted):
        view = "jobs/by_state"
    left = limit
    last_id = wanted.after[1] if wanted.after else None
    page = min(_PAGE, limit + 1)
    async for rows in database.view_pages(view, start, end, page=page, descending=True, update=update, docid=last_id):
        places = {row["id"]: row["key"] if view == _BY_TIME else row["key"][-1] for row in rows}
        async for document in _documents(database, rows):
            if wanted.matches(document) and document["_id"] != last_id:
                yield places[document["_id"]], document
                left -= 1
                if not left:
                    return


async def _documents(database: Database, rows: list[Row]) -> AsyncIterator[Document]:
    """Yield the documents of these rows. Of large ones, whoever has enough of them stops before many are read."""
    first, count = 0, _FIRST
    while first < len(rows):
        ids = [row["id"] for row in rows[first : first + count]]
        documents = await database.get_many(ids)
        for doc_id in ids:
            if doc_id in documents:
                yield documents[doc_id]
        first, count = first + count, 2 * count


async def worker_queue_len(database: Database, worker_type: str) -> int:
    """Return how many jobs of a worker type are queued, those that wait for their time included."""
    rows = await database.reduced("queue/due", [worker_type, "due"], [worker_type, "due", {}])
    return int(rows[0]["value"]) if rows else 0


async def _jobs(store: JobStore, rows: list[Row]) -> list[Job]:
    documents = await store.database.get_many(row["id"] for row in rows)
    return [store.shown(documents[row["id"]]) for row in rows if row["id"] in documents]
