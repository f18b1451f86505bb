"""What a request must pass before it becomes a job, whatever the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from couchjobs.errors import AdminOnlyError, HookError
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest
from couchjobs.supervisor import is_cancelled
from couchjobs.workers.boundary import LONGEST_HOOK_S, LeftBehindError, call_in_time, describe
from couchjobs.workers.config import WorkersList
from couchjobs.workers.turns import in_turn


def check_admin(workers: WorkersList, request: JobRequest) -> None:
    """Check that the worker takes requests of this kind.

    Raises:
        AdminOnlyError: it takes only those with admin=True.
    """
    if request.worker_type in workers and workers.get(request.worker_type).admin_only and not request.admin:
        raise AdminOnlyError(f"worker {request.worker_type!r} takes only requests with admin=True")


async def is_wanted(workers: WorkersList, job: Job) -> bool:
    """Return whether the worker's `before_hook` wants the job. A plain hook runs in a thread.

    Raises:
        HookError: it raises, or does not end within LONGEST_HOOK_S seconds, which refuses the job.
    """
    config = workers.get(job.worker) if job.worker in workers else None
    hook = config.before_hook if config is not None else None
    if hook is None:
        return True
    try:
        wanted = await in_turn(LONGEST_HOOK_S, hook, partial(call_in_time, LONGEST_HOOK_S, hook, job.for_function()))
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        text = f"before_hook of worker {job.worker!r}: {describe(error)}"
        if isinstance(error, LeftBehindError):
            raise HookError(text, TimeoutError(text)) from error
        raise HookError(text, error if isinstance(error, Exception) else RuntimeError(text)) from error
    return wanted is not False


@contextmanager
def as_raised() -> Iterator[None]:
    """Have who pushes from Python meet what the hook has raised itself."""
    try:
        yield
    except HookError as error:
        raise error.raised from None
