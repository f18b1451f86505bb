"""Lives of a job: what is pushed with the id of a job that was removed is another job, and so is what that one pushes.

A life begins when the job is queued first, as its document says; to be queued again does not end it. A job that another
one pushes has an id that comes from that one's, and names the life that it was pushed in.
"""

from __future__ import annotations

from couchjobs.couch.database import Document
from couchjobs.jobs.job import Job

FIRST_QUEUED_AT = "first_queued_at"
"""The field of a job that was queued again: when it was queued first, as it is written there."""
PUSHED_IN = "pushed_in"
"""The field of a job that another one has pushed: the life of that one."""
PUSHED_BY = "pushed_by"
"""The field of such a job that tells which one: its id and its worker, which says where it is."""


def life_of(job: Job) -> str:
    """Return the present life of a job; empty where its document does not tell."""
    document = job.document()
    said = document.get(FIRST_QUEUED_AT) or document.get("queued_at")
    return said if isinstance(said, str) else ""


def pusher_of(document: Document) -> tuple[str, str] | None:
    """Return the id and the worker of the job that has pushed this one; None where none has, or that is not told."""
    told = document.get(PUSHED_BY)
    found = (told.get("id"), told.get("worker")) if isinstance(told, dict) else None
    match found:
        case (str(job_id), str(worker)):
            return job_id, worker
    return None


def is_of_another_life(pushed: Job, life: str) -> bool:
    """Return whether a job was pushed by an earlier job with the id of the one that has this life."""
    said = pushed.document().get(PUSHED_IN)
    return bool(life) and isinstance(said, str) and said != life
