"""A broker without CouchDB: one process, jobs in memory, gone when it ends. For tests of one's own workers.

Tries, retries, time limits, hooks and states are those of the real one, made of the same parts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from couchjobs.couch.codec import encode
from couchjobs.couch.connection import forbid_connections
from couchjobs.couch.documents import Documents
from couchjobs.errors import (
    BadDocumentError,
    Conflict,
    HookError,
    JobFailedError,
    JobNotFoundError,
    QueueClosedError,
)
from couchjobs.jobs import transitions
from couchjobs.jobs.job import CLIENT_WORKER, ENDED, Changes, Job, State
from couchjobs.jobs.request import JobRequest, PushResult, new_job
from couchjobs.lifecycle import Lifecycle
from couchjobs.memory.couch import MemCouch
from couchjobs.prefixer import Prefixer
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import now
from couchjobs.workers.admission import as_raised, check_admin, is_wanted
from couchjobs.workers.config import WorkersList
from couchjobs.workers.failure import Failures
from couchjobs.workers.outcome import Cancelled, Failed, Interrupted, changes_of
from couchjobs.workers.worker import Try, Worker

_DAEMON = "memory"
_LARGEST = 1_048_576
"""Bytes of the largest message, as the settings have it by default."""


class MemBroker:
    """Runs jobs by itself, as soon as they are due; with `auto=False`, only when `run_pending` is called."""

    def __init__(self, clock: Callable[[], datetime] = now, *, auto: bool = True) -> None:
        """Take the clock that tells what is due."""
        self.jobs: dict[str, Job] = {}
        """All jobs by id, in the order in which they were pushed."""
        self.bad_triggers: set[str] = set()
        """Ids of triggers that a worker has called bad."""
        self.couch = MemCouch()
        """The databases that worker functions see."""
        self._clock = clock
        self._auto = auto
        self._configs = WorkersList()
        self._failures = Failures(self._configs, _DAEMON)
        self._workers: dict[str, Worker] = {}
        self._running: dict[str, Try] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loops = Supervisor()
        self._changed = asyncio.Condition()
        self._life = Lifecycle("broker")
        self._grace_s: float | None = None

    async def start_workers(self, workers: WorkersList) -> None:
        """Begin to run the jobs of these workers.

        Raises:
            ClosedError: the broker runs already, or has run.
        """
        async with self._life.starting() as to_close:
            self._configs = workers
            self._failures = Failures(workers, _DAEMON, self)
            self._workers = {config.worker_type: Worker(config, engine=self) for config in workers}
            for worker in self._workers.values():
                await worker.init()
                to_close.push_async_callback(worker.stop)
            to_close.push_async_callback(self._finish)
            if self._auto:
                self._loops.start("memory broker", self._run_for_ever)

    async def shutdown_workers(self, timeout: float | None = None) -> None:
        """Start nothing more, let running jobs go on for `timeout` seconds (None: no limit), put the rest back.

        Raises:
            ClosedError: the broker does not run.
        """
        self._grace_s = timeout
        await self._life.close()

    async def _finish(self) -> None:
        await self._loops.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._grace_s)
        for running in self._running.values():
            running.stop(Interrupted())
        await asyncio.gather(*self._tasks.values())

    async def push_job(self, db: Prefixer, request: JobRequest, *, is_asked: bool = False) -> Job | None:
        """Store a job and return it; None where `before_hook` skips it. A job with that id that is there already stays.

        `is_asked`: the `before_hook` has been asked.

        Raises:
            QueueClosedError: the broker is shut down.
            UnknownWorkerError: no worker of that type is registered.
            AdminOnlyError: the worker takes only requests of administrators.
        """
        result = await self._take_in(db, request, is_asked=is_asked)
        return None if result is None else result.job

    async def wants(self, db: Prefixer, request: JobRequest) -> bool:
        """Return whether the worker's `before_hook` wants a job."""
        with as_raised():
            return await is_wanted(self._configs, new_job(db, request))

    async def _take_in(self, db: Prefixer, request: JobRequest, *, is_asked: bool = False) -> PushResult | None:
        if self._life.is_("closed"):
            raise QueueClosedError("the broker is shut down")
        if self._life.is_("running") and request.worker_type not in {*self._configs.names(), CLIENT_WORKER}:
            self._configs.get(request.worker_type)
        check_admin(self._configs, request)
        job = new_job(db, request)
        wanted: bool | HookError
        try:
            wanted = is_asked or job.id in self.jobs or await is_wanted(self._configs, job)
        except HookError as error:
            wanted = error
        if (present := self.jobs.get(job.id)) is not None:  # one that was pushed meanwhile, too
            if present.worker != job.worker and job.trigger_id is None:
                raise Conflict(f"the id {job.id!r} is taken by a job of worker {present.worker!r}", 409)
            return PushResult(present, created=False)
        if isinstance(wanted, HookError):
            raise wanted.raised from None
        if not wanted:
            return None
        job.queued_at = request.queued_at or self._clock()
        if (size := len(encode(job.message))) > _LARGEST:
            raise BadDocumentError(f"message is {size:,} bytes; {_LARGEST:,} are allowed (COUCHJOBS_MAX_MESSAGE_BYTES)")
        self.jobs[job.id] = job
        await self._notify()
        return PushResult(job, created=True)

    def now(self) -> datetime:
        """Return the present time of its clock."""
        return self._clock()

    def enter(self) -> None:
        """Have functions of this broker reach no CouchDB."""
        forbid_connections("this runs in the memory broker: no CouchDB is reached from here; use ctx.push")

    async def push(self, db: Prefixer, request: JobRequest, *, hides_id: bool = False) -> PushResult:  # noqa: ARG002
        """Take a job, if there is none with its id, which is hidden from nobody here.

        Raises:
            BadDocumentError: the `before_hook` of its worker does not want it.
        """
        result = await self._take_in(db, request)
        if result is None:
            raise BadDocumentError(f"the before_hook of worker {request.worker_type!r} does not want this job")
        return result

    def documents(self, db: Prefixer, doctype: str) -> Documents:
        """Return a database in memory."""
        db.database(doctype)
        return self.couch[doctype]

    async def write_progress(self, job: Job, progress: Any) -> bool:
        """Write how far a job has come."""
        self._move(job, {"progress": progress})
        return True

    async def push_jobs(self, db: Prefixer, requests: Iterable[JobRequest]) -> list[Job | Exception | None]:
        """Take many jobs; return for each the job, None where it is skipped, or what refused it."""
        answers: list[Job | Exception | None] = []
        for request in requests:
            try:
                answers.append(await self.push_job(db, request))
            except Exception as error:  # noqa: BLE001  each has its own answer
                answers.append(error)
        return answers

    async def worker_queue_len(self, worker_type: str) -> int:
        """Return how many jobs of that type are queued.

        Raises:
            UnknownWorkerError: no worker of that type is registered.
        """
        self._configs.get(worker_type)
        return sum(job.worker == worker_type and job.state is State.QUEUED for job in self.jobs.values())

    def workers_types(self) -> list[str]:
        """Return the types of workers, sorted."""
        return self._configs.names()

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Wait until the job is done or errored and return it.

        Raises:
            JobNotFoundError: there is no such job.
            TimeoutError: it has not ended within `timeout` seconds.
        """
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotFoundError(f"no job {job_id!r} in memory")
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: job.state in ENDED)
        return job

    async def cancel(self, job_id: str) -> None:
        """Cancel a job: a queued one is not run, a running one is stopped.

        Raises:
            JobNotFoundError: there is no such job.
        """
        if job_id not in self.jobs:
            raise JobNotFoundError(f"no job {job_id!r} in memory")
        if job_id in self._running:
            self._running[job_id].stop(Cancelled())
        elif self.jobs[job_id].state is State.QUEUED:
            self._move(self.jobs[job_id], transitions.cancelled(self._clock()))
            await self._notify()

    async def run_pending(self) -> int:
        """Run every job that is due, and those that they push, one after another; return how many tries that were."""
        tries = 0
        while due := self._due(self._clock()):
            await self._process(due[0])
            tries += 1
        return tries

    def next_time(self) -> datetime | None:
        """Return when the next job that waits for its time is due; None where none waits."""
        present = self._clock()
        queued = (job.scheduled_at for job in self.jobs.values() if job.state is State.QUEUED)
        return min((time for time in queued if time is not None and time > present), default=None)

    def _due(self, present: datetime) -> list[Job]:
        due = [
            job
            for job in self.jobs.values()
            if job.state is State.QUEUED
            and job.id not in self._tasks
            and job.worker in self._workers
            and (job.scheduled_at is None or job.scheduled_at <= present)
        ]
        return sorted(due, key=lambda job: -(job.priority if job.priority is not None else job.manual_execution))

    async def _run_for_ever(self) -> None:
        while True:
            present = self._clock()  # one moment for both questions: what is due in between would be in neither answer
            for job in self._due(present):
                busy = sum(self.jobs[job_id].worker == job.worker for job_id in self._tasks)
                if busy < self._configs.get(job.worker).concurrency:
                    self._tasks[job.id] = asyncio.create_task(self._process(job), name=f"job {job.id}")
            later = [job.scheduled_at for job in self.jobs.values() if job.state is State.QUEUED and job.scheduled_at]
            future = [time for time in later if time > present]
            seconds = (min(future) - present).total_seconds() if future else None
            try:
                async with asyncio.timeout(seconds), self._changed:
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _process(self, job: Job) -> None:
        changes = transitions.claimed(
            job, Prefixer(job.domain, job.prefix), secrets.token_hex(8), _DAEMON, self._clock()
        )
        self._move(job, changes)
        running = self._running[job.id] = self._workers[job.worker].begin(job, _DAEMON)
        try:
            outcome = await running.run()
            if isinstance(outcome, Failed):
                await self._failures.tell(job, JobFailedError(outcome.error, "tries", outcome.traceback))
                if outcome.bad_trigger and job.trigger_id:
                    self.bad_triggers.add(job.trigger_id)
            self._move(job, changes_of(outcome, job, self._clock()))
        finally:
            del self._running[job.id]
            self._tasks.pop(job.id, None)
        await self._notify()

    @staticmethod
    def _move(job: Job, changes: Changes) -> None:
        job.moved(changes, job.document_with(changes), secrets.token_hex(4))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
