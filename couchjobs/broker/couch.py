"""The broker whose queue is a CouchDB database.

The way of a job: the intake finds it queued -> `_claim_round` takes as many candidates as there are free slots ->
`_process` claims it, runs one try, writes the outcome, and frees the slot. Claims and outcomes of many jobs travel
together, for each database has one group-commit writer.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, assert_never

from couchjobs.broker.admin_proof import AdminProof
from couchjobs.broker.admission import check_admin, is_wanted
from couchjobs.broker.candidates import Candidate, Candidates
from couchjobs.broker.intake import Intake
from couchjobs.couch.connection import Connection
from couchjobs.errors import ClosedError, CouchError, QueueClosedError, UnknownWorkerError
from couchjobs.jobs.job import CLIENT_WORKER, Job
from couchjobs.jobs.queries import worker_queue_len
from couchjobs.jobs.request import JobRequest, new_job
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.audit import audit_own_claims
from couchjobs.recovery.daemon import Daemon
from couchjobs.supervisor import Supervisor
from couchjobs.workers.config import WorkersList
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry
from couchjobs.workers.worker import Try, Worker

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_LAST_WRITES_S = 10.0


class CouchBroker:
    """Takes jobs of one tenant into CouchDB, and runs those that its workers can do; built without the network."""

    def __init__(self, connection: Connection, db: Prefixer | None = None, daemon: Daemon | None = None) -> None:
        """Take the tenant of the settings unless `db` says another, and a daemon of its own unless one is given."""
        self._connection = connection
        self._settings = connection.settings
        self._db = db or connection.settings.tenant
        self.daemon = daemon or Daemon(connection, self._db)
        self.store = JobStore(connection, self._db)
        self._configs = WorkersList()
        self._workers: dict[str, Worker] = {}
        self._free: dict[str, int] = {}
        self._running: dict[str, Try | None] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._tasks = Supervisor()
        self._wake = asyncio.Event()
        self._candidates = Candidates([], 0)
        self._threads: ThreadPoolExecutor | None = None
        self._intake: Intake | None = None
        self._admin_proof = AdminProof(connection)
        self._state = "new"

    async def start_workers(self, workers: WorkersList) -> None:
        """Begin to run the jobs of these workers.

        Raises:
            ClosedError: the broker runs already, or has run.
            NotFound: the databases do not exist; `couchjobs init` makes them.
        """
        if self._state != "new":
            raise ClosedError(f"the broker is {self._state}")
        self._state = "running"
        self._configs = workers
        self._threads = ThreadPoolExecutor(self._settings.max_threads, thread_name_prefix="couchjobs")
        self._workers = {config.worker_type: Worker(config, self._threads) for config in workers}
        self._free = {config.worker_type: config.concurrency for config in workers}
        if any(config.admin_only for config in workers):
            await self._admin_proof.load()
        for worker in self._workers.values():
            await worker.init()
        self._candidates = Candidates(workers.names(), self._settings.max_candidates)
        self._intake = Intake(
            self.store,
            self.daemon,
            self._candidates,
            workers,
            self._settings,
            self._wake.set,
            self._running_changed,
            self._running.__contains__,
            self._refusal,
        )
        await self.daemon.join(workers.names(), sum(self._free.values()))
        self._tasks.start("follow jobs", self._intake.follow)
        self._tasks.start("sweep jobs", self._intake.sweep_for_ever)
        self._tasks.start("claim jobs", self._claim_for_ever)
        self._tasks.start("audit claims", self._audit_for_ever)

    async def shutdown_workers(self, timeout: float | None = None) -> None:
        """Claim nothing more, let running jobs go on for `timeout` seconds, then put the others back in the queue.

        Args:
            timeout: seconds; None: the setting `shutdown_timeout`.

        Raises:
            ClosedError: the broker does not run.
        """
        if self._state != "running":
            raise ClosedError(f"the broker is {self._state}")
        self._state = "closed"
        await self._tasks.stop()
        await self._end_jobs(self._settings.shutdown_timeout if timeout is None else timeout)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        await self.daemon.leave()

    async def _end_jobs(self, timeout: float) -> None:
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=timeout)
        for running in self._running.values():
            if running is not None:
                running.stop(Interrupted())
        if self._jobs:
            _, left = await asyncio.wait(self._jobs, timeout=_LAST_WRITES_S)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def hurry(self) -> None:
        """Interrupt all running jobs now, for a shutdown that is under way."""
        for running in self._running.values():
            if running is not None:
                running.stop(Interrupted())

    async def push_job(self, db: Prefixer, request: JobRequest) -> Job | None:
        """Store a job and return it; None where the worker's `before_hook` skips it.

        Raises:
            QueueClosedError: the broker is shut down.
            UnknownWorkerError: neither this daemon nor another living one has a worker of that type.
            AdminOnlyError: the worker takes only requests of administrators.
            BadDocumentError: the message is too large.
            Unavailable: CouchDB does not answer; the job may be stored or not.
        """
        if self._state == "running" and request.worker_type not in {*self._configs.names(), CLIENT_WORKER}:
            others = self.daemon.living(request.worker_type)
            if others == [self.daemon.id]:
                raise UnknownWorkerError(f"no daemon has a worker of type {request.worker_type!r}")
        check_admin(self._configs, request)
        job = new_job(db, request)
        if request.admin:
            await self._admin_proof.load()
            job.document()["admin_proof"] = job.admin_proof = self._admin_proof.of(job)
        return job if await self.store_job(job) is not False else None

    async def store_job(self, job: Job) -> bool | None:
        """Store a job for whichever daemon has its worker; None where it was there already, False where it is skipped.

        Raises:
            QueueClosedError: the broker is shut down.
        """
        if self._state == "closed":
            raise QueueClosedError("the broker is shut down")
        if not await is_wanted(self._configs, job):
            return False
        store = self.store if (job.domain, job.prefix) == (self._db.domain, self._db.prefix) else self._store_of(job)
        return True if await store.create(job) else None

    def _store_of(self, job: Job) -> JobStore:
        return JobStore(self._connection, Prefixer(job.domain, job.prefix))

    async def worker_queue_len(self, worker_type: str) -> int:
        """Return how many jobs of that type are queued.

        Raises:
            UnknownWorkerError: no worker of that type is registered.
        """
        self._configs.get(worker_type)
        return await worker_queue_len(self.store.database, worker_type)

    def workers_types(self) -> list[str]:
        """Return the types of workers, sorted."""
        return self._configs.names()

    async def idle(self) -> None:
        """Return as soon as no job runs here."""
        while self._jobs:
            await asyncio.wait(self._jobs)

    async def _claim_for_ever(self) -> None:
        while True:
            self._wake.clear()
            await self._claim_round()
            ripe = self._candidates.next_ready()
            try:
                async with asyncio.timeout(None if ripe is None else max(0.0, ripe - time.time())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _claim_round(self) -> None:
        taken: list[Candidate] = []
        for worker_type, free in self._free.items():
            if free > 0:
                taken += self._candidates.take(worker_type, free, time.time())
        if not taken:
            return
        for job in await self._read(taken):
            self._free[job.worker] -= 1
            self._running[job.id] = None
            task = asyncio.create_task(self._process(job, self._workers[job.worker]), name=f"job {job.id}")
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)
        if self._intake is not None:
            self._intake.taken.set()

    async def _read(self, taken: list[Candidate]) -> list[Job]:
        jobs = [candidate.job for candidate in taken if candidate.job is not None]
        unread = {candidate.job_id: candidate.rev for candidate in taken if candidate.job is None}
        if unread:  # a document that has changed since is left to the intake, which looks at it anew
            documents = await self.store.database.get_many(unread)
            jobs += [
                self.store.check(document)
                for document in documents.values()
                if document["_rev"] == unread[document["_id"]]
            ]
        return [job for job in jobs if job.id not in self._running]

    async def _process(self, job: Job, worker: Worker) -> None:
        """Take one job from candidate to end; its slot is free again once its function has ended, stored or not."""
        try:
            outcome = await self._claim_and_run(job, worker)
            if outcome is not None:
                await self._write(job, outcome)
        except CouchError:
            _logger.exception("job left as it is", job=job.id)
        finally:
            del self._running[job.id]

    async def _claim_and_run(self, job: Job, worker: Worker) -> Outcome | None:
        running: Try | None = None
        try:
            if not await self.store.claim(job, self.daemon.id):
                return None
            if self._state != "running":
                return Interrupted()
            self._connection.use()
            running = self._running[job.id] = worker.begin(job, self.daemon.id)
            return await running.run()
        finally:
            if running is not None and running.thread is not None:
                running.thread.add_done_callback(lambda _: self._free_slot(job.worker))
            else:
                self._free_slot(job.worker)

    def _free_slot(self, worker_type: str) -> None:
        self._free[worker_type] += 1
        self._wake.set()

    async def _write(self, job: Job, outcome: Outcome) -> None:
        match outcome:
            case Done(result):
                await self.store.ack(job, result)
            case Failed(error, bad_trigger):
                job.logger.warning("job failed", error=error, exec_count=job.exec_count)
                await self.store.nack(job, error)
                if bad_trigger and job.trigger_id:
                    await self._delete_trigger(job.trigger_id)
            case Retry(error, delay_s):
                job.logger.info("job is tried again", error=error, exec_count=job.exec_count, in_s=round(delay_s, 3))
                await self.store.retry(job, error, delay_s)
            case Cancelled():
                await self.store.cancel(job)
            case Interrupted():
                await self.store.release(job)
            case _:
                assert_never(outcome)

    async def _delete_trigger(self, trigger_id: str) -> None:
        database = self._connection.database(self._db.database(self._settings.triggers_doctype))
        trigger = await database.find(trigger_id)
        if trigger is not None:
            _logger.warning("bad trigger deleted", trigger=trigger_id)
            await database.delete(trigger_id, trigger["_rev"])

    def _refusal(self, job: Job) -> str:
        if self._configs.get(job.worker).admin_only and not self._admin_proof.holds(job):
            return f"worker {job.worker!r} takes only jobs that were pushed with admin=True"
        return ""

    def _running_changed(self, document: Document) -> None:
        running = self._running.get(document["_id"])
        if running is None:
            return
        if document.get("cancel_requested") is True:
            running.stop(Cancelled())

    async def _audit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval)
            await audit_own_claims(self.store, self.daemon.id, self._settings.audit_grace, self._running.__contains__)
