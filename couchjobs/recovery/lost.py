"""Taking a job from a daemon that has lost it: it is tried again, or that was its last try, and somebody is told."""

from __future__ import annotations

from couchjobs.cluster.peers import Peers
from couchjobs.couch.surely import Refusals
from couchjobs.errors import JobFailedError
from couchjobs.jobs.ends import why_lost
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.store import JobStore
from couchjobs.timestamps import now
from couchjobs.workers.failure import Failures
from couchjobs.workers.retry import may_be_tried


class LostJobs:
    """What a daemon does with jobs whose daemon is gone, each for a moment only: others wait.

    Args:
        store: the jobs.
        peers: the other daemons.
        failures: whom this one tells of jobs that have failed for good. Jobs of types that it does not know always have
            a try left, for a daemon that knows better.
    """

    def __init__(self, store: JobStore, peers: Peers, failures: Failures) -> None:
        self.store = store
        self.ends = store.ends.shortly(Refusals())
        """Of its jobs, each for a moment only."""
        self.peers = peers
        self.failures = failures

    async def take(self, job: Job, why: str = "") -> bool:
        """Take the job from whoever ran it; return False where it has moved on, or another daemon tells of its end.

        `why`: it was lost; empty: its daemon has died.

        Raises:
            CouchError: CouchDB does not answer, or does not take it.
        """
        workers, own = self.failures.workers, self.failures.daemon
        if job.ending is not None and job.worker not in workers and self._is_others(job):
            return False
        again = job.ending is None and (
            job.worker not in workers or may_be_tried(workers.get(job.worker), job, now())
        )  # one that is ending is its teller's
        if again or not self.failures.wanted(job.worker):
            taken = await self.ends.rescue(job, again=again, why=why)
            return await self._told(job) if taken and again else taken
        teller = str((job.ending or {}).get("daemon", own))
        if teller != own and not self.peers.is_dead(teller):
            return False
        error, traceback = why_lost(job, why)
        if (job.ending is None or teller != own) and not await self.ends.begin_to_fail(job, own, error, traceback):
            return False
        await self.failures.tell(job, JobFailedError(error, _cause_of(error), traceback))
        if job.state is State.ERRORED:  # it could be stored that it fails, and nothing else
            return True
        return await self.ends.rescue(job, again=False, why=why)

    def _is_others(self, job: Job) -> bool:
        """Return whether another daemon of the tenant has such a worker, knows whom to tell, and looks for it here."""
        if job.claim is None or not self.store.is_place_of(job.worker):
            return False
        return any(job.worker in peer.worker_types for _, peer in self.peers.living(self.store.db.key))

    async def release(self, job: Job) -> bool:
        """Put the job back in the queue, its try not counted; False where it has moved on.

        Raises:
            CouchError: as `take`.
        """
        return await self.ends.release(job) and await self._told(job)

    async def _told(self, job: Job) -> bool:
        """Tell of a job that was to be tried again, if CouchDB never takes that, and it is errored now."""
        if job.state is State.ERRORED:
            await self.failures.tell_refused(job, str(job.error))
        return True


def _cause_of(error: str) -> str:
    return "worker lost" if error.startswith("worker lost") else "tries"
