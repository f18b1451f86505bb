"""A daemon's audit of itself: jobs whose documents name it as claimant, and that it does not run, go back to the queue.

That happens where a claim was stored although its answer said otherwise: a lost answer, or a cluster that told all
claimants `accepted`. The feed shows such a job soon; the view of claims, read now and then, shows it in any case. By
the view, a claim that is younger than the grace period is left alone, for an index may be behind.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.timestamps import now

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)


def is_claimed_by(document: Document, daemon: str) -> bool:
    """Return whether the document is a running job of that daemon."""
    claim = document.get("claim")
    return document.get("state") == State.RUNNING and isinstance(claim, dict) and claim.get("daemon") == daemon


async def audit_own_claims(store: JobStore, daemon: str, grace_s: float, runs: Callable[[str], bool]) -> int:
    """Put back what `daemon` has claimed, longer ago than `grace_s`, and does not run; return how many jobs that were.

    Args:
        store: the jobs.
        daemon: this daemon's id.
        grace_s: seconds, by this daemon's own clock, which also wrote the time of the claim.
        runs: whether this daemon runs the job with that id.
    """
    rows = await store.database.view("queue/claimed", [daemon], [daemon, {}], limit=500)
    documents = await store.database.get_many(row["id"] for row in rows if not runs(row["id"]))
    oldest = now() - timedelta(seconds=grace_s)
    released = 0
    for document in documents.values():
        claim = Job.read(document).claim
        if claim is not None and claim.at is not None and claim.at >= oldest:
            continue
        if is_claimed_by(document, daemon) and not runs(document["_id"]):
            released += await put_back(store, document, daemon)
    return released


async def put_back(store: JobStore, document: Document, daemon: str) -> bool:
    """Release a job that `daemon` has claimed and does not run, unless another one runs it; return whether it was."""
    job = Job.read(document)
    leaves = [leaf for leaf in await store.database.leaves(job.id) if not leaf.get("_deleted")]
    if all(leaf["_rev"] != job.rev for leaf in leaves):
        return False  # it has moved on since it was read
    others = [leaf for leaf in leaves if leaf["_rev"] != job.rev and leaf.get("state") != State.QUEUED]
    if any(not is_claimed_by(leaf, daemon) for leaf in others):
        _logger.info("a claim of ours is a branch of a job that another daemon runs or has done", job=job.id)
        return False
    if not await store.release(job):
        return False
    _logger.warning("put back a job that was claimed but never run", job=job.id)
    return True
