"""A daemon's audit of itself: jobs whose documents name it as claimant, and that it does not run, are given up.

That happens where a claim was stored although its answer said otherwise: a lost answer, or a cluster that told all
claimants `accepted`. What to do depends on the other branches of the document. A branch that loses is withdrawn by its
claimant. One that wins goes back to the queue as soon as it is alone: the claimant of another one either owns the job,
and its end will win, or withdraws. So of all branches one always stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from couchjobs.couch.settle import settle
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.timestamps import now

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_DOUBT_S = 3.0
_AT_A_TIME = 50


def is_claimed_by(document: Document, daemon: str) -> bool:
    """Return whether the document is a running job of that daemon."""
    claim = document.get("claim")
    return document.get("state") == State.RUNNING and isinstance(claim, dict) and claim.get("daemon") == daemon


async def audit_own_claims(store: JobStore, daemon: str, grace_s: float, runs: Callable[[str], bool]) -> int:
    """Give up what `daemon` has claimed, longer ago than `grace_s`, and does not run; return how many jobs that were.

    Args:
        store: the jobs.
        daemon: this daemon's id.
        grace_s: seconds, by this daemon's own clock, which also wrote the time of the claim; an index may be behind.
        runs: whether this daemon runs the job with that id.
    """
    rows = await store.database.view("queue/claimed", [daemon], [daemon, {}], limit=500)
    documents = await store.database.get_many(row["id"] for row in rows if not runs(row["id"]))
    oldest = now() - timedelta(seconds=grace_s)
    given_up = 0
    for document in documents.values():
        claim = Job.read(document).claim
        if claim is not None and claim.at is not None and claim.at >= oldest:
            continue
        if is_claimed_by(document, daemon) and not runs(document["_id"]):
            given_up += await give_up(store, document["_id"], daemon)
    return given_up


async def give_up_doubtful(store: JobStore, daemon: str, runs: Callable[[str], bool]) -> None:
    """Give up claims of unclear answer, once all copies of a document may be expected to know of all claims."""
    doubtful, present = store.doubtful, time.monotonic()
    ripe = [job_id for job_id, since in doubtful.items() if present - since > _DOUBT_S and not runs(job_id)]
    given_up = await asyncio.gather(*(give_up(store, job_id, daemon) for job_id in ripe[:_AT_A_TIME]))
    for job_id, settled in zip(ripe, given_up, strict=False):
        if settled:
            del doubtful[job_id]
        else:
            doubtful[job_id] = present


async def give_up(store: JobStore, job_id: str, daemon: str) -> bool:
    """Give up a job that `daemon` does not run, whatever its claim became; False where that must wait for others."""
    leaves = [leaf for leaf in await store.database.leaves(job_id) if not leaf.get("_deleted")]
    winner = await store.database.find(job_id)
    for leaf in (leaf for leaf in leaves if is_claimed_by(leaf, daemon)):
        if winner is not None and winner["_rev"] != leaf["_rev"]:
            await settle(store.writer, {"_id": job_id, "_rev": leaf["_rev"], "_deleted": True})
            _logger.info("claim withdrawn: it is a branch that loses", job=job_id)
        elif any(other["_rev"] != leaf["_rev"] and other.get("state") != State.QUEUED for other in leaves):
            return False
        elif await store.release(Job.read(leaf)):
            _logger.warning("put back a job that was claimed but never run", job=job_id)
    return True
