"""The jobs of one tenant: creating, claiming and ending them, with CouchDB's answers taken for what they say.

States, and who writes what: anybody creates queued jobs; a daemon claims one (queued to running) and is its owner
until it writes the end, a retry or a release. The revision of the claim fences every later write.

What can fail, and what then:
- a claim answered `accepted` is a stored conflict of a cluster, not a claim: not ours;
- a claim whose answer is lost: the document says whose claim it holds;
- an end whose answer is lost is written again until CouchDB says that it is there;
- an end that meets a conflict: where the document still holds our claim, somebody else has changed another field
  (a request to cancel, progress), and the end is written onto that; else the job was taken away: ClaimLost.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from couchjobs.couch.connection import Connection
from couchjobs.couch.settle import settle
from couchjobs.couch.writer import WriteAnswer, Written
from couchjobs.errors import BadDocumentError, BadRequest, Conflict, Forbidden, JobNotFoundError, TooLarge, Unavailable
from couchjobs.jobs import transitions
from couchjobs.jobs.job import Changes, Job, State, is_job
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.supervisor import backoff
from couchjobs.timestamps import now

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)


class RecentRevisions:
    """The last so many revisions that were added."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._revisions: dict[str, None] = {}

    def __contains__(self, rev: object) -> bool:
        return rev in self._revisions

    def add(self, rev: str) -> None:
        """Remember one more, forget the oldest."""
        self._revisions[rev] = None
        if len(self._revisions) > self._most:
            del self._revisions[next(iter(self._revisions))]


class JobStore:
    """The jobs of one tenant in one lane. The constructor does not touch the network."""

    def __init__(self, connection: Connection, db: Prefixer, lane: str | None = None) -> None:
        """Take the lane, which is a doctype; None: that of most worker types."""
        self.db = db
        self.database = connection.database(db.database(lane or connection.settings.jobs_doctype))
        self.writer = connection.writer(self.database.name)
        self.own_revisions = RecentRevisions()
        """Revisions that this process wrote and that nobody need look at: claims and ends."""
        self.doubtful: dict[str, float] = {}
        """Jobs that this process may have claimed and does not own, and since when, by `time.monotonic()`."""
        self._go_durations = connection.settings.go_durations
        self._max_message = connection.settings.max_message_bytes
        self._patience_s = connection.settings.request_timeout

    async def get(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            JobNotFoundError: there is none with that id.
        """
        document = await self.database.find(job_id) if job_id and not job_id.startswith("_") else None
        if document is None:
            raise JobNotFoundError(f"no job {job_id!r} in database {self.database.name}")
        return Job.read(document)

    def check(self, document: Document) -> Job:
        """Return the job that a document of unknown origin holds.

        Raises:
            BadDocumentError: it cannot be run, and why.
        """
        try:
            size = len(orjson.dumps(document))
            if size > self._max_message:
                size = len(orjson.dumps(document.get("message")))
        except TypeError as error:
            raise BadDocumentError(f"it is nested too deep, or holds text that is none: {error}") from error
        job = Job.from_document(document, go_durations=self._go_durations)
        if "state" not in document:
            raise BadDocumentError('state is missing: write "state": "queued"')
        if size > self._max_message:
            raise BadDocumentError(
                f"message is {size:,} bytes; {self._max_message:,} are allowed (COUCHJOBS_MAX_MESSAGE_BYTES): "
                "store large data in a document or attachment of its own and name it in the message"
            )
        return job

    async def create(self, job: Job) -> bool:
        """Store a new job; return False where a job with its id is there already.

        Raises:
            Forbidden: CouchDB refuses it.
            Unavailable: CouchDB does not answer; the job may be there or not.
            NotFound: the database of jobs does not exist.
        """
        document = job.document()
        if self._go_durations and job.options is not None:
            document = {**document, "options": job.options.stored(go_durations=True)}
        self.check(document)
        answer = await settle(self.writer, document, patience_s=self._patience_s)
        match answer.written:
            case Written.OK | Written.ACCEPTED:
                job.moved({}, document, answer.rev)
                return True
            case Written.CONFLICT:
                return False
            case Written.FORBIDDEN:
                raise Forbidden(f"job {job.id} in database {self.database.name}: {answer.reason}", 403)
            case Written.UNKNOWN:
                raise Unavailable(f"job {job.id} in database {self.database.name}: {answer.reason}")

    async def update(self, job: Job, **fields: Any) -> None:
        """Change fields of the job's document, such as `progress`.

        Raises:
            Conflict: the document has changed meanwhile.
            Forbidden: CouchDB refuses it.
            Unavailable: CouchDB does not answer; the change may be there or not.
        """
        await self._change(job, fields)

    async def requeue(self, job: Job) -> None:
        """Put an ended job back in the queue, with all its tries.

        Raises:
            Conflict: the document has changed meanwhile.
            Forbidden: CouchDB refuses it.
            Unavailable: CouchDB does not answer; the change may be there or not.
        """
        await self._change(job, transitions.requeued(now()))

    async def _change(self, job: Job, changes: Changes) -> None:
        document = job.document_with(changes)
        answer = await settle(self.writer, document, patience_s=self._patience_s)
        if not answer.stored:
            kind = {Written.CONFLICT: Conflict, Written.FORBIDDEN: Forbidden}.get(answer.written, Unavailable)
            raise kind(f"job {job.id} in database {self.database.name}: {answer.reason}")
        if answer.written is Written.ACCEPTED:  # by a cluster, perhaps on a branch that loses
            present = await self.database.find(job.id)
            if present is None or present["_rev"] != answer.rev:
                raise Conflict(f"job {job.id} in database {self.database.name}: another branch wins")
        job.moved(changes, document, answer.rev)

    async def claim(self, job: Job, daemon: str) -> bool:
        """Try to become the owner of a queued job; return whether that is so, and nothing else, beyond doubt."""
        changes = transitions.claimed(job, self.db, secrets.token_hex(8), daemon, now())
        document = job.document_with(changes)
        answer = await self.writer.write(document)
        if answer.written is Written.UNKNOWN:
            return await self._claim_is_ours(job, document)
        if answer.written is not Written.OK:
            self._note_failed_claim(job, answer)
            return False
        job.moved(changes, document, answer.rev)
        self.own_revisions.add(answer.rev)
        return True

    def _note_failed_claim(self, job: Job, answer: WriteAnswer) -> None:
        if answer.written is Written.FORBIDDEN:
            _logger.warning("claim refused", job=job.id, reason=answer.reason)
        elif answer.written is Written.ACCEPTED:
            self.doubtful[job.id] = time.monotonic()

    async def _claim_is_ours(self, job: Job, document: Document) -> bool:
        present = await self._find_patiently(job.id)
        if present is None or present.get("claim") != document["claim"] or present.get("state") != State.RUNNING:
            return False
        job.adopt(present)
        return True

    async def _find_patiently(self, job_id: str) -> Document | None:
        """Return the document, however long CouchDB takes to answer."""
        failures = 0
        while True:
            try:
                return await self.database.find(job_id)
            except (Unavailable, TooLarge):
                failures += 1
                await asyncio.sleep(backoff(failures))

    async def ack_consumed(self, job: Job, daemon: str = "") -> bool:
        """Move the job to running with `started_at`; return whether it is ours now."""
        return await self.claim(job, daemon)

    async def ack(self, job: Job, result: Any = None) -> bool:
        """Move the job to done with `finished_at`; return False where it was taken away."""
        return await self._end(job, lambda: transitions.done(now(), result))

    async def nack(self, job: Job, error: str) -> bool:
        """Move the job to errored with `error` and `finished_at`; return False where it was taken away."""
        return await self._end(job, lambda: transitions.errored(job, now(), error))

    async def retry(self, job: Job, error: str, delay_s: float) -> bool:
        """Put the job back in the queue, not to be run before `delay_s` from now; False where it was taken away."""
        time = now()
        return await self._end(job, lambda: transitions.retried(job, time, error, time + timedelta(seconds=delay_s)))

    async def release(self, job: Job) -> bool:
        """Put the job back in the queue at once, its try not counted; False where it was taken away."""
        return await self._end(job, lambda: transitions.released(job))

    async def cancel(self, job: Job) -> bool:
        """Move the job to errored ("cancelled"); False where it was taken away."""
        return await self._end(job, lambda: transitions.cancelled(now()))

    async def rescue(self, job: Job, *, again: bool) -> bool:
        """Take the job from the dead daemon that runs it, to be tried again or not; False where it has moved on."""
        daemon = job.claim.daemon if job.claim else "nobody"
        error = f"worker lost: daemon {daemon} is dead"
        return await self._end(job, lambda: transitions.lost(job, now(), error, again=again))

    async def reject(self, document: Document, reason: str, time: datetime | None = None) -> None:
        """Move a document that cannot be understood to errored, with the reason."""
        _logger.warning("bad job", job=document["_id"], reason=reason)
        marked = transitions.unreadable(document, time or now(), reason)
        try:
            answer = await settle(self.writer, marked, patience_s=self._patience_s)
        except BadRequest as error:
            _logger.warning("bad job cannot be marked", job=document["_id"], reason=str(error))
            return
        if answer.written is Written.FORBIDDEN:
            _logger.warning("bad job cannot be marked", job=document["_id"], reason=answer.reason)

    async def _end(self, job: Job, changes_of: Callable[[], Changes]) -> bool:
        refusals = 0
        while True:
            changes = changes_of()
            document = job.document_with(changes)
            answer = await settle(self.writer, document)
            if answer.stored:
                job.moved(changes, document, answer.rev)
                if job.state is not State.QUEUED:
                    self.own_revisions.add(answer.rev)
                return True
            if answer.written is not Written.FORBIDDEN:
                if not await self._still_ours(job):
                    return False
            elif (refusals := refusals + 1) > 1 and not answer.whole:
                return False
            else:
                changes_of = await self._after_refusal(job, changes_of, answer, refusals)

    async def _after_refusal(
        self, job: Job, changes_of: Callable[[], Changes], answer: WriteAnswer, refusals: int
    ) -> Callable[[], Changes]:
        """Return what to write after a refused end: the same, later, where nothing may be written; else the reason."""
        _logger.error("end of job refused", job=job.id, reason=answer.reason)
        if answer.whole:
            await asyncio.sleep(backoff(refusals))
            return changes_of
        return partial(transitions.errored, job, now(), f"the end was refused: {answer.reason}")

    async def _still_ours(self, job: Job) -> bool:
        present = await self._find_patiently(job.id)
        same = present is not None and is_job(present) and job.document().get("claim") == present.get("claim")
        if present is not None and same and present.get("state") == job.state:
            job.adopt(present)
            return True
        if job.claim is not None:
            _logger.warning("ClaimLost", job=job.id, claim=job.claim.id)
        return False
