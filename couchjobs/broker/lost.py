"""Taking a job from a daemon that has lost it: it is tried again, or that was its last try, and somebody is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from couchjobs.errors import JobFailedError
from couchjobs.jobs.job import Job
from couchjobs.jobs.store import JobStore, why_lost
from couchjobs.workers.config import WorkersList
from couchjobs.workers.failure import Failures
from couchjobs.workers.worker import most_tries


@dataclass(frozen=True, slots=True)
class LostJobs:
    """What a daemon does with jobs whose daemon is gone.

    Args:
        store: the jobs.
        workers: the types that it has; jobs of others always have a try left, for a daemon that knows better.
        daemon: its id.
        is_dead: whether the daemon with that id is dead.
        failures: whom it tells of jobs that have failed for good.
    """

    store: JobStore
    workers: WorkersList
    daemon: str
    is_dead: Callable[[str], bool]
    failures: Failures

    def may_try_again(self, job: Job) -> bool:
        """Return whether the job has tries left, and has not failed for good already."""
        if job.worker not in self.workers:
            return True
        return job.ending is None and job.exec_count < most_tries(self.workers.get(job.worker), job)

    async def take(self, job: Job) -> bool:
        """Take the job from whoever ran it; return False where it has moved on, or another daemon tells of its end.

        Raises:
            CouchError: CouchDB does not answer, or does not take it.
        """
        if self.may_try_again(job) or not self.failures.wanted(job.worker):
            return await self.store.rescue(job, again=self.may_try_again(job))
        teller = (job.ending or {}).get("daemon", self.daemon)
        if teller != self.daemon and not self.is_dead(str(teller)):
            return False
        error, traceback = why_lost(job)
        if not await self.store.begin_to_fail(job, self.daemon, error, traceback):
            return False
        await self.failures.tell(job, JobFailedError(error, _cause_of(error), traceback))
        return await self.store.rescue(job, again=False)


def _cause_of(error: str) -> str:
    return "worker lost" if error.startswith("worker lost") else "tries"
