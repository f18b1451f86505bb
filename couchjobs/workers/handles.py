"""Worker functions as what others push to: `await greet.push(Greeting(name="Ann"))`.

A decorated function stays what it is, and gets two attributes. In a worker function they go the way of its engine;
elsewhere over the open `Couchjobs` or `connect`, or one of their own, from the environment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from couchjobs.jobs.job import JobOptions
from couchjobs.jobs.request import JobRequest, PushResult, moment_of
from couchjobs.workers.context import WorkerContext, current_context

M_contra = TypeVar("M_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class WorkerWithMessage(Protocol[M_contra, R_co]):
    """A worker function that takes a message."""

    def __call__(self, ctx: WorkerContext, message: M_contra, /) -> R_co:
        """Call the function itself."""

    async def push(
        self,
        message: M_contra,
        *,
        id: str | None = None,  # noqa: A002  the name of the field
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        options: JobOptions | None = None,
    ) -> PushResult:
        """Store a job for this worker; as `Couchjobs.push`."""

    def sync_push(
        self,
        message: M_contra,
        *,
        id: str | None = None,  # noqa: A002
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        options: JobOptions | None = None,
    ) -> PushResult:
        """Do the same from a plain function or a program without an event loop."""


class WorkerWithout(Protocol[R_co]):
    """A worker function that takes none."""

    def __call__(self, ctx: WorkerContext, /) -> R_co:
        """Call the function itself."""

    async def push(
        self,
        message: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        options: JobOptions | None = None,
    ) -> PushResult:
        """Store a job for this worker; as `Couchjobs.push`."""

    def sync_push(
        self,
        message: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        options: JobOptions | None = None,
    ) -> PushResult:
        """Do the same from a plain function or a program without an event loop."""


class _Outside:
    """How jobs are pushed outside of worker functions; filled by the layer above, which has a client."""

    push: Callable[[JobRequest], Awaitable[PushResult]]
    sync_push: Callable[[JobRequest], PushResult]


outside = _Outside()


def add_handles(function: Any, worker_type: str) -> None:
    """Give the function its `push` and `sync_push`, where it can have attributes."""

    def request_of(
        context: WorkerContext | None, message: Any = None, *, delay: Any = None, at: Any = None, **given: Any
    ) -> JobRequest:
        moment = moment_of(delay, at, None if context is None else context.now())
        return JobRequest(worker_type=worker_type, message=message, scheduled_at=moment, **given)

    async def push(message: Any = None, **given: Any) -> PushResult:
        context = current_context()
        request = request_of(context, message, **given)
        return await (outside.push(request) if context is None else context.push_request(request))

    def sync_push(message: Any = None, **given: Any) -> PushResult:
        context = current_context()
        request = request_of(context, message, **given)
        return outside.sync_push(request) if context is None else context.sync_push_request(request)

    function.push, function.sync_push = push, sync_push
