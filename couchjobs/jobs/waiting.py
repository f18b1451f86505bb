"""Waiting for the end of one job: the changes feed says when to look at its document."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from couchjobs.couch.changes import ChangesFollower
from couchjobs.couch.connection import Connection, connected
from couchjobs.couch.database import Database, generation
from couchjobs.couch.positions import current_sequence
from couchjobs.errors import JobNotFoundError, PositionRefused, Unavailable
from couchjobs.jobs.job import ENDED, Job
from couchjobs.jobs.lanes import find_job, stores
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.waits import LONGEST_OUTAGE_PAUSE_S, backoff

T = TypeVar("T")

_READ_AGAIN_S = 5.0
"""Seconds until the document is read again though the feed has said nothing."""
_BEHIND_S = 0.1
"""Seconds until a copy is asked again that is behind the feed."""


async def wait(db: Prefixer, job_id: str, timeout: float | None = None) -> Job:
    """Wait until the job is done or errored and return it; the changes feed says when.

    The document is read again now and then all the same: a copy of a cluster may be behind what the feed has said.

    Raises:
        JobNotFoundError: there is no such job, or it was deleted meanwhile.
        TimeoutError: it has not ended within `timeout` seconds.
    """
    seen: list[Job] = []
    try:
        async with asyncio.timeout(timeout) as limit:
            return await _until_ended(db, job_id, seen)
    except TimeoutError as error:
        if not limit.expired():
            raise
        state = f"it is {seen[-1].state}, of worker {seen[-1].worker!r}" if seen else "it was not read yet"
        raise TimeoutError(f"job {job_id} has not ended within {timeout or 0:g} s: {state}") from error


async def _until_ended(db: Prefixer, job_id: str, seen: list[Job]) -> Job:
    """Wait until the job has ended, and note what it is meanwhile."""
    async with connected() as connection:
        lanes = stores(connection, db)
        store = lanes[0] if len(lanes) == 1 else (await find_job(connection, db, job_id))[0]
        follower = await _from_now(connection, store.database)
        job = await store.get(job_id)
        read_again_s = _BEHIND_S  # the copy of which the position is may be ahead of those that were read
        while job.state not in ENDED:
            seen[:] = [job]
            try:
                async with asyncio.timeout(read_again_s) as patience:
                    page = await follower.next_page()
            except TimeoutError:
                if not patience.expired():
                    raise
                job = await _insist(lambda: _still_there(store, job_id))
                read_again_s = min(_READ_AGAIN_S, 2 * read_again_s)
                continue
            except PositionRefused:  # what has happened since, the document says
                follower = await _insist(lambda: _from_now(connection, store.database))
                job = await _insist(lambda: _still_there(store, job_id))
                continue
            for change in page.changes:
                if change.doc_id == job_id:
                    if change.deleted:
                        raise JobNotFoundError(_deleted(job_id))
                    job = await _insist(partial(_at_least, store, job_id, change.rev))
            follower.done(page)
        return job


async def _insist(read: Callable[[], Awaitable[T]]) -> T:
    """Return what is read; where CouchDB does not answer, ask again, as its feed does: the job goes on."""
    failures = 0
    while True:
        try:
            return await read()
        except Unavailable:
            failures += 1
            await asyncio.sleep(backoff(failures, longest=LONGEST_OUTAGE_PAUSE_S))


def _deleted(job_id: str) -> str:
    return f"job {job_id} was deleted"


async def _still_there(store: JobStore, job_id: str) -> Job:
    """Return the job, which was there before."""
    try:
        return await store.get(job_id)
    except JobNotFoundError as error:
        raise JobNotFoundError(_deleted(job_id)) from error


async def _at_least(store: JobStore, job_id: str, rev: str) -> Job:
    """Return the job, not older than a revision that the feed has shown; for a while: an older copy may be back."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _READ_AGAIN_S
    while True:
        job = await store.get(job_id)
        if generation(job.rev) >= generation(rev) or loop.time() > until:
            return job
        await asyncio.sleep(_BEHIND_S)


async def _from_now(connection: Connection, database: Database) -> ChangesFollower:
    since = await current_sequence(database)
    return ChangesFollower(database, since, heartbeat_s=connection.settings.feed_heartbeat)
