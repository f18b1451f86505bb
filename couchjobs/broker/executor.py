"""One job, from its claim to the end that is stored: claim the document, run the function, write what came of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

from couchjobs.broker.lane import Execution, Lane, Phase
from couchjobs.cluster.presence import Presence
from couchjobs.couch.connection import Connection
from couchjobs.errors import Conflict, CouchError, JobFailedError
from couchjobs.jobs.claims import Claimed
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.stats import Stats
from couchjobs.supervisor import is_cancelled
from couchjobs.timestamps import now
from couchjobs.watchdog import blocked_for
from couchjobs.workers.failure import Failures
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry, changes_of
from couchjobs.workers.processes import Processes
from couchjobs.workers.retry import lost_outcome
from couchjobs.workers.worker import task_of

_logger = get_logger(__name__)
_UNCLAIMABLE = "CouchDB does not take its claim"
_LONGEST_HELD_S = 10.0
"""Seconds that a slot waits for a failure to be noted: a document that is refused may take minutes."""
_LINES: dict[type[Outcome], tuple[int, str]] = {
    Done: (logging.INFO, "job done"),
    Failed: (logging.WARNING, "job failed"),
    Retry: (logging.WARNING, "job is tried again"),
    Cancelled: (logging.INFO, "job cancelled"),
    Interrupted: (logging.INFO, "job put back"),
}


_NAMES: dict[type[Outcome], str] = {
    Done: "done",
    Failed: "failed",
    Retry: "retry",
    Cancelled: "cancelled",
    Interrupted: "interrupted",
}


class Executor:
    """What one daemon does with a job that it has taken from its backlog.

    Args:
        connection: to the server.
        presence: that of this daemon.
        processes: where the functions run.
        failures: whom to tell of jobs that have failed for good.
        stats: where to count.
    """

    def __init__(
        self, connection: Connection, presence: Presence, processes: Processes, failures: Failures, stats: Stats
    ) -> None:
        self._stats = stats
        self._log = _logger.bind()  # bound once: the proxy of a module binds itself anew for each line
        self._tells = self._log.is_enabled_for(logging.INFO)
        self._connection = connection
        self._presence = presence
        self._processes = processes
        self._failures = failures

    def new_context(self) -> Context:
        """Return what tasks run jobs in: the present context, in which worker functions use the connection, too."""
        context = copy_context()
        context.run(self._connection.use)
        return context

    async def run(self, execution: Execution) -> float | None:
        """Claim, run and end the job; return in how many seconds it is to be read again, None where it is not.

        The slot is free again once the function has ended, and those who want to hear of its failure have heard,
        stored or not. Nothing is raised, but for a cancellation.
        """
        lane, job = execution.lane, execution.job
        try:
            try:
                claimed, outcome = await self._claim_and_run(execution)
                execution.phase = Phase.ENDING
                if isinstance(outcome, Failed) and not await self._tell_of_failure(execution, outcome):
                    return None
            finally:
                _free_slot(execution)
            if claimed is Claimed.LATER:
                return lane.claims.look_again_in(job)
            if claimed is Claimed.REFUSED:
                return None if await self._reject(lane.store, job) else lane.claims.look_again_in(job)
            if outcome is not None and await self._end(lane, job, outcome) and job.state is not State.QUEUED:
                lane.claims.revisions.add(job.rev)
        except BaseException:  # a processor of the user's for the log may raise anything, too
            if job.state is State.RUNNING and job.claim is not None:
                lane.claims.begun[job.id] = job.claim.id
            if is_cancelled():
                raise
            with suppress(BaseException):
                _logger.exception("job left as it is", job=job.id)
        return None

    async def _claim_and_run(self, execution: Execution) -> tuple[Claimed, Outcome | None]:
        """Return what became of the claim, and, where the job is ours, of its try."""
        lane, job = execution.lane, execution.job
        claimed = await lane.store.claimer.claim(job, self._presence.id, lane.claims)
        self._stats.claims[claimed.value] += 1
        if claimed is not Claimed.OURS:
            return claimed, None
        if execution.interrupted or self._presence.is_lost:
            return claimed, Interrupted()
        self._count_wait(lane, job)
        execution.attempt = attempt = self._processes.begin(job, self._presence.id, self._presence)
        execution.phase = Phase.RUNNING
        if self._tells:
            self._log.info("try begins", worker=job.worker, job=job.id, exec_count=job.exec_count)
        if execution.is_changed():
            await self._look_whether_cancelled(execution)
        return claimed, self._counted(execution, await attempt.run())

    def _counted(self, execution: Execution, outcome: Outcome) -> Outcome:
        """Return the outcome of a try; one for which this daemon could not beat counts, or it would do so for ever."""
        job, seconds = execution.job, blocked_for(task_of(execution.job))
        is_guilty = execution.was_cut_off and seconds >= self._presence.connection.settings.dead_after / 3
        if not isinstance(outcome, Interrupted) or not is_guilty:
            return outcome
        error = f"worker lost: its function has blocked the event loop for {seconds:.0f} s"
        return lost_outcome(execution.lane.workers.get(job.worker), job, error)

    async def _look_whether_cancelled(self, execution: Execution) -> None:
        """Read a job that has changed while it was being claimed; unread, its end will tell."""
        try:
            present = await execution.lane.store.database.find(execution.job.id)
        except CouchError as error:
            _logger.info("job not read again", job=execution.job.id, error=str(error))
        else:
            if present is not None:
                execution.note(present)

    async def _end(self, lane: Lane, job: Job, outcome: Outcome) -> bool:
        """Store what came of the try; return False where the job is not ours any more."""
        store, at = lane.store, now()
        if not await store.ends.end(job, lambda: changes_of(outcome, job, at)):
            lane.have_views_checked()  # it was taken away, perhaps with its database
            return False
        if job.state is State.ERRORED and isinstance(outcome, Retry | Interrupted):  # CouchDB never takes that
            why = str(job.error)
            if isinstance(outcome, Retry):
                outcome = Failed(f"{outcome.error}; {why}", traceback=outcome.traceback, seconds=outcome.seconds)
                await self._failures.tell(job, JobFailedError(outcome.error, "tries", outcome.traceback))
            else:
                outcome = Failed(why)
                await self._failures.tell_refused(job, why)
        seconds = outcome.seconds if isinstance(outcome, Done | Failed | Retry) else None
        lane.stats.note_end(job.worker, _NAMES[type(outcome)], seconds)
        level, event = _LINES[type(outcome)]
        if level > logging.INFO or self._tells:
            self._log.log(level, event, worker=job.worker, job=job.id, **_facts_of(job, outcome))
        if isinstance(outcome, Failed) and outcome.bad_trigger and job.trigger_id:
            await self._delete_trigger(store, job.trigger_id)
        return True

    def _count_wait(self, lane: Lane, job: Job) -> None:
        due = job.scheduled_at or job.queued_at
        if due is not None and job.started_at is not None and job.exec_count == 1:
            lane.stats.note_wait(job.worker, max(0.0, (job.started_at - due).total_seconds()))

    async def _tell_of_failure(self, execution: Execution, outcome: Failed) -> bool:
        """Tell those who want to hear that the job has failed for good; return False where it is not ours any more."""
        lane, job = execution.lane, execution.job
        if not self._failures.wanted(job.worker):
            return True
        timer = asyncio.get_running_loop().call_later(_LONGEST_HELD_S, _free_slot, execution)
        try:
            if not await lane.store.ends.begin_to_fail(job, self._presence.id, outcome.error, outcome.traceback):
                return False
        finally:
            timer.cancel()
        lane.claims.revisions.add(job.rev)
        cause = "worker lost" if outcome.worker_lost else "tries"
        await self._failures.tell(job, JobFailedError(outcome.error, cause, outcome.traceback))
        return True

    async def _reject(self, store: JobStore, job: Job) -> bool:
        """End a job whose claim CouchDB never takes; return False where that must wait."""
        await self._failures.tell_refused(job, _UNCLAIMABLE)
        return await store.ends.reject(job.document(), _UNCLAIMABLE)

    async def _delete_trigger(self, store: JobStore, trigger_id: str) -> None:
        database = self._connection.database(store.db.database(self._connection.settings.triggers_doctype))
        trigger = await database.find(trigger_id)
        if trigger is not None:
            try:
                await database.delete(trigger_id, trigger["_rev"])
            except Conflict:
                _logger.warning("bad trigger was changed meanwhile, and is left alone", trigger=trigger_id)
            else:
                _logger.warning("bad trigger deleted", trigger=trigger_id)


def _free_slot(execution: Execution) -> None:
    execution.slot.free(execution.attempt.outliving if execution.attempt is not None else None)


def _facts_of(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Return what the line of a try that has ended says."""
    facts: dict[str, Any] = {"exec_count": job.exec_count}
    if isinstance(outcome, Failed | Retry):
        facts["error"] = outcome.error
        if outcome.traceback:
            facts["traceback"] = outcome.traceback
    if isinstance(outcome, Retry):
        facts["in_s"] = round(outcome.delay_s, 3)
    if isinstance(outcome, Done | Failed | Retry) and outcome.seconds is not None:
        facts["seconds"] = round(outcome.seconds, 4)
    return facts
