"""What a daemon writes to jobs that it does not run: a reason, a cancellation, the end of a conflict.

That happens beside the reading of others, a bounded number at a time, so that no document holds up another one. What
is not taken is read again, and decided anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from couchjobs.broker.classify import Cancel, Refuse, Reject, Settle
from couchjobs.broker.lane import Lane
from couchjobs.cluster.peers import Peers
from couchjobs.couch.database import Document
from couchjobs.couch.surely import Refusals
from couchjobs.errors import CouchError
from couchjobs.jobs.ends import Ends
from couchjobs.jobs.job import Job
from couchjobs.log import get_logger
from couchjobs.recovery.conflicts import settle_conflicts
from couchjobs.workers.failure import Failures

_logger = get_logger(__name__)
Mark = Cancel | Refuse | Reject | Settle
_MOST = 2000
"""Documents that are being written, or wait for it; further ones are read again later."""
_LOOK_AGAIN_S = 1.0
"""Seconds until a job is read again whose mark was not taken."""
_CONFLICT_LOOK_S = 3.0
"""Seconds until a conflict is looked at again that a running leaf keeps: so long a claim may stay unconfirmed."""


class Marks:
    """What one daemon writes to jobs that it does not run, for each lane apart. `close` when done.

    Args:
        peers: the other daemons.
        failures: whom to tell of jobs that are not run.
    """

    def __init__(self, peers: Peers, failures: Failures) -> None:
        self._peers = peers
        self._failures = failures
        self._refusals = Refusals()

    def write(self, lane: Lane, document: Document, meaning: Mark) -> None:
        """Write what the document means to its author; or settle what is in conflict."""
        match meaning:
            case Cancel(job):
                self._begin(lane, job.id, lambda: self._cancel(lane, job))
            case Refuse(job, reason):
                self._begin(lane, job.id, lambda: self._refuse(lane, job, reason))
            case Reject(reason):
                self._begin(lane, document["_id"], lambda: self._reject(lane, document, reason))
            case Settle():
                self.settle(lane, document["_id"])

    def reject_unread(self, lane: Lane, job_id: str, reason: str) -> None:
        """Write why a document that cannot even be read is no job."""
        self._begin(lane, job_id, lambda: self._ends_of(lane).reject_unread(job_id, reason))

    def settle(self, lane: Lane, job_id: str) -> None:
        """Look at all leaves of a job in conflict, keep the one that counts, and have the job read again."""
        lane.note_conflict(job_id)
        self._begin(lane, job_id, lambda: self._settle(lane, job_id))

    @staticmethod
    async def close(lanes: Iterable[Lane]) -> None:
        """Give up what is being written; whoever sweeps next finds it again."""
        marks = [mark for lane in lanes for mark in lane.marks.values()]
        for mark in marks:
            mark.cancel()
        await asyncio.gather(*marks, return_exceptions=True)

    def _begin(self, lane: Lane, job_id: str, write: Callable[[], Awaitable[bool]]) -> None:
        if job_id in lane.marks:
            return
        if len(lane.marks) >= _MOST:
            lane.read_again(job_id, _LOOK_AGAIN_S)
            return
        mark = asyncio.create_task(self._write(lane, job_id, write), name="mark job")
        lane.marks[job_id] = mark
        mark.add_done_callback(lambda _: lane.marks.pop(job_id, None))

    async def _write(self, lane: Lane, job_id: str, write: Callable[[], Awaitable[bool]]) -> None:
        async with lane.marking:
            try:
                if not await write():  # it has moved on, or nothing is known: what it is now decides
                    lane.read_again(job_id, _LOOK_AGAIN_S)
            except CouchError as error:
                _logger.info("job not marked yet", job=job_id, reason=str(error))
                lane.read_again(job_id, _LOOK_AGAIN_S)
            except Exception:
                _logger.exception("job cannot be marked", job=job_id)

    def _ends_of(self, lane: Lane) -> Ends:
        return lane.store.ends.shortly(self._refusals)

    async def _cancel(self, lane: Lane, job: Job) -> bool:
        if cancelled := await self._ends_of(lane).cancel(job):
            lane.claims.revisions.add(job.rev)
        return cancelled

    async def _refuse(self, lane: Lane, job: Job, reason: str) -> bool:
        await self._failures.tell_refused(job, reason)
        if refused := await self._ends_of(lane).nack(job, reason):
            lane.claims.revisions.add(job.rev)
        return refused

    async def _reject(self, lane: Lane, document: Document, reason: str) -> bool:
        await self._failures.tell_refused(lane.store.read(document), f"bad job: {reason}")
        return await self._ends_of(lane).reject(document, reason)

    async def _settle(self, lane: Lane, job_id: str) -> bool:
        noted = lane.in_conflict.get(job_id)
        settled = await settle_conflicts(self._ends_of(lane), self._peers, [job_id])
        if settled and lane.in_conflict.get(job_id) is noted:  # else a further one was noted meanwhile
            lane.in_conflict.pop(job_id, None)
        lane.read_again(job_id, 0.0 if settled else _CONFLICT_LOOK_S)
        return True
