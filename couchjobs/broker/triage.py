"""What becomes of a document of the jobs database: a candidate, where it is a queued job that this daemon can run.

One that cannot be understood, or cannot even be read, is marked with the reason; one that somebody wants cancelled is
cancelled; one that runs here is the runner's; one in conflict is looked at by all its leaves first. Whatever a document
holds, the others are not held up: what is written for one happens beside the reading, a bounded number at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from couchjobs.broker.candidates import Candidate, Candidates
from couchjobs.broker.runner import Runner
from couchjobs.couch.database import Document
from couchjobs.errors import BadDocumentError, CouchError
from couchjobs.jobs.job import Job, State, is_job
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.recovery.audit import is_claimed_by
from couchjobs.recovery.daemon import Daemon
from couchjobs.recovery.reaper import reap
from couchjobs.timestamps import moment
from couchjobs.workers.config import WorkersList

_logger = get_logger(__name__)
_NAMED = 1000
_LARGE_DOCUMENT = 16_384
_MOST_MARKED = 2000
"""Documents that are being written, or wait for it; further ones are read again later."""
_MARKED_TOGETHER = 50
"""More at once would only wait for the same group commits."""
_LOOK_AGAIN_S = 1.0
_CONFLICT_LOOK_S = 3.0
_MOST_IN_CONFLICT = 20_000


class Triage:
    """Looks at documents for one lane. `close` when done.

    Args:
        store: the jobs.
        daemon: this daemon, for the first right to a job.
        candidates: where the jobs go that may be claimed.
        workers: the types that this daemon has.
        runner: the jobs that run here.
        refusal: why a job of a type that runs here must not; empty where it may.
        found: called when there may be something to claim.
        look_again: called with the id of a job that must be read again, and in how many seconds.
    """

    def __init__(
        self,
        store: JobStore,
        daemon: Daemon,
        candidates: Candidates,
        workers: WorkersList,
        runner: Runner,
        refusal: Callable[[Job], Awaitable[str]],
        found: Callable[[], None],
        look_again: Callable[[str, float], None],
    ) -> None:
        self._store = store
        self._daemon = daemon
        self._candidates = candidates
        self._workers = workers
        self._runner = runner
        self._refusal = refusal
        self.found = found
        self._look_again = look_again
        self._untaken: set[str] = set()
        self._in_conflict: dict[str, None] = {}
        self._marks: dict[str, asyncio.Task[None]] = {}
        self._together = asyncio.Semaphore(_MARKED_TOGETHER)

    async def close(self) -> None:
        """Give up what is being written; whoever sweeps next finds it again."""
        marks = [*self._marks.values()]
        for mark in marks:
            mark.cancel()
        await asyncio.gather(*marks, return_exceptions=True)

    async def read(self, ids: Iterable[str]) -> None:
        """Look at the documents with these ids, as they are now."""
        async for answers in self._store.database.revisions([(job_id, None) for job_id in ids]):
            for one in answers:
                if one.unreadable:
                    self._mark(one.doc_id, lambda one=one: self._store.reject_unread(one.doc_id, one.reason))  # type: ignore[misc]
                elif one.document is None and not one.absent:
                    self._look_again(one.doc_id, _LOOK_AGAIN_S)
            await self.take_in(one.document for one in answers if one.document is not None)

    def note_conflict(self, job_id: str) -> None:
        """Take note that a job has other leaves: it is no candidate before all of them have been looked at."""
        self._candidates.forget(job_id)
        if len(self._in_conflict) >= _MOST_IN_CONFLICT:
            del self._in_conflict[next(iter(self._in_conflict))]
        self._in_conflict[job_id] = None

    def settle(self, job_id: str) -> None:
        """Look at all leaves of a job in conflict, keep the one that counts, and then look at the job."""
        self.note_conflict(job_id)
        self._mark(job_id, lambda: self._settle(job_id))

    async def _settle(self, job_id: str) -> bool:
        settled = await reap(self._store, self._daemon.peers, [job_id])
        if settled:
            self._in_conflict.pop(job_id, None)
        self._look_again(job_id, 0.0 if settled else _CONFLICT_LOOK_S)
        return True

    async def take_in(self, documents: Iterable[Document]) -> None:
        """Look at documents of the jobs database and make candidates of the queued ones that this daemon can run."""
        for document in documents:
            if self._runner.runs(document["_id"]):
                self._runner.changed(document)
            elif self._candidates.knows(document["_id"], document["_rev"]):
                continue
            elif document["_rev"] not in self._store.own_revisions and is_claimed_by(document, self._daemon.id):
                self._store.doubtful.setdefault(document["_id"], time.monotonic())
            elif document["_id"] in self._in_conflict:
                self.settle(document["_id"])
            elif is_job(document) and document.get("state") not in (State.RUNNING, State.DONE, State.ERRORED):
                try:
                    await self._take_in_queued(document)
                except CouchError as error:
                    _logger.info("job is looked at again", job=document["_id"], reason=str(error))
                    self._look_again(document["_id"], _LOOK_AGAIN_S)
                except Exception:  # one document must never hold up the others
                    _logger.exception("job left out", job=document["_id"])
        self.found()

    async def _take_in_queued(self, document: Document) -> None:
        try:
            job, size = self._store.check_and_size(document)
        except BadDocumentError as error:
            reason = str(error)
            self._mark(document["_id"], lambda: self._reject(document, reason))
            return
        if job.cancel_requested:
            self._mark(job.id, lambda: self._store.cancel(job))
        elif job.worker in self._workers:
            if reason := await self._refusal(job):
                self._mark(job.id, lambda: self._refuse(job, reason))
            else:
                self._offer(job, keep=size <= _LARGE_DOCUMENT)
        else:
            self._leave(job)

    async def _reject(self, document: Document, reason: str) -> bool:
        await self._runner.tell_refused(Job.read(document), f"bad job: {reason}")
        return await self._store.reject(document, reason)

    async def _refuse(self, job: Job, reason: str) -> bool:
        await self._runner.tell_refused(job, reason)
        return await self._store.nack(job, reason)

    def _mark(self, job_id: str, write: Callable[[], Awaitable[bool]]) -> None:
        """Write something to a job that is no candidate, beside the reading of others."""
        if job_id in self._marks:
            return
        if len(self._marks) >= _MOST_MARKED:
            self._look_again(job_id, _LOOK_AGAIN_S)
            return
        mark = asyncio.create_task(self._write(job_id, write), name="mark job")
        self._marks[job_id] = mark
        mark.add_done_callback(lambda _: self._marks.pop(job_id, None))

    async def _write(self, job_id: str, write: Callable[[], Awaitable[bool]]) -> None:
        async with self._together:
            try:
                if not await write():  # it has moved on, or nothing is known: what it is now decides
                    self._look_again(job_id, _LOOK_AGAIN_S)
            except CouchError as error:
                _logger.info("job not marked yet", job=job_id, reason=str(error))
                self._look_again(job_id, _LOOK_AGAIN_S)
            except Exception:
                _logger.exception("job cannot be marked", job=job_id)

    def _leave(self, job: Job) -> None:
        if job.worker not in self._untaken and len(self._untaken) < _NAMED:
            self._untaken.add(job.worker)
            _logger.info("jobs of this type are left to other daemons", worker=job.worker, job=job.id)

    def _offer(self, job: Job, *, keep: bool) -> None:
        not_before = job.scheduled_at.timestamp() if job.scheduled_at else 0.0
        due = not_before or (job.queued_at.timestamp() if job.queued_at else 0.0)
        priority = job.priority if job.priority is not None else int(job.manual_execution)
        first_right = self._daemon.shares.holds(job.id, job.worker)
        self._candidates.offer(
            Candidate(job.id, job.rev, job.worker, due, priority, job if keep else None, not_before, first_right),
            moment(),
        )
