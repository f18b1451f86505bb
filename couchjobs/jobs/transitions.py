r"""How a job moves: each function returns the fields that the next revision of its document changes.

    queued --claimed--> running --done--> done
      ^                    |  \---errored--> errored
      |-retried/released/lost-|

Every write after the claim carries the claim's revision. Fields that are not named here are left as they are.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

from couchjobs.couch.database import Document
from couchjobs.jobs.job import Changes, Claim, Job, JobError, State
from couchjobs.jobs.lives import FIRST_QUEUED_AT, PUSHED_BY, PUSHED_IN, life_of, pusher_of
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time

_KEPT_ERRORS = 10
"""Of one job, the newest: a job that is tried for ever must not grow."""
_MAX_ERROR = 10_000
"""Characters of one error."""
SETTLED = "conflict_settled"
"""The field of a tombstone that says why: guarded databases let nobody delete a running leaf otherwise."""
ORIGINAL = "original.json"
"""The attachment that holds a job's content where its document had to be made smaller."""
CHAIN = "triggered_by"
"""The field of a job made by the change of another job that names the triggers of all jobs before it."""
_REDUCED = "what the job held "
_MOST_MAKERS = 100
_LONGEST_KEPT = 20_000
"""Characters of a field that stays where a document is cut down to fit."""
_OF_AN_END = (
    *("claim", "started_at", "finished_at", "scheduled_at", "error", "result", "seconds"),
    *("cancel_requested", "cancelled", "ending"),
)
_KEPT_FIELDS = (
    "_id",
    "_rev",
    "worker",
    "domain",
    "prefix",
    "trigger_id",
    "state",
    "queued_at",
    "started_at",
    "exec_count",
    FIRST_QUEUED_AT,
    PUSHED_IN,
)


def claimed(job: Job, db: Prefixer, nonce: str, daemon: str, now: datetime) -> Changes:
    """Return what changes where `daemon` begins to run the job. `started_at` is that of the first try.

    The nonce makes the document differ from every other claimant's: CouchDB derives the revision from the content,
    and tells two claimants with the same content both that they have won.
    """
    changes: Changes = {
        "state": State.RUNNING,
        "exec_count": job.exec_count + 1,
        "claim": Claim(id=nonce, daemon=daemon, at=now),
    }
    if job.queued_at is None:
        changes["queued_at"] = now
    if job.started_at is None:
        changes["started_at"] = now
    document = job.document()
    if not document.get("domain"):
        changes["domain"] = db.domain
    if db.prefix and not document.get("prefix"):
        changes["prefix"] = db.prefix
    if job.finished_at is not None:
        changes["finished_at"] = None
    return changes


def done(now: datetime, result: Any = None, seconds: float | None = None) -> Changes:
    """Return what changes where the job has succeeded, with a try of so many seconds."""
    return {"state": State.DONE, "finished_at": now, "error": None, "seconds": _rounded(seconds), "result": result}


def done_without_result(job: Job, now: datetime, reason: str, seconds: float | None = None) -> Changes:
    """Return what changes where the job has succeeded, and what came of it cannot be stored: the work is done."""
    lost = _one_more_error(job, now, f"the job is done, but its result is not stored: {reason}")
    return {**done(now, None, seconds), **lost}


def why_without_result(job: Job) -> str:
    """Return why a job that is done has no result, where that could not be stored; else empty."""
    last = job.errors[-1] if job.state is State.DONE and job.result is None and job.errors else None
    return last.error if last is not None and last.at == job.finished_at else ""


def ending(daemon: str, error: str, traceback: str = "") -> Changes:
    """Return what changes where the job has failed for good, and somebody is to be told before that is its end."""
    return {"ending": {"daemon": daemon, "error": error[:_MAX_ERROR], "traceback": traceback}}


def errored(job: Job, now: datetime, error: str, traceback: str = "", seconds: float | None = None) -> Changes:
    """Return what changes where the job has failed for good."""
    end = {"state": State.ERRORED, "finished_at": now, "error": error[:_MAX_ERROR], "ending": None}
    return {**_one_more_error(job, now, error, traceback, seconds), **end, "seconds": _rounded(seconds)}


def retried(
    job: Job, now: datetime, error: str, not_before: datetime, traceback: str = "", seconds: float | None = None
) -> Changes:
    """Return what changes where the try has failed, and the job is tried again."""
    again = {"state": State.QUEUED, "scheduled_at": not_before, "claim": None}
    return {**_one_more_error(job, now, error, traceback, seconds), **again}


def released(job: Job) -> Changes:
    """Return what changes where the job is given up without a fault of its own: the try does not count."""
    tries = max(0, job.exec_count - 1)
    changes: Changes = {"state": State.QUEUED, "exec_count": tries, "claim": None}
    if tries == 0:
        changes["started_at"] = None
    return changes


def lost(job: Job, now: datetime, error: str, traceback: str = "", *, again: bool) -> Changes:
    """Return what changes where the daemon that ran the job is dead: it is tried again, or that was its last try."""
    if not again:
        return errored(job, now, error, traceback)
    return {**_one_more_error(job, now, error), "state": State.QUEUED, "claim": None}


def cancelled(now: datetime) -> Changes:
    """Return what changes where somebody has cancelled the job."""
    return {"state": State.ERRORED, "finished_at": now, "error": "cancelled", "cancelled": True}


def requeued(job: Job, now: datetime) -> Changes:
    """Return what changes where somebody wants an ended job to be done again, with all its tries."""
    again = {"state": State.QUEUED, "queued_at": now, "exec_count": 0, **dict.fromkeys(_OF_AN_END)}
    return {**again, FIRST_QUEUED_AT: life_of(job) or None}


def _one_more_error(job: Job, now: datetime, error: str, traceback: str = "", seconds: float | None = None) -> Changes:
    entry = JobError(at=now, exec_count=job.exec_count, error=error[:_MAX_ERROR])
    if seconds is not None or traceback:
        entry.traceback, entry.seconds = traceback or None, _rounded(seconds)
        entry.started_at = job.claim.at if job.claim is not None else None
    return {"errors": [*job.errors, entry][-_KEPT_ERRORS:]}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def unreadable(document: Document, now: datetime, reason: str) -> Document:
    """Return the next document of a job that cannot be understood, with the reason where its author looks.

    Where it names no worker, or no time, it gets what lists of jobs need.
    """
    told = f"bad job: {reason}"[:_MAX_ERROR]
    listed = {"queued_at": format_time(now), "worker": "?"}
    missing = {name: value for name, value in listed.items() if not document.get(name)}
    marked = {**document, **missing, "state": State.ERRORED.value, "finished_at": format_time(now)}
    if not document.get("error") or isinstance(document["error"], str):
        return {**marked, "error": told}
    errors = document.get("errors")  # `error` is somebody's own field
    before = errors if isinstance(errors, list) else []
    return {**marked, "errors": [*before, {"at": format_time(now), "exec_count": 0, "error": told}]}


def tombstone(leaf: Document) -> Document:
    """Return the deletion of a leaf that does not count beside another."""
    return {"_id": leaf["_id"], "_rev": leaf["_rev"], "_deleted": True, SETTLED: True}


def reduced(document: Document, original: bytes | None, now: datetime, reason: str) -> Document:
    """Return the next document of a job that CouchDB does not take as it should be: what is needed to tell of it.

    A job that is done stays so; any other is errored. `original` becomes the attachment `original.json`, beside those
    that the job has; None: what the job held is cut off, and only older revisions have it.
    """
    where = f"is in the attachment {ORIGINAL}" if original is not None else "is cut off"
    text = f"{_REDUCED}{where}: {reason}"[:_MAX_ERROR]
    state = State.DONE if document.get("state") == State.DONE else State.ERRORED
    kept = {name: document[name] for name in _KEPT_FIELDS if _is_small(document.get(name))}
    worker = document.get("worker")
    smaller: Document = {
        **kept,
        "worker": worker if isinstance(worker, str) and worker and len(worker) <= _LONGEST_KEPT else "?",
        "message": None,
        "state": state.value,
        "finished_at": format_time(now),
        "reduced": text,
    }
    if state is State.ERRORED:
        smaller["error"] = text
    if isinstance(makers := document.get(CHAIN), list) and len(makers) <= _MOST_MAKERS:
        smaller[CHAIN] = [one for one in makers if _is_small(one)]
    if (pusher := pusher_of(document)) is not None and all(map(_is_small, pusher)):
        smaller[PUSHED_BY] = {"id": pusher[0], "worker": pusher[1]}
    attachments = document.get("_attachments")
    stubs = attachments if isinstance(attachments, dict) else {}
    if original is not None:
        data = base64.b64encode(original).decode()
        stubs = {**stubs, ORIGINAL: {"content_type": "application/json", "data": data}}
    if stubs:
        smaller["_attachments"] = stubs
    return smaller


def why_reduced(document: Document) -> str:
    """Return what has become of the content of a job whose document had to be made smaller; empty of any other."""
    told = document.get("reduced")
    return told if isinstance(told, str) and told.startswith(_REDUCED) else ""


def _is_small(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _LONGEST_KEPT)
