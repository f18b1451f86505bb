"""One try of one job: hooks, the function, its time limit, and what its errors mean.

A try ends in an Outcome and touches no network; the broker writes the outcome to the document. Every call of what a
user gave goes through the boundary, which lets nothing through but a value or an error.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from dataclasses import replace
from inspect import isawaitable
from typing import Any, NamedTuple, Protocol

from couchjobs.deadlines import Deadline, Deadlines
from couchjobs.errors import AbortJob, BadTriggerError, ConfigurationError, MessageNilError, MessageUnmarshalError
from couchjobs.jobs.job import Job
from couchjobs.jobs.message import unmarshal
from couchjobs.jobs.values import to_json
from couchjobs.log import get_logger
from couchjobs.supervisor import is_cancelled
from couchjobs.tracing import span_of_try
from couchjobs.workers.boundary import (
    GRACE_S,
    LONGEST_HOOK_S,
    Call,
    Ended,
    LeftBehindError,
    call_hook,
    call_in_time,
    describe,
    in_thread,
    leaves_of,
    let_go,
    result_of,
    traceback_of,
)
from couchjobs.workers.config import WorkerConfig
from couchjobs.workers.context import Resources, WorkerContext, begin_job
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry
from couchjobs.workers.progress import Engine, time_of
from couchjobs.workers.retry import LONGEST_DELAY_S, has_tries_left, retry_delay, time_limit

TASKS = "couchjobs job"
"""What the names of the tasks of running jobs begin with."""

_logger = get_logger(__name__)
_BLOCKED_S = 0.5
"""Seconds after its time from which a coroutine that was not ended is told of."""
_NEVER_RETRIED = (MessageUnmarshalError, MessageNilError)
_NOBODY_ASKED = "the function was cancelled, by itself or by another one, and nobody had asked for that"


def task_of(job: Job) -> str:
    """Return the name of the task in which the function of a job runs."""
    return f"{TASKS} {job.id}'s function"


class _NoResult(NamedTuple):
    """In the place of a result that is no JSON."""

    reason: str


class Lease(Protocol):
    """What a daemon knows of its own life."""

    @property
    def is_lost(self) -> bool:
        """Whether the others may take it for dead by now, and have its jobs."""


class Worker:
    """Runs the jobs of one type."""

    def __init__(
        self,
        config: WorkerConfig,
        longest_delay: float = LONGEST_DELAY_S,
        engine: Engine | None = None,
    ) -> None:
        """Take the longest wait of a retry in seconds, and what functions push further jobs by."""
        self.engine = engine
        self.config = config
        self.longest_delay = longest_delay
        self.deadlines = Deadlines()
        """Of its tries."""
        self.is_coroutine = config.is_coroutine
        self.resources = Resources(config.worker_type)

    async def init(self) -> None:
        """Call `worker_init`, whose exceptions pass, with a note that says whose they are; what is none becomes one.

        Raises:
            ConfigurationError: it wants to end the process, say.
        """
        if self.config.worker_init is None:
            return
        try:
            await call_in_time(None, self.config.worker_init, *self._given(self.config.worker_init))
        except Exception as error:
            error.add_note(f"worker_init of worker {self.config.worker_type!r} failed")
            raise
        except BaseException as error:
            if is_cancelled():
                raise
            raise ConfigurationError(f"worker_init of {self.config.worker_type!r}: {describe(error)}") from error

    async def stop(self) -> None:
        """Call `worker_stop`, whose exceptions are logged."""
        if self.config.worker_stop is None:
            return
        try:
            arguments = self._given(self.config.worker_stop)
            await call_in_time(LONGEST_HOOK_S, self.config.worker_stop, *arguments)
        except BaseException as error:
            if is_cancelled():
                raise
            _logger.error("worker_stop failed", worker=self.config.worker_type, error=describe(error))  # noqa: TRY400

    def _given(self, hook: Any) -> tuple[Resources, ...]:
        return (self.resources,) if self.config.takes_resources(hook) else ()

    def begin(self, job: Job, daemon: str = "", lease: Lease | None = None) -> Try:
        """Return a try of the job, not yet running."""
        return Try(self, job, daemon, lease)


class Try:
    """One try of one job."""

    def __init__(self, worker: Worker, job: Job, daemon: str, lease: Lease | None) -> None:
        self._config = worker.config
        self._is_coroutine = worker.is_coroutine
        self._longest_delay = worker.longest_delay
        self._engine = worker.engine
        self._job = job
        self._context = WorkerContext(job, daemon, worker.resources, worker.engine)
        self._lease = lease
        self._call: Call | None = None
        self._thread: asyncio.Future[Ended] | None = None
        self._deadlines = worker.deadlines
        self._limit: Deadline | None = None
        self._late = ""
        self._seconds = 0.0
        self._stopped_as: Cancelled | Interrupted | None = None
        self._no_time: asyncio.Future[None] | None = None
        """Done once hooks that follow the function have no time any more: the daemon stops."""
        self._said: tuple[BaseException, str, str] | None = None
        """An error of a plain function, its description and its traceback, as its own thread tells them."""
        self.outliving: asyncio.Future[Any] | None = None
        """What outlives the outcome: a plain function, whose thread nobody can end from outside, or a coroutine that
        swallows its cancellation."""

    def stop(self, outcome: Cancelled | Interrupted, grace_s: float = GRACE_S) -> None:
        """End the try with that outcome: a coroutine is cancelled, a plain function finds `ctx.cancelled` true.

        `grace_s`: seconds that the function has for that; a second call may shorten them.
        """
        if self._stopped_as is None:
            self._stopped_as = outcome
            self._context.cancel()
        if self._call is not None:
            waits = self._thread is None or isinstance(outcome, Interrupted)
            self._call.cancel(grace_s if waits else 0.0)
        if isinstance(outcome, Interrupted):
            asyncio.get_running_loop().call_later(grace_s, self._have_no_time)

    def _have_no_time(self) -> None:
        if not self._until_no_time.done():
            self._until_no_time.set_result(None)

    @property
    def _until_no_time(self) -> asyncio.Future[None]:
        if self._no_time is None:
            self._no_time = asyncio.get_running_loop().create_future()
        return self._no_time

    async def run(self) -> Outcome:
        """Run the function and return what came of it."""
        if self._stopped_as is not None:
            return self._stopped_as
        began = time.monotonic()
        limit = time_limit(self._config, self._job, time_of(self._engine))
        if limit is not None and limit <= 0:  # it was in the queue for too long, or its daemon has died
            return await self._fail_unbegun(TimeoutError("no time is left of its max_exec_time: it was not begun"))
        ended = await self._called_within(limit)
        self._seconds = time.monotonic() - began
        self._tell_if_blocked()
        if self._context.told is not None:
            await self._context.told.close()
        if ended is not None and ended.error is None and ended.value is None and self._config.worker_commit is None:
            return Done(seconds=self._seconds)
        try:
            outcome, error = await self._outcome_of(ended)
        except BaseException as raised:
            if is_cancelled():
                raise
            outcome, error = Failed(f"its error cannot be told: {describe(raised)}"), raised
        try:
            if isinstance(outcome, Done | Failed | Cancelled):
                await self._commit(error)
        finally:
            let_go(error)
            let_go(ended.error if ended is not None else None)
        return outcome

    def _tell_if_blocked(self) -> None:
        """Say that a coroutine's time was over before anybody could end it: it has blocked, or another one."""
        deadline = self._context.deadline
        over = 0.0 if deadline is None or self._late or not self._is_coroutine else time.monotonic() - deadline
        if over > _BLOCKED_S:
            self._context.logger.warning(
                "a coroutine function had more than its time, for something held the event loop:"
                " what blocks must be a plain function"
            )

    async def _called_within(self, seconds: float | None) -> Ended | None:
        """Call the function; return how that has ended, None where it does not end."""
        self._call = Call(self._body, task_of(self._job))
        if seconds is not None:
            self._context.deadline = time.monotonic() + seconds
            self._end_in(seconds, seconds)
        try:
            ended = await self._call.over()
        finally:
            if self._limit is not None:
                self._limit.cancel()
        if ended is None:
            self.outliving = self._call.task
            if self._thread is None:  # of a plain one, which nobody can stop, the slot tells if it does not end soon
                self._context.logger.warning(
                    "a function does not end, and is left behind", exec_count=self._job.exec_count
                )
        return ended

    async def _fail_unbegun(self, error: TimeoutError) -> Failed:
        """Fail for good, without a call of the function."""
        self._context.begin()  # for the hook
        await self._commit(error)
        return Failed(describe(error))

    def _end_in(self, seconds: float, told: float) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self._deadlines.call_later(seconds, self._end_late, told)

    def _end_late(self, seconds: float) -> None:
        self._tell_if_blocked()
        self._late = f"no end within {round(seconds, 3):g} s"
        self._context.cancel()
        if self._call is not None:
            self._call.cancel(0.0 if self._thread is not None else GRACE_S)

    async def _body(self) -> Any:
        """Call what the user gave: middleware, `worker_start`, the function."""
        self._check_time()
        if self._config.middleware or self._config.worker_start is not None:
            self._lease = None  # what the user gave begins now, and may take its time
        begin_job(self._context)
        job = self._job
        carrier = job.trace_context if isinstance(job.trace_context, dict) else None
        with span_of_try(job.worker, job.id, job.exec_count, carrier):
            return await self._call_within()

    def _check_time(self) -> None:
        """Check that the job is still ours: the process may have stood still between its claim and now.

        Raises:
            CancelledError: others may have it.
        """
        if self._lease is not None and self._lease.is_lost:
            self._stopped_as = self._stopped_as or Interrupted()
            raise asyncio.CancelledError

    def _check_wanted(self) -> None:
        """Check that the try is not over: what is called before the function may have swallowed that.

        Raises:
            CancelledError: it is.
        """
        if self._stopped_as is not None or self._late:
            raise asyncio.CancelledError

    async def _call_within(self) -> Any:
        """Call `worker_start` and the function, with the middleware around them."""
        if not self._config.middleware:
            return await self._call_function([])
        plain: list[AbstractContextManager[Any]] = []
        async with AsyncExitStack() as stack:
            for middleware in self._config.middleware:
                manager = await call_hook(middleware, self._context)
                if hasattr(manager, "__aenter__"):
                    await stack.enter_async_context(manager)
                elif self._is_coroutine:
                    stack.enter_context(manager)
                else:
                    plain.append(manager)
            return await self._call_function(plain)
        raise RuntimeError("a middleware has swallowed the error of the function")

    async def _call_function(self, around: list[AbstractContextManager[Any]]) -> Any:
        """Call `worker_start` and the function; a plain one in a thread, in which `around` is entered too."""
        config = self._config
        if config.worker_start is not None:
            await self._start(config.worker_start)
        arguments: list[Any] = [self._context]
        if config.takes_message:
            message, model = self._context.job.message, config.message_model
            arguments.append(message if model is None else unmarshal(message, model))
        self._check_wanted()
        if self._is_coroutine:
            return await config.worker_func(*arguments)
        self._thread = in_thread(self._within, around, config.worker_func, *arguments)
        value = await result_of(self._thread)
        if self._late:  # middleware must not take for done what is not
            raise TimeoutError(self._late)
        return value

    def _within(self, around: list[AbstractContextManager[Any]], function: Any, *arguments: Any) -> Any:
        """Call a plain function; what its result or error is made of may take its time, and is called here, too."""
        self._check_time()
        try:
            value = self._within_all(around, function, *arguments)
        except BaseException as error:
            self._said = error, describe(error), traceback_of(error)
            raise
        if value is None or isawaitable(value):
            return value
        try:
            return to_json(value, "result")
        except BaseException as error:  # noqa: BLE001  a model of the user's may raise anything
            return _NoResult(describe(error))

    def _within_all(self, around: list[AbstractContextManager[Any]], function: Any, *arguments: Any) -> Any:
        if not around:
            return function(*arguments)
        with ExitStack() as stack:
            for manager in around:
                stack.enter_context(manager)
            self._check_wanted()
            return function(*arguments)
        raise RuntimeError("a middleware has swallowed the error of the function")

    async def _start(self, worker_start: Any) -> None:
        context = await call_hook(worker_start, self._context)
        if not isinstance(context, WorkerContext):
            raise TypeError(f"worker_start returned {context!r:.100}, and not the context to go on with")
        self._context = context
        begin_job(context)
        if self._stopped_as is not None:
            context.cancel()
            self._check_wanted()
        if context.deadline is not None:
            left = max(0.0, context.deadline - time.monotonic())
            self._end_in(left, left)

    async def _outcome_of(self, ended: Ended | None) -> tuple[Outcome, BaseException | None]:
        """Return what the end of the call means, and the error that hooks are told of; None: it has no end."""
        error = ended.error if ended is not None else asyncio.CancelledError()
        if ended is not None and error is None:
            if isinstance(ended.value, _NoResult):
                return Done(lost=ended.value.reason, seconds=self._seconds), None
            try:
                return Done(to_json(ended.value, "result"), seconds=self._seconds), None
            except BaseException as raised:  # noqa: BLE001  a model of the user's may raise anything
                return Done(
                    lost=describe(raised), seconds=self._seconds
                ), None  # the work is done, and is not done again for that
        if self._stopped_as is not None:
            return self._stopped_as, error
        if self._late:
            goes_on = ended is None and self._thread is not None and not self._thread.done()
            error = TimeoutError(f"{self._late}; the function goes on in its thread" if goes_on else self._late)
        elif error is not None and issubclass(type(error), asyncio.CancelledError):
            error = asyncio.CancelledError(_NOBODY_ASKED)
        return await self._meaning_of(asyncio.CancelledError() if error is None else error), error

    async def _meaning_of(self, error: BaseException) -> Outcome:
        kinds = [type(one) for one in leaves_of(error)]
        causes = [kind for kind in kinds if not issubclass(kind, asyncio.CancelledError)] or [type(error)]
        if all(issubclass(kind, AbortJob) for kind in causes):
            said = describe(next(one for one in leaves_of(error) if isinstance(one, AbortJob))).partition(": ")[2]
            return Done(said or None, seconds=self._seconds)
        if self._said is not None and self._said[0] is error:
            _, text, trace = self._said
        else:
            text, trace = describe(error), traceback_of(error)
        failed = Failed(text, traceback=trace, seconds=self._seconds)
        if any(issubclass(kind, BadTriggerError) for kind in causes):
            return replace(failed, bad_trigger=True)
        if self._context.no_retry or any(issubclass(kind, _NEVER_RETRIED) for kind in causes):
            return failed
        if not has_tries_left(self._config, self._job) or not await self._hook_wants_another(error):
            return failed
        delay = retry_delay(self._config, self._job, self._longest_delay, time_of(self._engine))
        return failed if delay is None else Retry(text, delay, trace, self._seconds)

    async def _hook_wants_another(self, error: BaseException) -> bool:
        hook = self._config.error_hook
        if hook is None:
            return True
        try:
            return await call_in_time(LONGEST_HOOK_S, hook, error, cut=self._until_no_time) is not False
        except BaseException as raised:
            if is_cancelled():
                raise
            self._note_left_behind(raised)
            if self._until_no_time.done():  # as without the hook: no try is lost for that
                return True
            self._context.logger.warning("error_hook failed; the job is not tried again", error=describe(raised))
            return False

    async def _commit(self, error: BaseException | None) -> None:
        hook = self._config.worker_commit
        if hook is None:
            return
        try:
            await call_in_time(self._config.timeout, hook, self._context, error, cut=self._until_no_time)
        except BaseException as raised:
            if is_cancelled():
                raise
            self._note_left_behind(raised)
            self._context.logger.warning("worker_commit failed", error=describe(raised))

    def _note_left_behind(self, error: BaseException) -> None:
        """Have the slot held until a hook ends that was left behind: its thread is one of those that slots bound."""
        if isinstance(error, LeftBehindError) and (self.outliving is None or self.outliving.done()):
            self.outliving = error.hook
