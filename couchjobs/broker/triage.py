"""What becomes of a document of the jobs database: a candidate, where it is a queued job that this daemon can run.

One that cannot be understood is marked with the reason, one that somebody wants cancelled is cancelled, one that runs
here is the runner's. Whatever a document holds, the others are not held up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import orjson

from couchjobs.broker.candidates import Candidate, Candidates
from couchjobs.errors import BadDocumentError, CouchError
from couchjobs.jobs.job import Job, State, is_job
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.recovery.audit import is_claimed_by
from couchjobs.recovery.daemon import Daemon
from couchjobs.workers.config import WorkersList

if TYPE_CHECKING:
    from couchjobs.broker.runner import Runner
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_NAMED = 1000
_LARGE_DOCUMENT = 16_384


class Triage:
    """Looks at documents for one lane.

    Args:
        store: the jobs.
        daemon: this daemon, for the first right to a job.
        candidates: where the jobs go that may be claimed.
        workers: the types that this daemon has.
        runner: the jobs that run here.
        refusal: why a job of a type that runs here must not; empty where it may.
        found: called when there may be something to claim.
    """

    def __init__(
        self,
        store: JobStore,
        daemon: Daemon,
        candidates: Candidates,
        workers: WorkersList,
        runner: Runner,
        refusal: Callable[[Job], str],
        found: Callable[[], None],
    ) -> None:
        self._store = store
        self._daemon = daemon
        self._candidates = candidates
        self._workers = workers
        self._runner = runner
        self._refusal = refusal
        self.found = found
        self._untaken: set[str] = set()

    async def read(self, ids: Iterable[str]) -> None:
        """Look at the documents with these ids, as they are now."""
        async for documents in self._store.database.revisions([(job_id, None) for job_id in ids]):
            await self.take_in(document for document in documents if not document.get("_deleted"))

    async def take_in(self, documents: Iterable[Document]) -> None:
        """Look at documents of the jobs database and make candidates of the queued ones that this daemon can run."""
        for document in documents:
            if self._runner.runs(document["_id"]):
                self._runner.changed(document)
            elif self._candidates.knows(document["_id"], document["_rev"]):
                continue
            elif document["_rev"] not in self._store.own_revisions and is_claimed_by(document, self._daemon.id):
                self._store.doubtful.setdefault(document["_id"], time.monotonic())
            elif is_job(document) and document.get("state") not in (State.RUNNING, State.DONE, State.ERRORED):
                try:
                    await self._take_in_queued(document)
                except CouchError:
                    raise
                except Exception:  # one document must never hold up the others
                    _logger.exception("job left out", job=document["_id"])
        self.found()

    async def _take_in_queued(self, document: Document) -> None:
        try:
            job = self._store.check(document)
        except BadDocumentError as error:
            await self._store.reject(document, str(error))
            return
        if job.cancel_requested:
            await self._store.cancel(job)
        elif job.worker in self._workers:
            if reason := self._refusal(job):
                await self._store.nack(job, reason)
            else:
                self._offer(job)
        else:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        if job.worker not in self._untaken and len(self._untaken) < _NAMED:
            self._untaken.add(job.worker)
            _logger.info("jobs of this type are left to other daemons", worker=job.worker, job=job.id)

    def _offer(self, job: Job) -> None:
        present = time.time()
        not_before = job.scheduled_at.timestamp() if job.scheduled_at else 0.0
        due = not_before or (job.queued_at.timestamp() if job.queued_at else 0.0)
        priority = job.priority if job.priority is not None else int(job.manual_execution)
        keep = len(orjson.dumps(job.document())) <= _LARGE_DOCUMENT
        first_right = self._daemon.shares.holds(job.id, job.worker)
        self._candidates.offer(
            Candidate(job.id, job.rev, job.worker, due, priority, job if keep else None, not_before, first_right),
            present,
        )
