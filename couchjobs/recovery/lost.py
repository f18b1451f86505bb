"""Taking a job from a daemon that has lost it: it is tried again, or that was its last try, and somebody is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from couchjobs.cluster.peers import Peers
from couchjobs.couch.surely import Refusals
from couchjobs.errors import JobFailedError
from couchjobs.jobs.job import Job
from couchjobs.jobs.store import JobStore, why_lost
from couchjobs.workers.failure import Failures
from couchjobs.workers.retry import has_tries_left


@dataclass(frozen=True, slots=True)
class LostJobs:
    """What a daemon does with jobs whose daemon is gone.

    Args:
        store: the jobs.
        peers: the other daemons.
        failures: whom this one tells of jobs that have failed for good. Jobs of types that it does not know always have
            a try left, for a daemon that knows better.
    """

    store: JobStore
    peers: Peers
    failures: Failures
    refusals: Refusals = field(default_factory=Refusals)
    """Of what becomes of them: others wait for their turn."""

    async def take(self, job: Job) -> bool:
        """Take the job from whoever ran it; return False where it has moved on, or another daemon tells of its end.

        Raises:
            CouchError: CouchDB does not answer, or does not take it.
        """
        workers, own = self.failures.workers, self.failures.daemon
        again = job.worker not in workers or has_tries_left(workers.get(job.worker), job)
        if again or not self.failures.wanted(job.worker):
            return await self.store.rescue(job, again=again, refusals=self.refusals)
        teller = str((job.ending or {}).get("daemon", own))
        if teller != own and not self.peers.is_dead(teller):
            return False
        error, traceback = why_lost(job)
        if (job.ending is None or teller != own) and not await self.store.begin_to_fail(
            job, own, error, traceback, self.refusals
        ):
            return False
        await self.failures.tell(job, JobFailedError(error, _cause_of(error), traceback))
        return await self.store.rescue(job, again=False, refusals=self.refusals)


def _cause_of(error: str) -> str:
    return "worker lost" if error.startswith("worker lost") else "tries"
