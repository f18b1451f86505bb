"""What a document of the jobs database is to this daemon: pure, and whatever the document holds, one answer.

It may be a job to claim; one of a type that other daemons have; one that cannot be understood, or must not be run, and
is marked with the reason; one that somebody wants cancelled; one that runs here; one that looks as if it ran here; one
in conflict; or nothing to do anything about.
"""

from __future__ import annotations

from dataclasses import dataclass

from couchjobs.broker.lane import Lane
from couchjobs.couch.database import Document
from couchjobs.errors import BadDocumentError
from couchjobs.jobs.job import Job, State, is_claimed_by, is_job
from couchjobs.workers.retry import has_tries_left

_LARGE_DOCUMENT = 16_384
"""Bytes of a document beyond which it is read again for its claim, and not kept: 1000 of them would be 16 MB."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """There is nothing to do about it, or it is known already."""


@dataclass(frozen=True, slots=True)
class Changed:
    """It is being claimed, runs or ends here, and has changed."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It names this daemon as its owner, which does not run it."""


@dataclass(frozen=True, slots=True)
class Settle:
    """It has other leaves, which are to be looked at first."""


@dataclass(frozen=True, slots=True)
class Offer:
    """It may be claimed. `keep`: whether the document is small enough to be kept until then."""

    job: Job
    keep: bool


@dataclass(frozen=True, slots=True)
class Reject:
    """It cannot be understood."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """It must not be run."""

    job: Job
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody wants it cancelled."""

    job: Job


@dataclass(frozen=True, slots=True)
class Foreign:
    """It is for daemons that have its worker."""

    job: Job


Meaning = Ignore | Changed | GiveUp | Settle | Offer | Reject | Refuse | Cancel | Foreign
_IGNORE, _CHANGED, _GIVE_UP, _SETTLE = Ignore(), Changed(), GiveUp(), Settle()
_NOT_QUEUED = (State.RUNNING, State.DONE, State.ERRORED)


def classify(document: Document, lane: Lane, daemon: str) -> Meaning:
    """Return what a document of the lane is to the daemon with that id, by what is known of the lane."""
    job_id, rev = document["_id"], document["_rev"]
    if job_id in lane.executions:
        return _CHANGED
    if lane.backlog.knows(job_id, rev):
        return _IGNORE
    if rev not in lane.claims.revisions and is_claimed_by(document, daemon):
        return _GIVE_UP
    if job_id in lane.in_conflict:
        return _SETTLE
    if not is_job(document) or document.get("state") in _NOT_QUEUED:
        return _IGNORE
    return _queued(document, lane)


def _queued(document: Document, lane: Lane) -> Meaning:
    try:
        job, size = lane.store.checks.job_and_size(document)
    except BadDocumentError as error:
        return Reject(str(error))
    if job.cancel_requested:
        return Cancel(job)
    if job.worker not in lane.workers:
        return Foreign(job)
    if not has_tries_left(lane.workers.get(job.worker), job):
        return Refuse(job, _why_spent(job))
    return Offer(job, keep=size <= _LARGE_DOCUMENT)


def _why_spent(job: Job) -> str:
    if job.finished_at is None:
        return f"worker lost: {job.exec_count} tries have not come back, and that is all it has"
    return (
        f"its {job.exec_count} tries are spent: `couchjobs jobs retry` gives it new ones, and a changed state does not"
    )
