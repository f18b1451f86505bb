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
        if claim.at is not None and claim.at >= oldest:
            continue
        if await _runs_elsewhere(store, job):
            _logger.info("a claim of ours is a branch of a job that another daemon runs", job=job.id)
        elif await store.release(job):
            _logger.warning("put back a job that was claimed but never run", job=job.id)
            released += 1
    return released


async def _runs_elsewhere(store: JobStore, job: Job) -> bool:
    """Return whether another leaf of the document, on a cluster, is running under another daemon."""
    ours = job.claim.daemon if job.claim else None
    leaves = (Job.read(leaf) for leaf in await store.database.leaves(job.id) if not leaf.get("_deleted"))
    return any(leaf.state is State.RUNNING and leaf.claim is not None and leaf.claim.daemon != ours for leaf in leaves)
