"""The jobs of one tenant in one lane, as documents: creating, reading and changing them.

States, and who writes what: anybody creates queued jobs; a daemon claims one (queued to running, `claims`) and is its
owner until it writes the end, a retry or a release (`ends`). The revision of the claim fences every later write.
"""

from __future__ import annotations

import asyncio
from typing import Any

from couchjobs.couch.answers import Written, as_error
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document, is_id
from couchjobs.couch.surely import INSIST_ON_OWN_S, write_surely
from couchjobs.errors import BadDocumentError, Conflict, CouchError, JobNotFoundError
from couchjobs.jobs import transitions
from couchjobs.jobs.checking import JobCheck
from couchjobs.jobs.claims import Claimed, Claimer
from couchjobs.jobs.ends import Ends
from couchjobs.jobs.ids import job_in
from couchjobs.jobs.job import Changes, Job
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now

_logger = get_logger(__name__)
_ANSWER_S = 0.5
"""Seconds beyond the patience of whoever pushes, for the answer to the last attempt."""
_LOOKS = 10
"""Times that a document is looked for which one copy of a cluster has just taken, and another one does not have."""
_LOOK_AGAIN_S = 0.2
"""Seconds between two of them: the copies of a cluster agree within a second, mostly."""


class JobStore:
    """The jobs of one tenant in one lane. The constructor does not touch the network."""

    def __init__(self, connection: Connection, db: Prefixer, lane: str | None = None) -> None:
        """Take the lane, which is a doctype; None: that of most worker types."""
        self.db = db
        self.database = connection.database(db.database(lane or connection.settings.jobs_doctype))
        self.writer = connection.writer(self.database.name)
        self.checks = JobCheck(db, connection.settings)
        self._lane = lane or connection.settings.jobs_doctype
        self._lane_of = connection.settings.lane_of
        self._database = connection.database
        self._go_durations = connection.settings.go_durations
        self.dead_after = connection.settings.dead_after
        """Seconds after which daemons take another one for dead."""
        self._request_s = connection.settings.request_timeout
        self._patience_s = max(self._request_s, 2 * INSIST_ON_OWN_S)
        self.claimer = Claimer(self.database, self.writer, db)
        self.ends = Ends(self.database, self.writer, self._patience_s)

    def database_of(self, worker_type: str) -> Database:
        """Return where the tenant's jobs of that type are."""
        return self._database(self.db.database(self._lane_of(worker_type)))

    def is_place_of(self, worker_type: str) -> bool:
        """Return whether jobs of that type belong here: daemons that have the type look for them."""
        return self._lane_of(worker_type) == self._lane

    async def get(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            JobNotFoundError: there is none with that id.
        """
        document = await self.database.find(job_id) if is_id(job_id) else None
        if document is None:
            raise JobNotFoundError(f"no job {job_id!r} in database {self.database.name}")
        return self.shown(document)

    def shown(self, document: Document) -> Job:
        """Return the job that a document of this database holds, for looking at."""
        return Job.read(document, go_durations=self._go_durations)

    def read(self, document: Document) -> Job:
        """Return the job that a document of this database holds, for doing something about it: this tenant's job.

        Fields that cannot be understood are left out.
        """
        job = self.shown(document)
        job.belongs_to(self.db.domain, self.db.prefix)
        return job

    def check(self, document: Document) -> Job:
        """Return the job that a document of unknown origin holds.

        Raises:
            BadDocumentError: it cannot be run, and why.
        """
        return self.checks.job_and_size(document)[0]

    def stored_form(self, job: Job) -> Document:
        """Return the document of a new job as it is stored: durations in the unit that the settings say."""
        document = job.document()
        if self._go_durations and job.options is not None:
            document = {**document, "options": job.options.stored(go_durations=True)}
        return document

    async def create(self, job: Job, patience_s: float | None = None) -> bool:
        """Store a new job; return False where a job with its id is there already.

        `patience_s`: seconds that CouchDB may take; None: as long as it takes to know that it never takes this job, or
        as a request may.

        Raises:
            BadDocumentError: no daemon could run it.
            Refused: CouchDB never takes it.
            Unavailable: CouchDB does not answer, or takes nothing now; the job may be there or not.
            NotFound: the database of jobs does not exist.
        """
        if job.id.startswith("_"):
            raise BadDocumentError(f"a job's id must not begin with _: {job.id!r}")
        document = self.stored_form(job)
        self.checks.check_new(job, document)
        if patience_s is None:
            answer = await write_surely(self.writer, document, patience_s=self._patience_s)
        else:
            answer = await write_surely(self.writer, document, patience_s=patience_s, longest_s=patience_s + _ANSWER_S)
        if answer.written is Written.REFUSED and await self.database.find(job.id) is not None:
            return False  # a guard was asked before it was seen that there is one with that id
        if answer.written is Written.CONFLICT:
            return False
        if not answer.stored:
            raise as_error(answer, job_in(self.database.name, job.id))
        if answer.written is Written.ACCEPTED and await self._is_another(document):
            return False
        job.moved({}, document, answer.rev)
        return True

    async def _is_another(self, document: Document) -> bool:
        """Return whether one that was pushed at another moment wins over this, which one copy of a cluster took."""
        for _ in range(_LOOKS):
            try:
                present = await self.database.find(document["_id"])
            except CouchError:
                return False
            if present is not None:
                return bool(present.get("queued_at") != document.get("queued_at"))
            await asyncio.sleep(_LOOK_AGAIN_S)  # the copy that was asked is behind: it is there, for it was just taken
        return False

    async def update(self, job: Job, **fields: Any) -> None:
        """Change fields of the job's document, such as `progress`.

        Raises:
            Conflict: the document has changed meanwhile.
            Refused: CouchDB never takes it.
            Unavailable: CouchDB does not answer; the change may be there or not.
        """
        await self._change(job, fields)

    async def requeue(self, job: Job) -> None:
        """Put an ended job back in the queue, with all its tries.

        Raises:
            Conflict: the document has changed meanwhile.
            Refused: CouchDB never takes it.
            Unavailable: CouchDB does not answer; the change may be there or not.
        """
        await self._change(job, transitions.requeued(job, now()))

    async def _change(self, job: Job, changes: Changes) -> None:
        document = job.document_with(changes)
        answer = await write_surely(self.writer, document, patience_s=self._request_s)
        if not answer.stored:
            raise as_error(answer, job_in(self.database.name, job.id))
        if answer.written is Written.ACCEPTED:  # by a cluster, perhaps on a branch that loses
            present = await self.database.find(job.id)
            if present is None or present["_rev"] != answer.rev:
                raise Conflict(f"{job_in(self.database.name, job.id)}: another branch wins")
        job.moved(changes, document, answer.rev)

    async def claim(self, job: Job, daemon: str) -> bool:
        """Try to become the owner of a queued job; return whether that is so, and nothing else, beyond doubt."""
        return await self.claimer.claim(job, daemon, OwnClaims()) is Claimed.OURS

    async def ack_consumed(self, job: Job, daemon: str = "") -> bool:
        """Move the job to running with `started_at`; return whether it is ours now."""
        return await self.claim(job, daemon)

    async def ack(self, job: Job, result: Any = None) -> bool:
        """Move the job to done with `finished_at`; return False where it was taken away."""
        return await self.ends.ack(job, result)

    async def nack(self, job: Job, error: str) -> bool:
        """Move the job to errored with `error` and `finished_at`; return False where it was taken away."""
        return await self.ends.nack(job, error)

    async def create_errored(self, job: Job, reason: str) -> None:
        """Store, in the place of a job that CouchDB never takes, a small one that says why it is errored.

        Raises:
            Unavailable: CouchDB does not answer; it may be stored or not.
        """
        smaller = transitions.reduced(self.stored_form(job), None, now(), reason)
        smaller.pop("_rev", None)
        answer = await write_surely(self.writer, smaller, patience_s=self._patience_s)
        if answer.written is Written.UNKNOWN:
            raise as_error(answer, job_in(self.database.name, job.id))
        if answer.written is Written.REFUSED:
            _logger.error("job cannot be stored at all, nor why", job=job.id, reason=f"{reason}; {answer.reason}")
