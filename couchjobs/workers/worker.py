"""One try of one job: hooks, the function, its time limit, and what its errors mean.

A try ends in an Outcome and touches no network; the broker writes the outcome to the document. An error of the
function never leaves here as an exception.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import random
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from couchjobs.errors import AbortJob, BadTriggerError, MessageNilError, MessageUnmarshalError
from couchjobs.jobs.job import Job, JobOptions
from couchjobs.jobs.message import new_message, unmarshal
from couchjobs.log import redact
from couchjobs.timestamps import now
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry

THREADS = "couchjobs worker"
"""What the names of the threads of plain functions begin with."""
TASKS = "couchjobs job"
"""What the names of the tasks of running jobs begin with."""

_THREAD_GRACE_S = 5.0
_LONGEST_ERROR = 10_000
_NEVER_RETRIED = (MessageUnmarshalError, MessageNilError)


class Worker:
    """Runs the jobs of one type."""

    def __init__(self, config: WorkerConfig, executor: Executor | None = None) -> None:
        """Take the executor for plain functions; None: the event loop's own."""
        self.config = config
        self.executor = executor
        self.is_coroutine = config.is_coroutine

    async def init(self) -> None:
        """Call `worker_init`, whose exceptions pass."""
        if self.config.worker_init is not None:
            await _maybe_await(self.config.worker_init())

    def begin(self, job: Job, daemon: str = "") -> Try:
        """Return a try of the job, not yet running."""
        return Try(self, WorkerContext(job, daemon))


class Try:
    """One try of one job."""

    def __init__(self, worker: Worker, context: WorkerContext) -> None:
        self._config = worker.config
        self._is_coroutine = worker.is_coroutine
        self._executor = worker.executor
        self._context = context
        self._options = context.job.options or JobOptions()
        self._task: asyncio.Task[Any] | None = None
        self._stopped_as: Cancelled | Interrupted | None = None
        self.thread: asyncio.Future[Any] | None = None
        """The plain function's thread, which nobody can end from outside; it may outlive the outcome."""

    def stop(self, outcome: Cancelled | Interrupted) -> None:
        """End the try with that outcome: a coroutine is cancelled, a plain function finds `ctx.cancelled` true."""
        if self._stopped_as is None:
            self._stopped_as = outcome
            self._context.cancel()
            if self._task is not None:
                self._task.cancel()

    async def run(self) -> Outcome:
        """Run the function and return what came of it."""
        error: BaseException | None = None
        try:
            outcome: Outcome = Done(new_message(await self._call_in_time()))
        except asyncio.CancelledError as cancelled:
            error, outcome = cancelled, await self._outcome_of_cancellation(cancelled)
        except BaseException as raised:  # noqa: BLE001  an error of the function is an outcome, whatever it is
            error, outcome = raised, self._outcome_of(raised)
        if isinstance(outcome, Done | Failed | Cancelled):
            await self._commit(None if isinstance(outcome, Done) else error)
        return outcome

    async def _outcome_of_cancellation(self, cancelled: asyncio.CancelledError) -> Outcome:
        task = asyncio.current_task()
        if self._stopped_as is None:
            if task is None or task.cancelling():
                raise cancelled
            return self._outcome_of(cancelled)
        if isinstance(self._stopped_as, Interrupted) and self.thread is not None:
            await asyncio.wait([self.thread], timeout=_THREAD_GRACE_S)
            if self.thread.done() and self.thread.exception() is None:
                return Done(new_message(self.thread.result()))
        return self._stopped_as

    async def _call_in_time(self) -> Any:
        seconds = lower(self._config.timeout, self._options.timeout)
        left = self._time_left()
        if left is not None and (seconds is None or left < seconds):
            seconds = max(0.0, left)
        task = self._task = asyncio.current_task()
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(seconds) as limit:
                if self._stopped_as is not None:
                    raise asyncio.CancelledError
                if seconds is not None:
                    self._context.deadline = time.monotonic() + seconds
                return await self._call(limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._context.cancel()
            raise TimeoutError(f"no end within {round((limit.when() or began) - began, 3):g} s") from error
        finally:
            self._task = None
            if task is not None and self._stopped_as is not None:
                task.uncancel()

    def _time_left(self) -> float | None:
        """Return how long all tries together may still take, None where there is no limit."""
        job, limit = self._context.job, lower(self._config.max_exec_time, self._options.max_exec_time)
        if limit is None or job.started_at is None:
            return limit
        return limit - (now() - job.started_at).total_seconds()

    async def _call(self, limit: asyncio.Timeout) -> Any:
        config = self._config
        if config.worker_start is not None:
            self._context = await _maybe_await(config.worker_start(self._context))
            if self._context.deadline is not None:
                limit.reschedule(asyncio.get_running_loop().time() + self._context.deadline - time.monotonic())
        arguments: list[Any] = [self._context]
        if config.takes_message:
            message, model = self._context.job.message, config.message_model
            arguments.append(message if model is None else unmarshal(message, model))
        if self._is_coroutine:
            return await config.worker_func(*arguments)
        call = contextvars.copy_context().run
        self.thread = asyncio.get_running_loop().run_in_executor(self._executor, call, config.worker_func, *arguments)
        return await asyncio.shield(self.thread)

    def _outcome_of(self, error: BaseException) -> Outcome:
        job, text = self._context.job, describe(error)
        if isinstance(error, AbortJob):
            return Done()
        if isinstance(error, BadTriggerError):
            return Failed(text, bad_trigger=True)
        if isinstance(error, _NEVER_RETRIED) or self._context.no_retry or not self._may_try_again(job, error):
            return Failed(text)
        jitter = random.uniform(0.9, 1.1)  # noqa: S311  not a secret
        delay = self._config.retry_delay * 2 ** min(job.exec_count - 1, 30) * jitter
        left = self._time_left()
        if left is not None and delay > left:
            return Failed(text)
        return Retry(text, delay)

    def _may_try_again(self, job: Job, error: BaseException) -> bool:
        if job.exec_count >= most_tries(self._config, job):
            return False
        if self._config.error_hook is None:
            return True
        try:
            return self._config.error_hook(error) is not False
        except BaseException:
            self._context.logger.exception("error_hook failed; the job is not tried again")
            return False

    async def _commit(self, error: BaseException | None) -> None:
        if self._config.worker_commit is None:
            return
        try:
            async with asyncio.timeout(self._config.timeout):
                await _maybe_await(self._config.worker_commit(self._context, error))
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._context.logger.exception("worker_commit failed")


def make_workers(configs: WorkersList) -> tuple[dict[str, Worker], ThreadPoolExecutor]:
    """Return a worker for each type, and the threads that their plain functions share: one a slot."""
    count = sum(config.concurrency for config in configs if not config.is_coroutine)
    threads = ThreadPoolExecutor(max(1, count), thread_name_prefix=THREADS)
    return {config.worker_type: Worker(config, threads) for config in configs}, threads


def most_tries(config: WorkerConfig, job: Job) -> int:
    """Return how many tries the job has: what its worker allows, or fewer where its options say so."""
    wanted = job.options.max_exec_count if job.options else None
    return min(config.max_exec_count, wanted or config.max_exec_count)


def lower(allowed: float | None, wanted: float | None) -> float | None:
    """Return the lower of two limits, None being none."""
    if allowed is None or wanted is None:
        return wanted if allowed is None else allowed
    return min(allowed, wanted)


def describe(error: BaseException) -> str:
    """Return the error in one line: its class and what it says, credentials in URLs left out."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  an error that cannot even be told is an outcome all the same
        return type(error).__name__
    text = redact(text[:_LONGEST_ERROR].encode("utf-8", "replace").decode())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


async def _maybe_await(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
