r"""How a job moves: each function returns the fields that the next revision of its document changes.

    queued --claimed--> running --done--> done
      ^                    |  \---errored--> errored
      |-retried/released/lost-|

Every write after the claim carries the claim's revision. Fields that are not named here are left as they are.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from couchjobs.jobs.job import Changes, Claim, Job, JobError, State
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_KEPT_ERRORS = 10
_MAX_ERROR = 10_000


def claimed(job: Job, db: Prefixer, nonce: str, daemon: str, now: datetime) -> Changes:
    """Return what changes where `daemon` begins to run the job. `started_at` is that of the first try.

    The nonce makes the document differ from every other claimant's: CouchDB derives the revision from the content,
    and tells two claimants with the same content both that they have won.
    """
    changes: Changes = {
        "state": State.RUNNING,
        "exec_count": job.exec_count + 1,
        "claim": Claim.model_construct(id=nonce, daemon=daemon, at=now),
    }
    if job.queued_at is None:
        changes["queued_at"] = now
    if job.started_at is None:
        changes["started_at"] = now
    if not job.domain:
        changes["domain"] = db.domain
    if db.prefix and not job.prefix:
        changes["prefix"] = db.prefix
    if job.finished_at is not None:
        changes["finished_at"] = None
    return changes


def done(now: datetime, result: Any = None) -> Changes:
    """Return what changes where the job has succeeded."""
    changes: Changes = {"state": State.DONE, "finished_at": now, "error": None}
    if result is not None:
        changes["result"] = result
    return changes


def errored(job: Job, now: datetime, error: str) -> Changes:
    """Return what changes where the job has failed for good."""
    return {**_one_more_error(job, now, error), "state": State.ERRORED, "finished_at": now, "error": error[:_MAX_ERROR]}


def retried(job: Job, now: datetime, error: str, not_before: datetime) -> Changes:
    """Return what changes where the try has failed, and the job is tried again."""
    return {**_one_more_error(job, now, error), "state": State.QUEUED, "scheduled_at": not_before, "claim": None}


def released(job: Job) -> Changes:
    """Return what changes where the job is given up without a fault of its own: the try does not count."""
    tries = max(0, job.exec_count - 1)
    changes: Changes = {"state": State.QUEUED, "exec_count": tries, "claim": None}
    if tries == 0:
        changes["started_at"] = None
    return changes


def lost(job: Job, now: datetime, error: str, *, again: bool) -> Changes:
    """Return what changes where the daemon that ran the job is dead: it is tried again, or that was its last try."""
    if not again:
        return errored(job, now, error)
    return {**_one_more_error(job, now, error), "state": State.QUEUED, "claim": None}


def cancelled(now: datetime) -> Changes:
    """Return what changes where somebody has cancelled the job."""
    return {"state": State.ERRORED, "finished_at": now, "error": "cancelled"}


def requeued(now: datetime) -> Changes:
    """Return what changes where somebody wants an ended job to be done again, with all its tries."""
    gone = ("claim", "started_at", "finished_at", "scheduled_at", "error", "cancel_requested", "result")
    return {"state": State.QUEUED, "queued_at": now, "exec_count": 0, **dict.fromkeys(gone)}


def _one_more_error(job: Job, now: datetime, error: str) -> Changes:
    entry = JobError(at=now, exec_count=job.exec_count, error=error[:_MAX_ERROR])
    return {"errors": [*job.errors, entry][-_KEPT_ERRORS:]}


def unreadable(document: Document, now: datetime, reason: str) -> Document:
    """Return the next document of a job that cannot be understood, with the reason where its author looks."""
    return {
        **document,
        "state": State.ERRORED.value,
        "finished_at": format_time(now),
        "error": f"bad job: {reason}"[:_MAX_ERROR],
    }
