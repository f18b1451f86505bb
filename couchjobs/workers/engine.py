"""What a daemon does for worker functions that ask for it: pushing jobs, writing how far they have come."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from couchjobs.couch.connection import Connection
from couchjobs.couch.documents import CouchDocuments, Documents
from couchjobs.errors import BadDocumentError, Conflict, JobNotFoundError
from couchjobs.jobs.job import Job, State, is_same_claim
from couchjobs.jobs.lanes import store_of
from couchjobs.jobs.request import JobRequest, PushResult
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now
from couchjobs.workers.admission import as_raised
from couchjobs.workers.config import WorkersList
from couchjobs.workers.pushing import Pusher


class CouchEngine:
    """The engine of a daemon or of one of its children, over a connection that functions may use, too."""

    def __init__(self, connection: Connection, workers: WorkersList) -> None:
        self._connection = connection
        self._workers = workers
        self._pushers: dict[Prefixer, Pusher] = {}
        """Of the tenants whose jobs have pushed."""

    def now(self) -> datetime:
        """Return the present time."""
        return now()

    def enter(self) -> None:
        """Do nothing: the connection is there already."""

    async def push(self, db: Prefixer, request: JobRequest, *, hides_id: bool = False) -> PushResult:
        """Store a job, if there is none with its id."""
        pusher = self._pushers.get(db)
        if pusher is None:
            pusher = self._pushers[db] = Pusher(self._connection, db, self._workers)
        with as_raised():
            result = await pusher.push(request, hides_id=hides_id)
        if result is None:
            raise BadDocumentError(f"the before_hook of worker {request.worker_type!r} does not want this job")
        return result

    def documents(self, db: Prefixer, doctype: str) -> Documents:
        """Return a database of the tenant."""
        return CouchDocuments(self._connection.database(db.database(doctype)))

    async def write_progress(self, job: Job, progress: Any) -> bool:
        """Write it onto whatever else has changed, as long as the job is ours."""
        store = store_of(self._connection, Prefixer(job.domain, job.prefix), job.worker)
        while True:
            try:
                present = await store.get(job.id)
            except JobNotFoundError:
                return False
            if present.state is not State.RUNNING or not is_same_claim(present.document(), job.document()):
                return False
            try:
                await store.update(present, progress=progress)
            except Conflict:
                await asyncio.sleep(0)
                continue
            return True
