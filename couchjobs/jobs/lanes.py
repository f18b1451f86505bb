"""The databases of a tenant's jobs: one, and where the settings say so, one more for some worker types.

A lane is followed only by the daemons that have its workers: each follower of a database costs CouchDB something for
each row of the feed.
"""

from __future__ import annotations

from couchjobs.couch.connection import Connection
from couchjobs.errors import Conflict, JobNotFoundError
from couchjobs.jobs.job import Job
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer


def stores(connection: Connection, db: Prefixer) -> list[JobStore]:
    """Return the jobs of all lanes."""
    return [JobStore(connection, db, lane) for lane in connection.settings.all_lanes]


def store_of(connection: Connection, db: Prefixer, worker_type: str) -> JobStore:
    """Return the jobs of the lane of that worker type."""
    return JobStore(connection, db, connection.settings.lane_of(worker_type))


async def find_job(connection: Connection, db: Prefixer, job_id: str) -> tuple[JobStore, Job]:
    """Return the job, and the lane that it is in.

    Raises:
        JobNotFoundError: there is none with that id in any lane.
        Conflict: there is one in more than one lane: each has ids of its own.
    """
    found: list[tuple[JobStore, Job]] = []
    missing: JobNotFoundError | None = None
    for store in stores(connection, db):
        try:
            found.append((store, await store.get(job_id)))
        except JobNotFoundError as error:
            missing = missing or error
    if len(found) > 1:
        where = ", ".join(f"of worker {job.worker!r} in {store.database.name}" for store, job in found)
        raise Conflict(f"{len(found)} jobs have the id {job_id!r}: {where}", 409)
    if not found:
        raise missing or JobNotFoundError(f"no job {job_id!r}")
    return found[0]
