"""What a request must pass before it becomes a job, whatever the broker."""

from __future__ import annotations

import inspect

from couchjobs.errors import AdminOnlyError
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest
from couchjobs.workers.config import WorkersList


def check_admin(workers: WorkersList, request: JobRequest) -> None:
    """Check that the worker takes requests of this kind.

    Raises:
        AdminOnlyError: it takes only those with admin=True.
    """
    if request.worker_type in workers and workers.get(request.worker_type).admin_only and not request.admin:
        raise AdminOnlyError(f"worker {request.worker_type!r} takes only requests with admin=True")


async def is_wanted(workers: WorkersList, job: Job) -> bool:
    """Return whether the worker's `before_hook` wants the job; its exceptions pass, and refuse it."""
    config = workers.get(job.worker) if job.worker in workers else None
    if config is None or config.before_hook is None:
        return True
    wanted = config.before_hook(job)
    return (await wanted if inspect.isawaitable(wanted) else wanted) is not False
