"""A daemon's audit of itself: jobs whose documents name it as claimant, and that it does not run, are given up.

That happens where a claim was stored although its answer said otherwise: a lost answer, or a cluster that told all
claimants `accepted`. What to do depends on the other branches of the document. A branch that loses is withdrawn by its
claimant. One that wins goes back to the queue as soon as it is alone: the claimant of another one either owns the job,
and its end will win, or withdraws. So of all branches one always stays.

A try that is known to have begun here counts: its job goes back as one that has lost its worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta

from couchjobs.couch.database import Document
from couchjobs.couch.settle import settle
from couchjobs.errors import CouchError
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.transitions import tombstone
from couchjobs.log import get_logger
from couchjobs.timestamps import now

_logger = get_logger(__name__)
_DOUBT_S = 3.0
_AT_A_TIME = 50


def is_claimed_by(document: Document, daemon: str) -> bool:
    """Return whether the document is a running job of that daemon."""
    claim = document.get("claim")
    return document.get("state") == State.RUNNING and isinstance(claim, dict) and claim.get("daemon") == daemon


async def audit_own_claims(
    store: JobStore,
    daemon: str,
    grace_s: float,
    runs: Callable[[str], bool],
    take: Callable[[Job], Awaitable[bool]] | None = None,
) -> int:
    """Give up what `daemon` has claimed, longer ago than `grace_s`, and does not run; return how many jobs that were.

    Args:
        store: the jobs.
        daemon: this daemon's id.
        grace_s: seconds, by this daemon's own clock, which also wrote the time of the claim; an index may be behind.
        runs: whether this daemon runs the job with that id.
        take: takes a job whose try has begun, and is lost; None: it goes back to the queue.
    """
    rows = await store.database.view("queue/claimed", [daemon], [daemon, {}], limit=500)
    oldest, present = now() - timedelta(seconds=grace_s), now()
    stale: list[str] = []
    for one in await store.database.read(row["id"] for row in rows if not runs(row["id"])):
        if one.document is None or not is_claimed_by(one.document, daemon):
            continue
        claim = Job.read(one.document).claim
        if claim is None or claim.at is None or not oldest <= claim.at <= present:
            stale.append(one.doc_id)
    return sum(await _give_up_each(store, (job_id for job_id in stale if not runs(job_id)), daemon, take))


async def give_up_doubtful(
    store: JobStore,
    daemon: str,
    runs: Callable[[str], bool],
    take: Callable[[Job], Awaitable[bool]] | None = None,
) -> None:
    """Give up claims of unclear answer, once all copies of a document may be expected to know of all claims."""
    doubtful, present = store.doubtful, time.monotonic()
    ripe = [job_id for job_id, since in doubtful.items() if present - since > _DOUBT_S and not runs(job_id)]
    ripe = ripe[:_AT_A_TIME]
    for job_id, settled in zip(ripe, await _give_up_each(store, ripe, daemon, take), strict=True):
        if settled:
            doubtful.pop(job_id, None)
        else:
            doubtful[job_id] = present


async def _give_up_each(
    store: JobStore, job_ids: Iterable[str], daemon: str, take: Callable[[Job], Awaitable[bool]] | None
) -> list[bool]:
    """Give up these jobs, each for itself; return for each whether that is done."""

    async def one(job_id: str) -> bool:
        try:
            return await give_up(store, job_id, daemon, take)
        except CouchError as error:
            _logger.warning("claim not given up yet", job=job_id, reason=str(error))
        except Exception:
            _logger.exception("claim cannot be given up", job=job_id)
        return False

    return await asyncio.gather(*(one(job_id) for job_id in job_ids))


async def give_up(
    store: JobStore, job_id: str, daemon: str, take: Callable[[Job], Awaitable[bool]] | None = None
) -> bool:
    """Give up a job that `daemon` does not run, whatever its claim became; False where that must wait for others."""
    leaves = await store.database.leaves(job_id)
    for leaf in (leaf for leaf in leaves if is_claimed_by(leaf, daemon)):
        if leaf is not leaves[0]:
            answer = await settle(store.writer, tombstone(leaf))
            if answer.stored:
                _logger.info("claim withdrawn: it is a branch that loses", job=job_id)
        elif any(other is not leaf and other.get("state") != State.QUEUED for other in leaves):
            return False
        elif await _put_back(store, Job.read(leaf), take):
            _logger.warning("put back a job that was claimed and does not run", job=job_id)
    return True


async def _put_back(store: JobStore, job: Job, take: Callable[[Job], Awaitable[bool]] | None) -> bool:
    has_begun = job.claim is not None and job.claim.id in store.begun
    if not has_begun and job.ending is None:
        return await store.release(job)
    if job.claim is not None:
        store.begun.discard(job.claim.id)
    return await (store.rescue(job, again=True) if take is None else take(job))
