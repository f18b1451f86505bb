"""What a worker function gets to know of its job."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from structlog.typing import FilteringBoundLogger

from couchjobs.errors import ConfigurationError
from couchjobs.jobs.ids import follower_id
from couchjobs.jobs.job import Job, JobOptions
from couchjobs.jobs.lives import is_of_another_life, life_of
from couchjobs.jobs.message import unmarshal
from couchjobs.jobs.request import JobRequest, PushResult, moment_of
from couchjobs.jobs.values import to_json
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time
from couchjobs.workers.databases import Databases, SyncDatabases
from couchjobs.workers.progress import Engine, Progress, time_of

T = TypeVar("T")
MARK = "__couchjobs_worker__"
"""The attribute of a decorated function that holds its configuration."""

_ROUNDING = 1e-6
"""How far sums of fractions may be off."""
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

    def __init__(
        self, job: Job, daemon: str = "", resources: Resources | None = None, engine: Engine | None = None
    ) -> None:
        self._engine = engine
        self.purpose = ""
        """What the function is called for, beside doing the job: its pushes have ids of their own."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pushed: dict[str, int] = {}
        """How many jobs of each type this try has pushed without a key; that of all copies."""
        self.told: Progress | None = None
        """What writes how far the job has come, once the function has said so."""
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
    def payload_headers(self) -> dict[str, str]:
        """Return the headers of a delivery to a @webhook: those that its trigger lists and that came."""
        headers = self.job.payload_headers
        return headers if isinstance(headers, dict) else {}

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

    @property
    def couch(self) -> Databases:
        """Return the databases of the tenant, by doctype: `await ctx.couch["orders"].get(order_id)`.

        With the rights of the daemon. In a plain function: `ctx.sync_couch`.
        """
        self._check_awaited("ctx.couch", "ctx.sync_couch")
        return self._databases

    @property
    def sync_couch(self) -> SyncDatabases:
        """Return the same for plain functions: `ctx.sync_couch["orders"].get(order_id)`."""
        return SyncDatabases(self._databases, self._from_thread)

    @property
    def _databases(self) -> Databases:
        return Databases(self._engine, Prefixer(self._given.domain, self._given.prefix))

    def push(
        self,
        worker: str | Callable[..., Any],
        message: Any = None,
        *,
        key: str | None = None,
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        options: JobOptions | None = None,
    ) -> Coroutine[Any, Any, PushResult]:
        """Store a further job, once: its id is made of this job's, so that a second try pushes no second one.

        Args:
            worker: the type, or the function that is decorated.
            message: JSON, a pydantic model, or a dataclass.
            key: tells this push from others to the same worker; None: its number among them, for functions that push
                the same in each try.
            delay: how long it waits at least: seconds, text such as "10m", or a timedelta.
            at: when it may run at the earliest, with a time zone.
            priority: higher first.
            options: what the job asks of its worker.

        Raises:
            BadDocumentError: JSON cannot hold the message, it is too large, or a `before_hook` does not want the job.
            ConfigurationError: `delay` is no duration, there are `delay` and `at`, or this is a plain function: nobody
                would await it.
            CouchError: CouchDB does not take it.
        """
        self._check_awaited("ctx.push", "ctx.sync_push")
        return self._push(worker, message, key=key, delay=delay, at=at, priority=priority, options=options)

    async def _push(
        self,
        worker: str | Callable[..., Any],
        message: Any,
        *,
        key: str | None = None,
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        options: JobOptions | None = None,
    ) -> PushResult:
        name = worker if isinstance(worker, str) else str(getattr(worker, MARK).worker_type)
        number = self._pushed[name] = self._pushed.get(name, 0) + (key is None)
        told = self.purpose + (f"key {key}" if key is not None else f"number {number}")
        life = life_of(self._given)
        request = JobRequest(
            worker_type=name,
            message=message,
            id=follower_id(self.id, name, told),
            scheduled_at=moment_of(delay, at, self.now()),
            priority=priority,
            options=options,
            pushed_in=life,
            pushed_by={"id": self.id, "worker": self._given.worker},
        )
        pushed = await self._pushed_by_engine(request, hides_id=True)
        if pushed.created or not is_of_another_life(pushed.job, life):
            return pushed
        request = replace(request, id=follower_id(self.id, name, f"{told} since {life}"))
        return await self._pushed_by_engine(request, hides_id=True)

    def sync_push(self, worker: str | Callable[..., Any], message: Any = None, **given: Any) -> PushResult:
        """Do the same from a plain function."""
        return self._from_thread(self._push(worker, message, **given))

    def now(self) -> datetime:
        """Return the present time, in UTC; in a test with `TestSystem`, that of its clock."""
        return time_of(self._engine)

    async def push_request(self, request: JobRequest) -> PushResult:
        """Store the job that the request asks for.

        Raises:
            ConfigurationError: this is not the event loop of the engine.
            CouchjobsError: as `push`.
        """
        self._check_awaited("push", "sync_push")
        return await self._pushed_by_engine(request, hides_id=False)

    async def _pushed_by_engine(self, request: JobRequest, *, hides_id: bool) -> PushResult:
        if self._engine is None:
            raise ConfigurationError("this context belongs to no try: nothing can be pushed from it")
        db = Prefixer(self._given.domain, self._given.prefix)
        return await self._engine.push(db, request, hides_id=hides_id)

    def sync_push_request(self, request: JobRequest) -> PushResult:
        """Do the same from a plain function."""
        return self._from_thread(self.push_request(request))

    def _check_awaited(self, what: str, instead: str) -> None:
        """Check that this is a coroutine function, or called by one: what it returns is to be awaited, by the engine.

        Raises:
            ConfigurationError: it is a plain one, or one that a plain one runs in an event loop of its own.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(f"{what} is for coroutine functions; in a plain function: {instead}") from None
        if self._loop is not None and here is not self._loop:
            raise ConfigurationError(
                f"{what} is for the event loop of the engine, and this is one of the function's own: use {instead},"
                " or make the function itself a coroutine function"
            )

    def _from_thread(self, what: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns that runs in the event loop of the engine.

        Raises:
            ConfigurationError: this is the event loop, which would wait for itself.
        """
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if self._loop is None or here is self._loop:
            what.close()
            raise ConfigurationError(
                "sync_push is for plain functions, as sync_couch is; in a coroutine function:"
                " await ctx.push(...), await ctx.couch[...].get(...)"
            )
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def progress(self, done: float, text: str = "") -> None:
        """Tell how far the job has come: from 0 to 1, and in words; `progress` of its document, within a second or so.

        From coroutine functions and plain ones; the last word counts, and never is in the way of other changes.

        Raises:
            ValueError: `done` is no number from 0 to 1.
            MessageUnmarshalError: JSON cannot hold the text.
        """
        if isinstance(done, bool) or not isinstance(done, int | float) or not -_ROUNDING <= done <= 1 + _ROUNDING:
            raise ValueError(f"progress: `done` is a number from 0 to 1, such as 0.5, and not {done!r:.50}")
        done = min(1, max(0, done))
        if self._engine is None or self._loop is None:
            return
        at = format_time(self._engine.now())
        progress = to_json({"done": done, **({"text": text} if text else {}), "at": at}, "progress")
        if self.told is None:
            self.told = Progress(self._engine, self._given, self._loop)
        self.told.tell(progress)

    def begin(self) -> None:
        """Take note that the function is about to run, in the event loop of here."""
        self._loop = asyncio.get_running_loop()
        if self._engine is not None:
            self._engine.enter()

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
    context.begin()


def current_context() -> WorkerContext | None:
    """Return the context of the try whose function this is called from, however deep; None outside of one."""
    return _present.get()


def current_job() -> Job | None:
    """Return the job whose function this is called from, however deep, as `ctx.job`; None outside of one."""
    context = _present.get()
    return None if context is None else context.job
