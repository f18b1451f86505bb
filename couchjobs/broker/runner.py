"""Running jobs: from a candidate that was taken to the end that is stored, one task a job."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, assert_never

from couchjobs.broker.room import Room
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import Conflict, CouchError, JobFailedError
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import Claimed, JobStore
from couchjobs.log import get_logger
from couchjobs.recovery.daemon import Daemon
from couchjobs.supervisor import is_cancelled
from couchjobs.workers.boundary import GRACE_S
from couchjobs.workers.config import WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.failure import Failures
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry
from couchjobs.workers.pool import ChildPool, RemoteTry
from couchjobs.workers.worker import TASKS, Try, make_workers

_logger = get_logger(__name__)
_LAST_WRITES_S = 10.0
_MOST_UNSTORED = 1000
_HUNG_AFTER_S = 10.0
_AFTER_NO_ANSWER_S = 0.5
"""Seconds until a job is looked at again whose claim was not taken: an outage is asked twice a second."""


class Runner:
    """The slots of one daemon, and the jobs in them.

    Args:
        connection: what worker functions use too.
        store: the jobs.
        daemon: this daemon.
        workers: the types that this daemon has.
        freed: called when a slot is free again.
        look_again: called with the id of a job that is to be read again, and in how many seconds.
        pool: child processes that run the functions; None: they run in this one.
        room: for jobs of all types together; None: no limit.
        failures: whom to tell of jobs that have failed for good; None: nobody.
    """

    def __init__(
        self,
        connection: Connection,
        store: JobStore,
        daemon: Daemon,
        workers: WorkersList,
        freed: Callable[[], None],
        look_again: Callable[[str, float], None],
        pool: ChildPool | None = None,
        room: Room | None = None,
        failures: Failures | None = None,
    ) -> None:
        self._log = _logger.bind()  # bound once: the proxy of a module binds itself anew for each line
        self._tells = self._log.is_enabled_for(logging.INFO)
        self._connection = connection
        self._store = store
        self._daemon = daemon
        self._freed = freed
        self._look_again = look_again
        self._pool = pool
        self._failures = failures or Failures(WorkersList(), daemon.id)
        self._workers, self._threads = make_workers(
            workers, connection.settings.max_retry_delay, CouchEngine(connection, workers)
        )
        if pool is not None:
            store.writer.may_hold = pool.fills_the_cores
            pool.listeners.append(freed)
        self._concurrency = {config.worker_type: config.concurrency for config in workers}
        self._used: Counter[str] = Counter()
        self.hung: Counter[str] = Counter()
        """By worker type: slots that are held by plain functions which do not end after their time."""
        self.slots = sum(self._concurrency.values()) * (pool.count if pool is not None else 1)
        self.room = room or Room()
        self.room.listeners.append(freed)
        self._running: dict[str, Try | RemoteTry | None] = {}
        self._claiming: dict[str, str] = {}
        self._stirred: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = copy_context()
        self._context.run(connection.use)
        self._closing = False

    async def init_workers(self) -> None:
        """Call each worker's `worker_init`, whose exceptions pass; the children of a pool do so themselves."""
        if self._pool is None:
            for worker in self._workers.values():
                await worker.init()

    def runs(self, job_id: str) -> bool:
        """Return whether the job is being claimed, runs, or ends here."""
        return job_id in self._running

    def free_slots(self) -> dict[str, int]:
        """Return how many more jobs of each type may be claimed now: none where there is no process to run them."""
        processes = 1 if self._pool is None else self._pool.living()
        if not processes or len(self._tasks) >= self.slots + _MOST_UNSTORED:
            return {}
        if self.room.left <= 0:
            return {}
        free = {name: processes * count - self._used[name] for name, count in self._concurrency.items()}
        return {name: min(count, self.room.left) for name, count in free.items() if count > 0}

    def start(self, job: Job) -> None:
        """Claim the job, run it, and store its end, in a task of its own."""
        self._used[job.worker] += 1
        self.room.take()
        self._running[job.id] = None
        self._claiming[job.id] = job.rev
        task = asyncio.create_task(self._process(job), name=f"{TASKS} {job.id}", context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def is_claiming(self, job_id: str, rev: str) -> bool:
        """Return whether the job is being claimed here; if so, take note of the revision, which may be the claim's."""
        claimed_rev = self._claiming.get(job_id)
        if claimed_rev is not None and claimed_rev != rev:
            self._stirred[job_id] = rev
        return claimed_rev is not None

    def changed(self, document: Document) -> None:
        """Take note of a change of a job that is being claimed, runs or ends here: its row comes only once."""
        if self.is_claiming(document["_id"], document["_rev"]):
            return
        self._stirred[document["_id"]] = document["_rev"]
        running = self._running.get(document["_id"])
        if running is not None and document.get("cancel_requested") is True:
            running.stop(Cancelled())

    async def idle(self) -> None:
        """Return as soon as no job runs here."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def interrupt(self, grace_s: float = GRACE_S) -> None:
        """Interrupt all running jobs: their tries do not count, and they go back to the queue.

        `grace_s`: seconds that their functions have to end, before they are left behind.
        """
        for running in self._running.values():
            if running is not None:
                running.stop(Interrupted(), grace_s)

    async def close(self, timeout: float) -> None:
        """Let running jobs go on for `timeout` seconds, interrupt the others, and store what became of all of them."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        self.interrupt()
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=_LAST_WRITES_S)
            for task in left:
                task.cancel()
            if left:
                _, stuck = await asyncio.wait(left, timeout=_LAST_WRITES_S)
                for task in stuck:
                    _logger.error("does not end, and is left to itself", task=task.get_name())
        for worker in self._workers.values():
            if self._pool is None:
                await worker.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _process(self, job: Job) -> None:
        """Take one job from candidate to end; its slot is free again once its function has ended, stored or not."""
        try:
            outcome = await self._claim_and_run(job)
            if isinstance(outcome, Claimed):
                await self.tell_refused(job, "CouchDB does not take its claim")
                if not await self._store.reject(job.document(), "CouchDB does not take its claim"):
                    self._look_again(job.id, _AFTER_NO_ANSWER_S)
            elif outcome is not None:
                await self._write(job, outcome)
        except BaseException:  # a processor of the user's for the log may raise anything, too
            if job.state is State.RUNNING and job.claim is not None:
                self._store.begun.add(job.claim.id)
            if is_cancelled():
                raise
            with suppress(BaseException):
                _logger.exception("job left as it is", job=job.id)
        finally:
            del self._running[job.id]
            self._freed()
            self._forget(job)

    def _forget(self, job: Job) -> None:
        """Have the job looked at again where the feed has shown what nobody has looked at, being busy with it here."""
        if job.id in self._stirred:
            if self._has_stirred(job) or job.state is State.QUEUED:
                self._look_again(job.id, 0.0)
            del self._stirred[job.id]

    def _has_stirred(self, job: Job) -> bool:
        """Return whether the feed has shown another revision of the job than the one that this process wrote."""
        return self._stirred.get(job.id, job.rev) != job.rev

    async def _claim_and_run(self, job: Job) -> Outcome | Claimed | None:
        """Return what came of the try; None where there was none, REFUSED where there never can be one."""
        running: Try | RemoteTry | None = None
        try:
            try:
                claimed = await self._store.try_to_claim(job, self._daemon.id)
            finally:
                del self._claiming[job.id]
            if claimed is Claimed.LATER:
                self._look_again(job.id, _AFTER_NO_ANSWER_S)
            elif claimed is Claimed.REFUSED:
                return Claimed.REFUSED
            if claimed is not Claimed.OURS:
                return None
            if self._closing or self._daemon.is_lost:
                return Interrupted()
            begin = self._workers[job.worker].begin if self._pool is None else self._pool.begin
            running = self._running[job.id] = begin(job, self._daemon.id)
            if self._tells:
                self._log.info("try begins", worker=job.worker, job=job.id, exec_count=job.exec_count)
            if self._has_stirred(job):
                await self._look_at(job)
            return await running.run()
        finally:
            self._free_slot(job.worker, running.left if running is not None else None)

    async def _look_at(self, job: Job) -> None:
        """Look whether somebody has cancelled the job while it was being claimed; unread, its end will tell."""
        try:
            present = await self._store.database.find(job.id)
        except CouchError as error:
            _logger.info("job not read again", job=job.id, error=str(error))
        else:
            if present is not None:
                self.changed(present)

    def _free_slot(self, worker_type: str, left: asyncio.Future[Any] | None) -> None:
        """Free a slot, as soon as the function has ended that outlives its try."""
        if left is not None and not left.done():
            left.add_done_callback(lambda _: self._free_slot(worker_type, None))
            asyncio.get_running_loop().call_later(_HUNG_AFTER_S, self._tell_of_hung, worker_type, left)
            return
        self._used[worker_type] -= 1
        self.room.give_back()
        self._freed()

    def _tell_of_hung(self, worker_type: str, left: asyncio.Future[Any]) -> None:
        if left.done() or self._pool is not None:
            return
        self.hung[worker_type] += 1
        left.add_done_callback(lambda _: self.hung.subtract([worker_type]))
        _logger.error(
            "functions do not end after their time, and hold slots: look at ctx.cancelled, or use --processes",
            worker=worker_type,
            slots_held=self.hung[worker_type],
            slots=self._concurrency[worker_type],
        )

    async def _write(self, job: Job, outcome: Outcome) -> None:
        match outcome:
            case Done(result, lost, seconds):
                await self._store.ack(job, result, lost, seconds)
                if self._tells:
                    _tell(self._log.info, "job done", job, outcome)
            case Failed():
                await self._fail(job, outcome)
            case Retry(error, delay_s, traceback, seconds):
                await self._store.retry(job, error, delay_s, traceback, seconds)
                _tell(_logger.warning, "job is tried again", job, outcome, error=error, in_s=round(delay_s, 3))
            case Cancelled():
                await self._store.cancel(job)
                _logger.info("job cancelled", worker=job.worker, job=job.id, exec_count=job.exec_count)
            case Interrupted():
                await self._store.release(job)
                _logger.info("job put back", worker=job.worker, job=job.id)
            case _:
                assert_never(outcome)

    async def _fail(self, job: Job, outcome: Failed) -> None:
        """End the job that has failed for good, once those who want to hear of it have been told."""
        if self._failures.wanted(job.worker):
            if not await self._store.begin_to_fail(job, self._daemon.id, outcome.error, outcome.traceback):
                return
            cause = "worker lost" if outcome.worker_lost else "tries"
            await self._failures.tell(job, JobFailedError(outcome.error, cause, outcome.traceback))
        await self._store.nack(job, outcome.error, outcome.traceback, outcome.seconds)
        _tell(_logger.warning, "job failed", job, outcome, error=outcome.error)
        if outcome.bad_trigger and job.trigger_id:
            await self._delete_trigger(job.trigger_id)

    async def tell_refused(self, job: Job, reason: str) -> None:
        """Tell those who want to hear of it of a job that is not run, before that is its end."""
        if self._failures.wanted(job.worker):
            await self._failures.tell(job, JobFailedError(reason, "refused"))

    async def _delete_trigger(self, trigger_id: str) -> None:
        doctype = self._connection.settings.triggers_doctype
        database = self._connection.database(self._store.db.database(doctype))
        trigger = await database.find(trigger_id)
        if trigger is not None:
            try:
                await database.delete(trigger_id, trigger["_rev"])
            except Conflict:
                _logger.warning("bad trigger was changed meanwhile, and is left alone", trigger=trigger_id)
            else:
                _logger.warning("bad trigger deleted", trigger=trigger_id)


def _tell(log: Callable[..., Any], event: str, job: Job, outcome: Done | Failed | Retry, **facts: Any) -> None:
    """Write the line of a try that has ended."""
    if outcome.seconds is not None:
        facts["seconds"] = round(outcome.seconds, 4)
    if not isinstance(outcome, Done) and outcome.traceback:
        facts["traceback"] = outcome.traceback
    log(event, worker=job.worker, job=job.id, exec_count=job.exec_count, **facts)
