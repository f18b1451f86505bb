"""What a request must pass before it becomes a job, whatever the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from couchjobs.errors import AdminOnlyError
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest
from couchjobs.supervisor import is_cancelled
from couchjobs.workers.boundary import LeftBehindError, call_in_time, describe, is_coroutine
from couchjobs.workers.config import WorkersList

LONGEST_HOOK_S = 30.0
"""Seconds that a `before_hook` may take: whoever pushes, a feed or a clock perhaps, waits for it."""
_MOST_AT_ONCE = 32
"""Calls of one hook: a push of thousands of jobs has no thread for each."""


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
        wanted = await _call_in_turn(job.worker, config.before_hook, job.for_function())
    except TimeoutError as error:
        raise TimeoutError(f"before_hook of worker {job.worker!r}: {error}") from error
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        raise RuntimeError(f"before_hook of worker {job.worker!r}: {describe(error)}") from error
    return wanted is not False


async def _call_in_turn(worker_type: str, hook: Callable[..., Any], job: Job) -> Any:
    """Call the hook of a worker type and return what it returns; plain ones have so many threads at once."""
    if is_coroutine(hook):
        return await call_in_time(LONGEST_HOOK_S, hook, job)
    loop = asyncio.get_running_loop()
    turns = _turns.setdefault((id(loop), worker_type), _Turns())
    turns.wanted += 1
    try:
        await turns.take()
        try:
            wanted = await call_in_time(LONGEST_HOOK_S, hook, job)
        except LeftBehindError as error:
            error.hook.add_done_callback(lambda _: turns.give_back())
            raise
        except BaseException:
            turns.give_back()
            raise
        turns.give_back()
        return wanted
    finally:
        turns.wanted -= 1
        if not turns.wanted:
            _turns.pop((id(loop), worker_type), None)


class _Turns:
    """The calls of one plain hook that run at once."""

    def __init__(self) -> None:
        self.wanted = 0
        """How many are wanted now, or run."""
        self._free = _MOST_AT_ONCE
        self._ended = 0
        self._news = asyncio.Event()

    async def take(self) -> None:
        """Wait for a turn, as long as others come to theirs.

        Raises:
            TimeoutError: none of those that run has ended for a while.
        """
        while self._free <= 0:
            self._news.clear()
            ended = self._ended
            try:
                await asyncio.wait_for(self._news.wait(), LONGEST_HOOK_S)
            except TimeoutError:
                if self._ended == ended:
                    raise TimeoutError(f"{_MOST_AT_ONCE} calls of it do not end") from None
        self._free -= 1

    def give_back(self) -> None:
        """Take note that a call has ended."""
        self._free += 1
        self._ended += 1
        self._news.set()


_turns: dict[tuple[int, str], _Turns] = {}
"""By event loop and worker type, while there are calls."""
