"""The broker whose queue is a CouchDB database.

The way of a job: the intake finds it queued -> `_claim_round` takes as many candidates as there are free slots -> the
runner claims it, runs one try, and stores what came of it. Claims and ends of many jobs travel together, for each
database has one group-commit writer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from couchjobs.broker.admin_proof import AdminProof
from couchjobs.broker.admission import check_admin, is_wanted
from couchjobs.broker.candidates import Candidate, Candidates
from couchjobs.broker.intake import Intake
from couchjobs.broker.runner import Runner
from couchjobs.broker.triage import Triage
from couchjobs.couch.connection import Connection
from couchjobs.errors import ClosedError, CouchError, QueueClosedError, UnknownWorkerError
from couchjobs.installation import install
from couchjobs.jobs.job import CLIENT_WORKER, Job
from couchjobs.jobs.queries import worker_queue_len
from couchjobs.jobs.request import JobRequest, new_job
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.audit import audit_own_claims
from couchjobs.recovery.daemon import Daemon
from couchjobs.recovery.reaper import conflicted, reap
from couchjobs.recovery.rescue import Rescuer
from couchjobs.supervisor import Supervisor
from couchjobs.workers.config import WorkersList
from couchjobs.workers.pool import ChildPool
from couchjobs.workers.worker import most_tries

_logger = get_logger(__name__)
_PUSHED_TOGETHER = 2000
_CONFLICTS = "conflicts"


class CouchBroker:
    """Takes jobs of one tenant into CouchDB, and runs those that its workers can do; built without the network."""

    def __init__(
        self,
        connection: Connection,
        db: Prefixer | None = None,
        daemon: Daemon | None = None,
        pool: ChildPool | None = None,
    ) -> None:
        """Take the tenant of the settings unless `db` says another, and a daemon of its own unless one is given.

        With a pool, worker functions run in its child processes, each of which has all the slots.
        """
        self._connection = connection
        self._pool = pool
        self._settings = connection.settings
        self._db = db or connection.settings.tenant
        self.daemon = daemon or Daemon(connection, self._db)
        self.store = JobStore(connection, self._db)
        self._configs = WorkersList()
        self._runner: Runner | None = None
        self._tasks = Supervisor()
        self._wake = asyncio.Event()
        self._candidates = Candidates({}, 0)
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
        if any(config.admin_only for config in workers):
            await self._admin_proof.load()
        runner = self._runner = Runner(
            self._connection, self.store, self.daemon, workers, self._wake.set, self._look_again, self._pool
        )
        self._candidates = Candidates(
            runner.free_slots(), self._settings.max_candidates, self._settings.first_right_delay
        )
        await runner.init_workers()
        triage = Triage(self.store, self.daemon, self._candidates, workers, runner, self._refusal, found=self._wake.set)
        self._intake = Intake(
            self.store, self.daemon, self._candidates, workers.names(), self._settings, runner, triage, self._reinstall
        )
        await self.daemon.join()
        await self.daemon.take_jobs(workers.names(), runner.slots)
        self._tasks.start("follow jobs", self._intake.follow)
        self._tasks.start("sweep jobs", self._intake.sweep_for_ever)
        self._tasks.start("claim jobs", lambda: self._claim_for_ever(runner))
        self._tasks.start("audit", lambda: self._audit_for_ever(runner))
        self._tasks.start("mind own beats", lambda: self._mind_own_beats(runner))
        rescuer = Rescuer(self.store, self.daemon.peers, self._may_try_again)
        self._tasks.start("rescue", lambda: rescuer.run(self.daemon, self._settings))

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
        await self.daemon.take_jobs((), 0)
        if self._runner is not None:
            await self._runner.close(self._settings.shutdown_timeout if timeout is None else timeout)
        await self.daemon.leave()

    def hurry(self) -> None:
        """Interrupt all running jobs now, for a shutdown that is under way."""
        if self._runner is not None:
            self._runner.interrupt()

    async def idle(self) -> None:
        """Return as soon as no job runs here."""
        if self._runner is not None:
            await self._runner.idle()

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

    async def push_jobs(self, db: Prefixer, requests: Iterable[JobRequest]) -> list[Job | Exception | None]:
        """Store many jobs in few requests; return for each the job, None where it is skipped, or what refused it."""
        answers: list[Job | Exception | None] = []
        for some in _in_parts(requests, _PUSHED_TOGETHER):
            found = await asyncio.gather(*(self.push_job(db, one) for one in some), return_exceptions=True)
            for answer in found:
                if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
        return answers

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

    async def _mind_own_beats(self, runner: Runner) -> None:
        """Interrupt the running jobs where this daemon cannot beat: the others are about to take them over."""
        lost = False
        while True:
            await asyncio.sleep(self._settings.look_interval)
            if self.daemon.is_lost and not lost:
                _logger.error("this daemon cannot beat and stops its jobs: the others take it for dead")
                runner.interrupt()
            elif lost and not self.daemon.is_lost:
                _logger.warning("this daemon beats again")
            lost = self.daemon.is_lost

    def _may_try_again(self, job: Job) -> bool:
        return job.worker not in self._configs or job.exec_count < most_tries(self._configs.get(job.worker), job)

    async def _claim_for_ever(self, runner: Runner) -> None:
        while True:
            self._wake.clear()
            if self.daemon.is_lost:
                await asyncio.sleep(self._settings.look_interval)
                continue
            await self._claim_round(runner)
            ripe = self._candidates.next_ready(runner.free_slots(), time.time())
            try:
                async with asyncio.timeout(None if ripe is None else max(0.0, ripe - time.time())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _claim_round(self, runner: Runner) -> None:
        taken: list[Candidate] = []
        for worker_type, free in runner.free_slots().items():
            taken += self._candidates.take(worker_type, free, time.time())
        if not taken:
            return
        try:
            jobs = await self._read(taken)
        except CouchError:
            for candidate in taken:
                self._candidates.offer(candidate, time.time())
            raise
        for job in jobs:
            if not runner.runs(job.id):
                runner.start(job)
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
        return jobs

    def _refusal(self, job: Job) -> str:
        """Return why the job must not run; empty where it may."""
        if not self._may_try_again(job):
            return f"worker lost: {job.exec_count} tries have not come back, and that is all it has"
        if self._configs.get(job.worker).admin_only and not self._admin_proof.holds(job):
            return f"worker {job.worker!r} takes only jobs that were pushed with admin=True"
        return ""

    def _look_again(self, job_id: str) -> None:
        if self._intake is not None:
            self._intake.look_again(job_id)

    async def _reinstall(self) -> None:
        await install(self._connection, self._db)

    async def _audit_for_ever(self, runner: Runner) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval)
            await audit_own_claims(self.store, self.daemon.id, self._settings.audit_grace, runner.runs)
            if self.daemon.answers_for(_CONFLICTS):
                await reap(self.store, self.daemon.peers, await conflicted(self.store))


def _in_parts(requests: Iterable[JobRequest], size: int) -> Iterator[list[JobRequest]]:
    rest = iter(requests)
    while part := list(islice(rest, size)):
        yield part
