"""One database of jobs, and the part of a daemon that works through it.

The way of a job: the intake finds it queued -> `_claim_round` takes as many candidates as there are free slots -> the
runner claims it, runs one try, and stores what came of it. Claims and ends of many jobs travel together, for each
database has one group-commit writer.
"""

from __future__ import annotations

import asyncio
import random

from couchjobs.broker.admin_proof import AdminProof
from couchjobs.broker.candidates import Candidate, Candidates
from couchjobs.broker.intake import Intake
from couchjobs.broker.lost import LostJobs
from couchjobs.broker.room import Room
from couchjobs.broker.runner import Runner
from couchjobs.broker.triage import Triage
from couchjobs.couch.connection import Connection
from couchjobs.errors import CouchError
from couchjobs.installation import install
from couchjobs.jobs.job import Job
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.recovery.audit import audit_own_claims, give_up_doubtful
from couchjobs.recovery.daemon import Daemon
from couchjobs.recovery.reaper import conflicted, reap
from couchjobs.recovery.rescue import Rescuer
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import moment
from couchjobs.workers.config import WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.failure import Failures
from couchjobs.workers.pool import ChildPool

_logger = get_logger(__name__)
_CONFLICTS = "conflicts"
_LOOK_AGAIN_S = 1.0
_LONGEST_WAIT_S = 5.0
"""Seconds within which a step of the wall clock is noticed, by which jobs become due."""


class Lane:
    """Claims and runs the jobs of one database. `init` and `start` before use, `stop` and `close` after.

    Args:
        connection: to the server.
        store: the jobs.
        daemon: this daemon, which has joined before `start`.
        workers: those whose jobs are in this database.
        admin_proof: what tells jobs of administrators from others.
        pool: child processes that run the functions; None: they run in this one.
        room: for jobs of all lanes together.
    """

    def __init__(
        self,
        connection: Connection,
        store: JobStore,
        daemon: Daemon,
        workers: WorkersList,
        admin_proof: AdminProof,
        pool: ChildPool | None,
        room: Room,
    ) -> None:
        self._connection = connection
        self._settings = settings = connection.settings
        self.store = store
        self.daemon = daemon
        self._configs = workers
        self._admin_proof = admin_proof
        self.tasks = Supervisor()
        self.claims = True
        """Whether jobs are claimed; no longer once the daemon stops."""
        self._wake = asyncio.Event()
        failures = Failures(workers, daemon.id, CouchEngine(connection, workers))
        self._lost = LostJobs(store, workers, daemon.id, daemon.peers.is_dead, failures)
        self.runner = runner = Runner(
            connection, store, daemon, workers, self._wake.set, self._look_again, pool, room, failures
        )
        self._candidates = Candidates(runner.free_slots(), settings.max_candidates, settings.first_right_delay)
        self._triage = Triage(
            store, daemon, self._candidates, workers, runner, self._refusal, self._wake.set, self._look_again
        )
        self._intake = Intake(
            store,
            daemon,
            self._candidates,
            workers.names(),
            settings,
            runner,
            self._triage,
            self._give_up_doubtful,
            self._reinstall,
        )

    async def init(self) -> None:
        """Call each worker's `worker_init`, whose exceptions pass."""
        await self.runner.init_workers()

    def start(self) -> None:
        """Begin to claim."""
        self.tasks.start("follow jobs", self._intake.follow)
        self.tasks.start("sweep jobs", self._intake.sweep_for_ever)
        self.tasks.start("claim jobs", self._claim_for_ever)
        self.tasks.start("audit", self._audit_for_ever)
        self.tasks.start("mind own beats", self._mind_own_beats)
        rescuer = Rescuer(self.store, self.daemon.peers, self._lost.take)
        self.tasks.start("rescue", lambda: rescuer.run(self.daemon, self._settings, self._configs.names()))

    async def stop(self) -> None:
        """Claim nothing more."""
        await self.tasks.stop()
        await self._triage.close()

    async def close(self, timeout: float) -> None:
        """Let running jobs go on for `timeout` seconds, then put the others back in the queue."""
        await self.runner.close(timeout)

    async def _mind_own_beats(self) -> None:
        """Interrupt the running jobs where this daemon cannot beat: the others are about to take them over."""
        lost = False
        while True:
            await asyncio.sleep(self._settings.look_interval)
            if self.daemon.is_lost and not lost:
                _logger.error("this daemon cannot beat and stops its jobs: the others take it for dead")
                self.runner.interrupt()
            elif lost and not self.daemon.is_lost:
                _logger.warning("this daemon beats again")
            lost = self.daemon.is_lost

    async def _claim_for_ever(self) -> None:
        while True:
            self._wake.clear()
            if self.daemon.is_lost or not self.claims:
                await asyncio.sleep(self._settings.look_interval)
                continue
            await self._claim_round()
            wait = self._candidates.next_in(self.runner.free_slots(), moment())
            if wait == 0.0:
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout(None if wait is None else min(wait, _LONGEST_WAIT_S)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _claim_round(self) -> None:
        free_slots, present = self.runner.free_slots(), moment()
        taken: list[Candidate] = []
        room = self.runner.room.left
        for name in sorted(free_slots, key=lambda _: random.random()):  # noqa: S311  where there is room for few, whoever
            taken += self._candidates.take(name, min(free_slots[name], room - len(taken)), present)
        if not taken:
            return
        for job in await self._read(taken):
            if self.runner.runs(job.id):  # an older revision is being claimed, which cannot succeed
                self._look_again(job.id)
            else:
                self.runner.start(job)
        self._intake.taken.set()

    async def _read(self, taken: list[Candidate]) -> list[Job]:
        jobs = [candidate.job for candidate in taken if candidate.job is not None]
        unread = {candidate.job_id: candidate.rev for candidate in taken if candidate.job is None}
        if unread:  # a document that has changed since is left to the intake, which looks at it anew
            try:
                answers = await self.store.database.read(unread)
            except CouchError:
                for candidate in taken:
                    self._candidates.offer(candidate, moment())
                raise
            for one in answers:
                if one.document is None and not one.absent:
                    self._look_again(one.doc_id, _LOOK_AGAIN_S)
                elif one.document is not None and one.document["_rev"] == unread[one.doc_id]:
                    jobs.append(self.store.check(one.document))
        return jobs

    async def _refusal(self, job: Job) -> str:
        """Return why the job must not run; empty where it may."""
        if not self._lost.may_try_again(job):
            return f"worker lost: {job.exec_count} tries have not come back, and that is all it has"
        if self._configs.get(job.worker).admin_only and not await self._admin_proof.holds(job.document()):
            return f"worker {job.worker!r} takes only jobs that were pushed with admin=True"
        return ""

    def _look_again(self, job_id: str, in_s: float = 0.0) -> None:
        self._intake.look_again(job_id, in_s)

    async def _reinstall(self) -> None:
        await install(self._connection, self.store.db)

    async def _give_up_doubtful(self) -> None:
        await give_up_doubtful(self.store, self.daemon.id, self.runner.runs, self._lost.take)

    async def _audit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_interval)
            await audit_own_claims(
                self.store, self.daemon.id, self._settings.audit_grace, self.runner.runs, self._lost.take
            )
            if self.daemon.answers_for(_CONFLICTS, self._configs.names()):
                await reap(self.store, self.daemon.peers, await conflicted(self.store))
