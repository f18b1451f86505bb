"""The jobs of one tenant: creating, claiming and ending them, with CouchDB's answers taken for what they say.

States, and who writes what: anybody creates queued jobs; a daemon claims one (queued to running) and is its owner
until it writes the end, a retry or a release. The revision of the claim fences every later write.

What can fail, and what then:
- a claim answered `accepted` is a stored conflict of a cluster, not a claim: not ours;
- a claim whose answer is lost: the document says whose claim it holds, and where that is ours, it is written once more,
  on top of itself: one copy of a cluster may show it, while the others have taken somebody else's;
- an end whose answer is lost is written again until CouchDB says that it is there;
- an end that meets a conflict: where the document still holds our claim, somebody else has changed another field
  (a request to cancel, progress), and the end is written onto that; else the job was taken away: ClaimLost;
- an end that CouchDB never takes as it is: the job is done all the same, without its result, or with its content in an
  attachment, or cut.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from enum import Enum
from time import monotonic
from typing import Any, Self

from couchjobs.couch.absence import is_surely_gone
from couchjobs.couch.answers import WriteAnswer, Written, as_error
from couchjobs.couch.codec import encode
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document, is_id, is_readable
from couchjobs.couch.surely import (
    INSIST_FOR_LONG_S,
    INSIST_ON_OWN_S,
    INSIST_TIMES,
    SHORTLY_S,
    Insistence,
    Refusals,
    write_shortly,
    write_surely,
)
from couchjobs.errors import BadDocumentError, Conflict, CouchError, JobNotFoundError, NotFound, Unavailable
from couchjobs.jobs import transitions
from couchjobs.jobs.checking import JobCheck
from couchjobs.jobs.claims import OwnClaims
from couchjobs.jobs.job import Changes, Job, State, is_job, is_same_claim
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now
from couchjobs.waits import backoff

_logger = get_logger(__name__)
_TOLD_AFTER = 5
_ANSWER_S = 0.5
"""Seconds beyond the patience of whoever pushes, for the answer to the last attempt."""
_LONGEST_ASKED_S = 10.0
"""Seconds that a slot waits for what became of a claim without an answer: a restart of CouchDB takes less."""
_WHAT_IT_IS = ("worker", "message", "payload", "event", "options", "trigger_id")


class Claimed(Enum):
    """What became of an attempt to claim a job."""

    OURS = "ours"
    LOST = "lost"
    """Somebody else has it, or it has changed or gone, or nobody has it for certain: its next row tells."""
    LATER = "later"
    """Nothing is known, or nothing was written: it is to be looked at again."""
    REFUSED = "refused"
    """CouchDB never takes the claim of this document."""


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
        self._nonce = secrets.token_hex(8)
        self._claims = itertools.count()
        self._go_durations = connection.settings.go_durations
        self._request_s = connection.settings.request_timeout
        self._patience_s = max(self._request_s, 2 * INSIST_ON_OWN_S)
        self.refusals: Refusals | None = None
        """The answers so far to what is written `shortly`; None: whoever writes waits."""

    def is_place_of(self, worker_type: str) -> bool:
        """Return whether jobs of that type belong here: daemons that have the type look for them."""
        return self._lane_of(worker_type) == self._lane

    def shortly(self, refusals: Refusals) -> Self:
        """Return the same jobs for whoever has others to look after, and tries again later: a write has 2 s."""
        twin = copy.copy(self)
        twin.refusals = refusals
        return twin

    async def get(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            JobNotFoundError: there is none with that id.
        """
        document = await self.database.find(job_id) if is_id(job_id) else None
        if document is None:
            raise JobNotFoundError(f"no job {job_id!r} in database {self.database.name}")
        return Job.read(document)

    def read(self, document: Document) -> Job:
        """Return the job that a document of this database holds, for doing something about it: this tenant's job.

        Fields that cannot be understood are left out.
        """
        job = Job.read(document)
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
            raise as_error(answer, self._name_of(job.id))
        if answer.written is Written.ACCEPTED and await self._is_another(document):
            return False
        job.moved({}, document, answer.rev)
        return True

    async def _is_another(self, document: Document) -> bool:
        """Return whether one that was pushed at another moment wins over this, which one copy of a cluster took."""
        try:
            present = await self.database.find(document["_id"])
        except CouchError:
            return False
        return present is not None and present.get("queued_at") != document.get("queued_at")

    def _name_of(self, job_id: str) -> str:
        return f"job {job_id[:100]} in database {self.database.name}"

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
            raise as_error(answer, self._name_of(job.id))
        if answer.written is Written.ACCEPTED:  # by a cluster, perhaps on a branch that loses
            present = await self.database.find(job.id)
            if present is None or present["_rev"] != answer.rev:
                raise Conflict(f"{self._name_of(job.id)}: another branch wins")
        job.moved(changes, document, answer.rev)

    async def claim(self, job: Job, daemon: str) -> bool:
        """Try to become the owner of a queued job; return whether that is so, and nothing else, beyond doubt."""
        return await self.try_to_claim(job, daemon, OwnClaims()) is Claimed.OURS

    async def try_to_claim(self, job: Job, daemon: str, claims: OwnClaims) -> Claimed:
        """Try to become the owner of a queued job; OURS where that is so, beyond doubt, and nowhere else.

        `claims`: where it is noted what this attempt leaves to be known.
        """
        changes = transitions.claimed(job, self.db, f"{self._nonce}{next(self._claims):x}", daemon, now())
        document = job.document_with(changes)
        try:
            answer = await self.writer.write(document)
        except NotFound as error:
            answer = WriteAnswer(Written.UNKNOWN, reason=str(error), unsent=True)
        if answer.written is Written.UNKNOWN and not answer.unsent:
            return await self._claim_is_ours(job, document, claims, answer)
        claims.refusals.forget(job.id, job.rev)
        match answer.written:
            case Written.OK:
                job.moved(changes, document, answer.rev)
                claims.revisions.add(answer.rev)
                return Claimed.OURS
            case Written.ACCEPTED:
                claims.doubt(job.id)
                return Claimed.LOST
            case Written.CONFLICT:
                return Claimed.LOST
            case Written.REFUSED:
                _logger.warning("claim refused", job=job.id, reason=answer.reason)
                return Claimed.REFUSED
            case Written.UNKNOWN:
                return Claimed.LATER

    async def _claim_is_ours(self, job: Job, document: Document, claims: OwnClaims, answer: WriteAnswer) -> Claimed:
        insistence = claims.refusals.of(job.id, job.rev)
        try:
            present = await self._find_patiently(job.id, _LONGEST_ASKED_S)
        except CouchError as error:
            _logger.warning("it is not known whose a job is: it is looked at again", job=job.id, reason=str(error))
            claims.doubt(job.id)
            return Claimed.LATER
        if present is not None and present["_rev"] == job.rev:
            if not insistence.note(answer, monotonic()):
                claims.refusals.keep(insistence, job.id, job.rev)
                if insistence.times == INSIST_TIMES:
                    _logger.warning("claim is refused, and tried again", job=job.id, reason=answer.reason)
                return Claimed.LATER
            claims.refusals.forget(job.id, job.rev)
            return Claimed.REFUSED
        claims.refusals.forget(job.id, job.rev)
        if present is None or present.get("claim") != document["claim"] or present.get("state") != State.RUNNING:
            return Claimed.LOST
        if any(present.get(name) != document.get(name) for name in _WHAT_IT_IS):
            claims.doubt(job.id)  # rewritten since: it is looked at anew, from the queue
            return Claimed.LOST
        return await self._confirmed(job, present, claims)

    async def _confirmed(self, job: Job, present: Document, claims: OwnClaims) -> Claimed:
        """Write our claim, as it was read, on top of itself: where enough copies take that, nobody else has the job."""
        answer = WriteAnswer(Written.UNKNOWN)
        with suppress(NotFound):
            if not present.get("cancel_requested"):  # no row would tell of that any more
                answer = await self.writer.write(present)
        if answer.written is not Written.OK:
            claims.doubt(job.id)
            return Claimed.LOST
        claims.revisions.add(answer.rev)
        job.adopt({**present, "_rev": answer.rev})
        return Claimed.OURS

    async def _find_patiently(self, job_id: str, longest_s: float) -> Document | None:
        """Return the document, None where it is gone; CouchDB may take so many seconds to say so.

        Raises:
            CouchError: it does not.
        """
        failures, deadline = 0, monotonic() + longest_s
        while True:
            try:
                return await self.database.find(job_id)
            except NotFound as error:
                if await is_surely_gone(self.database):
                    return None
                if monotonic() > deadline:
                    raise Unavailable(str(error), 404) from error
            except CouchError as error:
                if monotonic() > deadline:
                    raise
                failures += 1
                if failures == _TOLD_AFTER:
                    _logger.warning("job cannot be read, and is asked for again", job=job_id, reason=str(error))
            await asyncio.sleep(backoff(failures))

    async def ack_consumed(self, job: Job, daemon: str = "") -> bool:
        """Move the job to running with `started_at`; return whether it is ours now."""
        return await self.claim(job, daemon)

    async def ack(self, job: Job, result: Any = None, lost: str = "", seconds: float | None = None) -> bool:
        """Move the job to done with `finished_at`; return False where it was taken away.

        Args:
            job: ours.
            result: what its function has returned.
            lost: why its result cannot be stored, for `errors`.
            seconds: how long its last try took.
        """
        if lost:
            return await self.end(job, lambda: transitions.done_without_result(job, now(), lost, seconds))
        return await self.end(job, lambda: transitions.done(now(), result, seconds))

    async def begin_to_fail(self, job: Job, daemon: str, error: str, traceback: str = "") -> bool:
        """Take note that the job has failed for good, and that `daemon` tells of it; False where it was taken away."""
        return await self.end(job, lambda: transitions.ending(daemon, error, traceback))

    async def nack(self, job: Job, error: str, traceback: str = "", seconds: float | None = None) -> bool:
        """Move the job to errored with `error` and `finished_at`; return False where it was taken away."""
        return await self.end(job, lambda: transitions.errored(job, now(), error, traceback, seconds))

    async def retry(
        self, job: Job, error: str, delay_s: float, traceback: str = "", seconds: float | None = None
    ) -> bool:
        """Put the job back in the queue, not to be run before `delay_s` from now; False where it was taken away."""
        time = now()
        not_before = time + timedelta(seconds=delay_s)
        return await self.end(job, lambda: transitions.retried(job, time, error, not_before, traceback, seconds))

    async def release(self, job: Job) -> bool:
        """Put the job back in the queue at once, its try not counted; False where it was taken away."""
        return await self.end(job, lambda: transitions.released(job))

    async def cancel(self, job: Job) -> bool:
        """Move the job to errored ("cancelled"); False where it was taken away."""
        return await self.end(job, lambda: transitions.cancelled(now()))

    async def rescue(self, job: Job, *, again: bool, why: str = "") -> bool:
        """Take the job from the daemon that ran it, to be tried again or not; False where it has moved on.

        One that had failed for good before its daemon died ends as it would have. `why`: as for `why_lost`.
        """
        error, traceback = why_lost(job, why)
        again = again and job.ending is None
        return await self.end(job, lambda: transitions.lost(job, now(), error, traceback, again=again))

    async def reject(self, document: Document, reason: str, time: datetime | None = None) -> bool:
        """Move a document that cannot be understood to errored, with the reason; False where that must wait."""
        _logger.warning("bad job", job=document["_id"], reason=reason)
        marked = transitions.unreadable(document, time or now(), reason)
        answer = await self._write(marked, document["_rev"], patience_s=self._patience_s)
        if answer.written is Written.REFUSED:
            answer, _ = await self._reduce(document, encode(document), f"bad job: {reason}; {answer.reason}")
        return answer.written is not Written.UNKNOWN

    async def reject_unread(self, job_id: str, reason: str) -> bool:
        """Move a document that cannot even be read to errored; what the server said of it becomes an attachment."""
        try:
            rev, original = await self.database.raw(job_id)
        except NotFound:
            return True
        if is_readable(original):  # it was the answer that could not be read, and not the document
            return False
        _logger.warning("bad job", job=job_id, reason=reason)
        answer, _ = await self._reduce({"_id": job_id, "_rev": rev}, original, f"bad job: {reason}")
        return answer.written is not Written.UNKNOWN

    async def create_errored(self, job: Job, reason: str) -> None:
        """Store, in the place of a job that CouchDB never takes, a small one that says why it is errored.

        Raises:
            Unavailable: CouchDB does not answer; it may be stored or not.
        """
        smaller = transitions.reduced(self.stored_form(job), None, now(), reason)
        smaller.pop("_rev", None)
        answer = await write_surely(self.writer, smaller, patience_s=self._patience_s)
        if answer.written is Written.UNKNOWN:
            raise as_error(answer, self._name_of(job.id))
        if answer.written is Written.REFUSED:
            _logger.error("job cannot be stored at all, nor why", job=job.id, reason=f"{reason}; {answer.reason}")

    async def _reduce(self, document: Document, original: bytes, reason: str) -> tuple[WriteAnswer, Document]:
        """Write as much of the document as CouchDB takes, with the reason; return the last attempt and its answer."""
        answer, smaller = WriteAnswer(Written.UNKNOWN), document
        for kept, what in ((original, "with what it was"), (None, "without")):
            smaller = transitions.reduced(document, kept, now(), reason)
            answer = await self._write(smaller, document["_rev"], what, patience_s=self._patience_s)
            if answer.written is not Written.REFUSED:
                return answer, smaller
        _logger.error("job cannot be marked at all", job=document["_id"], reason=answer.reason)
        return answer, smaller

    async def delete_leaf(self, leaf: Document) -> bool:
        """Delete a leaf that does not count beside another; return False where it has changed meanwhile.

        Raises:
            Refused: CouchDB never takes that.
            Unavailable: that must wait.
        """
        return await self._write_leaf(transitions.tombstone(leaf))

    async def change_leaf(self, leaf: Document, **fields: Any) -> bool:
        """Change fields of a leaf, whichever wins; as `delete_leaf`."""
        return await self._write_leaf({**leaf, **fields})

    async def _write_leaf(self, document: Document) -> bool:
        answer = await self._write(document, document["_rev"], patience_s=self._patience_s)
        if not answer.stored and answer.written is not Written.CONFLICT:
            raise as_error(answer, self._name_of(document["_id"]))
        return answer.stored

    async def end(self, job: Job, changes_of: Callable[[], Changes]) -> bool:
        """Write an end until it is stored; return False where the job was taken away.

        An end that CouchDB does not take is stored as far as possible: the job is errored then, unless it is done.

        Args:
            job: ours, or nobody's.
            changes_of: returns the fields that change; it is asked again where others have changed meanwhile.

        Raises:
            Refused: CouchDB takes nothing of it.
            Unavailable: it may be stored or not; where the caller waits, only for what is left of an end that is
                refused.
        """
        whose = job.claim.id if job.claim is not None else job.rev
        while True:
            changes = changes_of()
            document = job.document_with(changes)
            answer = await self._write(document, whose, str(changes.get("state", "ending")), patience_s=None)
            if answer.written is Written.REFUSED and changes.get("result") is not None:
                changes = transitions.done_without_result(job, now(), answer.reason)
                document = job.document_with(changes)
                answer = await write_surely(self.writer, document)
            if answer.written is Written.REFUSED:
                _logger.error("end of job refused", job=job.id, reason=answer.reason)
                answer, smaller = await self._reduce(document, encode(job.document()), answer.reason)
                if answer.stored:  # what it held stays in memory, for those who are told of it
                    told = {"state": State(smaller["state"]), "error": smaller.get("error")}
                    job.moved({**told, "claim": None, "ending": None}, smaller, answer.rev)
                if answer.written is Written.CONFLICT or answer.stored:
                    return answer.stored
            if answer.written in (Written.UNKNOWN, Written.REFUSED):
                raise as_error(answer, self._name_of(job.id))
            if answer.stored:
                job.moved(changes, document, answer.rev)
                return True
            if not await self._still_ours(job):
                return False

    async def _write(self, document: Document, *names: str, patience_s: float | None) -> WriteAnswer:
        """Write what ends a job; for a moment only, where whoever writes it tries again later."""
        if self.refusals is not None:
            return await write_shortly(self.writer, document, self.refusals, *names)
        insistence = Insistence(INSIST_FOR_LONG_S if patience_s is None else INSIST_ON_OWN_S)
        return await write_surely(self.writer, document, patience_s=patience_s, insistence=insistence)

    async def _still_ours(self, job: Job) -> bool:
        if job.claim is None:  # it was one revision that was to end so
            return False
        present = await self._find_patiently(job.id, math.inf if self.refusals is None else SHORTLY_S)
        same = present is not None and is_job(present) and is_same_claim(job.document(), present)
        if present is not None and same and present.get("state") == job.state:
            job.adopt(present)
            return True
        _logger.warning("ClaimLost", job=job.id, claim=job.claim.id)
        return False


def why_lost(job: Job, why: str = "") -> tuple[str, str]:
    """Return the error of a job that has lost its daemon, and its traceback: that which it had failed with before.

    `why`: it was lost; empty: its daemon has died.
    """
    if job.ending is not None and isinstance(job.ending.get("error"), str):
        return job.ending["error"], str(job.ending.get("traceback") or "")
    if not why:
        why = f"daemon {job.claim.daemon} is dead" if job.claim else "the job was running, and named no daemon"
    return f"worker lost: {why}", ""
