"""A daemon's audit of itself: jobs whose documents name it as claimant, and that it does not run, go back to the queue.

That happens where a claim was stored although its answer said otherwise: a lost answer, or a cluster that told all
claimants `accepted`. A claim that is younger than the grace period may still be on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.timestamps import now

_logger = get_logger(__name__)


async def audit_own_claims(store: JobStore, daemon: str, grace_s: float, runs: Callable[[str], bool]) -> int:
    """Put back what `daemon` has claimed, longer ago than `grace_s`, and does not run; return how many jobs that were.

    Args:
        store: the jobs.
        daemon: this daemon's id.
        grace_s: seconds, by this daemon's own clock, which also wrote the time of the claim.
        runs: whether this daemon runs the job with that id.
    """
    rows = await store.database.view("recovery/claimed", [daemon], [daemon, {}], limit=500)
    documents = await store.database.get_many(row["id"] for row in rows if not runs(row["id"]))
    oldest = now() - timedelta(seconds=grace_s)
    released = 0
    for document in documents.values():
        job = Job.read(document)
        claim = job.claim
        if claim is None or claim.daemon != daemon or job.state is not State.RUNNING or runs(job.id):
            continue
        if (claim.at is None or claim.at < oldest) and await store.release(job):
            _logger.warning("put back a job that was claimed but never run", job=job.id)
            released += 1
    return released
