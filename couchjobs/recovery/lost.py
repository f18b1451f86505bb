"""Taking a job from a daemon that has lost it: it is tried again, or that was its last try, and somebody is told."""

from __future__ import annotations

from couchjobs.cluster.peers import Peers
from couchjobs.couch.surely import Refusals
from couchjobs.errors import JobFailedError
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import JobStore, why_lost
from couchjobs.workers.failure import Failures
from couchjobs.workers.retry import has_tries_left


class LostJobs:
    """What a daemon does with jobs whose daemon is gone, each for a moment only: others wait.

    Args:
        store: the jobs.
        peers: the other daemons.
        failures: whom this one tells of jobs that have failed for good. Jobs of types that it does not know always have
            a try left, for a daemon that knows better.
    """

    def __init__(self, store: JobStore, peers: Peers, failures: Failures) -> None:
        self.store = store.shortly(Refusals())
        self.peers = peers
        self.failures = failures

    async def take(self, job: Job, why: str = "") -> bool:
        """Take the job from whoever ran it; return False where it has moved on, or another daemon tells of its end.

        `why`: it was lost; empty: its daemon has died.

        Raises:
            CouchError: CouchDB does not answer, or does not take it.
        """
        workers, own = self.failures.workers, self.failures.daemon
        again = job.worker not in workers or has_tries_left(workers.get(job.worker), job)
        if again or not self.failures.wanted(job.worker):
            taken = await self.store.rescue(job, again=again, why=why)
            if taken and again and job.state is State.ERRORED:  # that it is tried again is never taken
                await self.failures.tell_refused(job, str(job.error))
            return taken
        teller = str((job.ending or {}).get("daemon", own))
        if teller != own and not self.peers.is_dead(teller):
            return False
        error, traceback = why_lost(job, why)
        if (job.ending is None or teller != own) and not await self.store.begin_to_fail(job, own, error, traceback):
            return False
        await self.failures.tell(job, JobFailedError(error, _cause_of(error), traceback))
        return await self.store.rescue(job, again=False, why=why)


def _cause_of(error: str) -> str:
    return "worker lost" if error.startswith("worker lost") else "tries"
