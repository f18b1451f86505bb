"""Telling whoever wants to hear of it that a job has failed for good: `on_failed` of its worker, and for all types.

They are called in the daemon that is about to store that end, whatever the cause, and before it is stored: a daemon
that dies in between is followed by another one, which calls them again. So they are called at least once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import TypeVar

from couchjobs.errors import JobFailedError
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.own_claims import RecentRevisions
from couchjobs.log import get_logger
from couchjobs.supervisor import is_cancelled
from couchjobs.workers.boundary import LONGEST_HOOK_S, call_hook, call_in_time, describe, name_of
from couchjobs.workers.config import OnFailed, WorkersList
from couchjobs.workers.context import WorkerContext, begin_job
from couchjobs.workers.progress import Engine
from couchjobs.workers.turns import in_turn

F = TypeVar("F", bound=Callable[..., object])

_logger = get_logger(__name__)
_for_all: list[OnFailed] = []


def on_failed(function: F) -> F:
    """Have the decorated function called, as `f(ctx, error)`, for each job of whatever type that has failed for good.

    `error` is a JobFailedError. A coroutine function runs in the event loop of the daemon, a plain one in a thread; it
    has 30 s. Of one job it may be called more than once, where a daemon dies meanwhile, and for one that cannot be run
    by each daemon that finds it; for jobs that were cancelled it is not.
    """
    _for_all.append(function)  # type: ignore[arg-type]
    return function


class Failures:
    """Those of one daemon.

    Args:
        workers: the types that it has.
        daemon: its id, for the contexts.
        engine: what they can have done; None: nothing.
    """

    def __init__(self, workers: WorkersList, daemon: str, engine: Engine | None = None) -> None:
        self.workers = workers
        self.daemon = daemon
        self._engine = engine
        self._told = RecentRevisions()

    def wanted(self, worker_type: str) -> bool:
        """Return whether somebody wants to hear of jobs of that type."""
        return bool(_for_all) or (worker_type in self.workers and self.workers.get(worker_type).on_failed is not None)

    async def tell_refused(self, job: Job, reason: str) -> None:
        """Tell those who want to hear of it of a job that is not run, before that is its end."""
        if self.wanted(job.worker):
            await self.tell(job, JobFailedError(reason, "refused"))

    async def tell(self, job: Job, error: JobFailedError) -> None:
        """Call those who want to hear of it, one after the other; what they raise is logged.

        Where that end is stored only later, and tried again, they have heard of it.
        """
        one = job.claim.id if job.claim is not None and job.state is State.RUNNING else job.rev
        end = blake2b(f"{job.prefix} {job.id} {one}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        if one and end in self._told:
            return
        own = self.workers.get(job.worker).on_failed if job.worker in self.workers else None
        context = WorkerContext(job, self.daemon, engine=self._engine)
        context.purpose = "on_failed "
        for function in (*([own] if own is not None else []), *_for_all):
            try:
                call = partial(call_in_time, LONGEST_HOOK_S, partial(_call, function, context, error))
                await in_turn(LONGEST_HOOK_S, function, call)
            except BaseException as raised:
                if is_cancelled():
                    raise
                _logger.error("on_failed failed", job=job.id, function=name_of(function), error=describe(raised))  # noqa: TRY400
        self._told.add(end)


async def _call(function: OnFailed, context: WorkerContext, error: JobFailedError) -> None:
    begin_job(context)
    await call_hook(function, context, error)
