"""From a request to a job that is stored once: the one way in, whoever pushes, and for the jobs of firings, too."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from couchjobs.couch.connection import Connection
from couchjobs.errors import Conflict, CouchError, HookError, QueueClosedError, Unavailable
from couchjobs.jobs.admin_proof import AdminProof
from couchjobs.jobs.ids import window_id
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest, PushResult, new_job
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.waits import backoff
from couchjobs.workers.admission import check_admin, is_wanted
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import latest_declared

_logger = get_logger(__name__)
_MOST_IDS = 20
"""Ids that are tried where the first one is taken: somebody would have to guess a secret for the second of a firing."""


_LONGEST_PAUSE_S = 0.5
"""Seconds between two looks for a job that is said to be there, and is not: copies of a cluster are behind so long."""


class Pusher:
    """Stores jobs for whichever daemon has their worker; built without the network.

    Args:
        connection: to the server.
        db: the tenant; None: that of the settings.
        workers: those whose `before_hook` and `admin_only` are known here; None: those that are declared.
    """

    def __init__(self, connection: Connection, db: Prefixer | None = None, workers: WorkersList | None = None) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._db = db or connection.settings.tenant
        self.workers = workers
        self.stores = {lane: JobStore(connection, self._db, lane) for lane in self._settings.all_lanes}
        """By the doctype of their database."""
        self.admin_proof = AdminProof(connection, self._db)
        self._is_open = True

    def close(self) -> None:
        """Take no more jobs."""
        self._is_open = False

    async def push(self, request: JobRequest, *, hides_id: bool = False) -> PushResult | None:
        """Store a job, if there is none with its id; None where the worker's `before_hook` skips it.

        `hides_id`: under another id that is made of that one, the same each time, and that nobody else can tell, so
        that nobody can take it first.

        Raises:
            QueueClosedError: this is closed.
            AdminOnlyError: the worker takes only requests of administrators.
            HookError: its `before_hook` refuses the job.
            BadDocumentError: JSON cannot hold the message, or it is too large.
            Conflict: its id is that of a job of another worker.
            Unavailable: CouchDB does not answer within `push_timeout`; what it says tells whether the job may be there.
            NotFound: the databases do not exist; `couchjobs init` makes them.
        """
        check_admin(self._known, request)
        if hides_id and request.id is not None:
            request = replace(request, id=await self.admin_proof.other_id(request.id, 0))
        job, is_new = new_job(self._db, request), request.id is None
        if request.admin:
            await self.admin_proof.load()
            document = self.store_of(job.worker).stored_form(job)
            job.document()["admin_proof"] = job.admin_proof = self.admin_proof.of(document)
        return await self.store(job, self._settings.push_timeout, is_new=is_new)

    async def wants(self, job: Job) -> bool:
        """Return whether the worker's `before_hook` wants a job.

        Raises:
            HookError: it refuses it.
        """
        return await is_wanted(self._known, job)

    async def store(
        self, job: Job, patience_s: float | None = None, *, is_asked: bool = False, is_new: bool = False
    ) -> PushResult | None:
        """Store a job, if there is none with its id; None where the worker's `before_hook` skips it.

        Of a firing whose job was there and is deleted by now, nothing is stored; where somebody else's document has
        its id, it gets another one.

        `patience_s`: seconds that CouchDB may take; None: as long as a request may. `is_asked`: the `before_hook` has
        been asked. `is_new`: the id was made just now, so that no job can have it.

        Raises:
            QueueClosedError: this is closed.
            HookError: the `before_hook` refuses it.
            BadDocumentError: no daemon could run it.
            Refused: CouchDB never takes it.
            Conflict: its id is that of a job of another worker, and no firing's.
            Unavailable: CouchDB does not answer, or takes nothing now; the job may be there or not.
            NotFound: the databases do not exist; `couchjobs init` makes them.
        """
        if not self._is_open:
            raise QueueClosedError("the broker is shut down")
        store, wanted = self.store_of(job.worker), job.id
        look_for = job if not is_new and job.trigger_id is None else None
        try:
            skipped = not is_asked and not await self.wants(job)
        except HookError:
            if (before := await self._pushed_before(store, look_for, patience_s)) is None:
                raise
            return before
        if skipped:
            return await self._pushed_before(store, look_for, patience_s)
        for number in range(1, _MOST_IDS):
            if await store.create(job, patience_s):
                return PushResult(job, created=True)
            present = await store.database.find(job.id)
            if job.trigger_id is None:
                if present is not None:
                    return PushResult(_of_the_same_worker(store.read(present), job), created=False)
                # deleted meanwhile, or a copy that is behind has answered: it is stored then, or seen
                await asyncio.sleep(backoff(number, first=0.02, longest=_LONGEST_PAUSE_S))
            elif present is None or present.get("trigger_id") == job.trigger_id:
                return PushResult(job if present is None else store.read(present), created=False)
            else:
                _logger.error("the id of a firing is taken by another job", trigger=job.trigger_id, job=job.id)
                job = job.clone()
                job.id = job.document()["_id"] = await self.admin_proof.other_id(wanted, number)
        raise Unavailable(f"the id {wanted!r} is taken, and by what cannot be told now, nor was another one free")

    @staticmethod
    async def _pushed_before(store: JobStore, job: Job | None, patience_s: float | None) -> PushResult | None:
        """Return a job that is refused, but was stored: by a push whose answer never came, perhaps.

        None where CouchDB does not tell in time: what the hook has said stands.
        """
        if job is None:
            return None
        try:
            async with asyncio.timeout(patience_s):
                present = await store.database.find(job.id)
        except (CouchError, TimeoutError) as error:
            _logger.info("not known whether a refused job was stored before", job=job.id, reason=str(error))
            return None
        return None if present is None else PushResult(_of_the_same_worker(store.read(present), job), created=False)

    @property
    def _known(self) -> WorkersList:
        return latest_declared() if self.workers is None else self.workers

    async def id_of_window(self, trigger_id: str, before: str) -> str:
        """Return the id of the job of a debounce window: the same for all daemons, and nobody else can tell it.

        `before`: the revision of the window that it replaces; empty for none.

        Raises:
            CouchError: the secret that it comes from cannot be read.
        """
        return await self.admin_proof.other_id(window_id(trigger_id, before), 0)

    def store_of(self, worker_type: str) -> JobStore:
        """Return where the jobs of that worker type are."""
        return self.stores[self._settings.lane_of(worker_type)]


def _of_the_same_worker(present: Job, job: Job) -> Job:
    """Return the job that is there.

    Raises:
        Conflict: it is one of another worker.
    """
    if present.worker != job.worker:
        raise Conflict(f"the id {job.id!r} is taken by a job of worker {present.worker!r}", 409)
    return present
