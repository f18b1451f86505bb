"""What a request must pass before it becomes a job, whatever the broker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from couchjobs.errors import AdminOnlyError
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest
from couchjobs.supervisor import is_cancelled
from couchjobs.workers.boundary import LeftBehindError, call_in_time, describe
from couchjobs.workers.config import WorkersList

LONGEST_HOOK_S = 30.0
"""Seconds that a `before_hook` may take: whoever pushes, a feed or a clock perhaps, waits for it."""
_MOST_AT_ONCE = 32
"""Calls of one hook: a push of thousands of jobs has no thread for each."""
_at_once: WeakKeyDictionary[asyncio.AbstractEventLoop, defaultdict[str, asyncio.Semaphore]] = WeakKeyDictionary()


def check_admin(workers: WorkersList, request: JobRequest) -> None:
    """Check that the worker takes requests of this kind.

    Raises:
        AdminOnlyError: it takes only those with admin=True.
    """
    if request.worker_type in workers and workers.get(request.worker_type).admin_only and not request.admin:
        raise AdminOnlyError(f"worker {request.worker_type!r} takes only requests with admin=True")


async def is_wanted(workers: WorkersList, job: Job) -> bool:
    """Return whether the worker's `before_hook` wants the job; its exceptions pass, and refuse it.

    A plain hook runs in a thread.

    Raises:
        TimeoutError: it does not end within LONGEST_HOOK_S seconds, which refuses the job too.
    """
    config = workers.get(job.worker) if job.worker in workers else None
    if config is None or config.before_hook is None:
        return True
    try:
        wanted = await _call_in_turn(job.worker, partial(config.before_hook, job.for_function()))
    except TimeoutError as error:
        raise TimeoutError(f"before_hook of worker {job.worker!r}: {error}") from error
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        raise RuntimeError(f"before_hook of worker {job.worker!r}: {describe(error)}") from error
    return wanted is not False


async def _call_in_turn(worker_type: str, hook: Callable[[], Any]) -> Any:
    """Call the hook of a worker type and return what it returns; one that does not end keeps others of it waiting."""
    of_loop = _at_once.setdefault(asyncio.get_running_loop(), defaultdict(lambda: asyncio.Semaphore(_MOST_AT_ONCE)))
    turn = of_loop[worker_type]
    try:
        await asyncio.wait_for(turn.acquire(), LONGEST_HOOK_S)
    except TimeoutError:
        raise TimeoutError(f"{_MOST_AT_ONCE} calls of it do not end") from None
    try:
        wanted = await call_in_time(LONGEST_HOOK_S, hook)
    except LeftBehindError as error:
        error.hook.add_done_callback(lambda _: turn.release())
        raise
    except BaseException:
        turn.release()
        raise
    turn.release()
    return wanted
