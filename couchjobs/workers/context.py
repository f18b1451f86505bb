"""What a worker function gets to know of its job."""

from __future__ import annotations

import copy
import time
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, TypeVar

from structlog.typing import FilteringBoundLogger

from couchjobs.jobs.job import Job
from couchjobs.jobs.message import unmarshal
from couchjobs.log import get_logger

T = TypeVar("T")

_present: ContextVar[WorkerContext | None] = ContextVar("couchjobs_job", default=None)


@dataclass(slots=True)
class Resources:
    """What the functions of one worker type share in one process; `worker_init` fills it, `worker_stop` closes it."""

    worker_type: str
    value: Any = None
    """Whatever the functions are to have, as `ctx.resources`: a pool of connections, a client."""

    @property
    def logger(self) -> FilteringBoundLogger:
        """Return a logger that names the worker type in every line."""
        logger: FilteringBoundLogger = get_logger("couchjobs.worker").bind(worker=self.worker_type)
        return logger


class _Flags:
    """What all copies of a context share: plain attributes, which threads may read and set."""

    __slots__ = ("cancelled", "no_retry")

    def __init__(self) -> None:
        self.cancelled = False
        self.no_retry = False


class WorkerContext:
    """One try of one job. The same object is given to all hooks of the try, unless one returns another."""

    def __init__(self, job: Job, daemon: str = "", resources: Resources | None = None) -> None:
        self._given = job
        self._job: Job | None = None
        self._resources = resources
        self.daemon = daemon
        self.cookie: Any = None
        """Whatever `worker_start` wants `worker_func` to have."""
        self.deadline: float | None = None
        """When the try must end, by `time.monotonic()`; None: no limit."""
        self._flags = _Flags()

    @property
    def job(self) -> Job:
        """Return the job: a copy of this try's own, whatever the function does to it."""
        if self._job is None:
            self._job = self._given.for_function()
        return self._job

    @property
    def id(self) -> str:
        """Return the id of the job."""
        return self._given.id

    @property
    def logger(self) -> FilteringBoundLogger:
        """Return a logger that names the job in every line."""
        return self._given.logger

    @property
    def resources(self) -> Any:
        """Return what `worker_init` has put into its Resources."""
        return self._resources.value if self._resources is not None else None

    @property
    def manual(self) -> bool:
        """Return whether a person asked for the job."""
        return self._given.manual_execution

    @property
    def trigger_id(self) -> str | None:
        """Return the id of the trigger that fired, if one did."""
        return self._given.trigger_id

    @property
    def tick(self) -> datetime | None:
        """Return the moment of its schedule at which the trigger fired; None where it was not the clock."""
        return self._given.tick

    @property
    def previous_tick(self) -> datetime | None:
        """Return the moment before `tick` at which the trigger fired; None where there is none."""
        return self._given.previous_tick

    @property
    def exec_count(self) -> int:
        """Return which try this is, from 1."""
        return self._given.exec_count

    @property
    def no_retry(self) -> bool:
        """Return whether `set_no_retry` was called."""
        return self._flags.no_retry

    def set_no_retry(self) -> None:
        """Make a failure of this try the last one."""
        self._flags.no_retry = True

    @property
    def cancelled(self) -> bool:
        """Return whether a plain function should end: the job was cancelled, ran out of time, or the daemon stops."""
        return self._flags.cancelled

    def cancel(self) -> None:
        """Ask the function to end; `cancelled` is true from now on."""
        self._flags.cancelled = True

    def with_cookie(self, cookie: Any) -> Self:
        """Return this context with that cookie."""
        twin = copy.copy(self)
        twin.cookie = cookie
        return twin

    def with_timeout(self, timeout: float) -> Self:
        """Return this context with at most `timeout` seconds from now."""
        twin = copy.copy(self)
        deadline = time.monotonic() + timeout
        twin.deadline = deadline if self.deadline is None else min(self.deadline, deadline)
        return twin

    def unmarshal_message(self, model: type[T]) -> T:
        """Return the message as an instance of `model`.

        Raises:
            MessageNilError: there is none.
            MessageUnmarshalError: it does not fit.
        """
        return unmarshal(self.job.message, model)

    def unmarshal_event(self, model: type[T]) -> T:
        """Return the event as an instance of `model`.

        Raises:
            MessageNilError: the job has none.
            MessageUnmarshalError: it does not fit.
        """
        return unmarshal(self.job.event, model)


def begin_job(context: WorkerContext) -> None:
    """Make this the context of the present task, and of the tasks and threads that it starts."""
    _present.set(context)


def current_context() -> WorkerContext | None:
    """Return the context of the try whose function this is called from, however deep; None outside of one."""
    return _present.get()


def current_job() -> Job | None:
    """Return the job whose function this is called from, however deep, as `ctx.job`; None outside of one."""
    context = _present.get()
    return None if context is None else context.job
