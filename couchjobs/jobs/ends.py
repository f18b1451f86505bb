"""How jobs end, or go back to the queue: written until CouchDB says that it is there.

The revision of the claim fences all of it. What can fail, and what then:
- an end whose answer is lost is written again;
- an end that meets a conflict: where the document still holds our claim, somebody else has changed another field
  (a request to cancel, progress), and the end is written onto that; else the job was taken away: ClaimLost;
- an end that CouchDB never takes as it is: the job is done all the same, without its result, or with its content in an
  attachment, or cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Self

from couchjobs.couch.answers import WriteAnswer, Written, as_error
from couchjobs.couch.codec import encode
from couchjobs.couch.database import Database, Document, is_readable
from couchjobs.couch.surely import (
    INSIST_FOR_LONG_S,
    INSIST_ON_OWN_S,
    SHORTLY_S,
    Insistence,
    Refusals,
    find_patiently,
    write_shortly,
    write_surely,
)
from couchjobs.couch.writer import GroupWriter
from couchjobs.errors import BadRequest, NotFound
from couchjobs.jobs import transitions
from couchjobs.jobs.ids import job_in
from couchjobs.jobs.job import Changes, Job, State, is_job, is_same_claim
from couchjobs.log import get_logger
from couchjobs.timestamps import now

_logger = get_logger(__name__)


class Ends:
    """Writes the ends of jobs of one database. Each call returns once CouchDB has answered, or, `shortly`, after 2 s.

    Args:
        database: the database.
        writer: its writer.
        patience_s: seconds that CouchDB may take for what is written in the place of an end that it refuses.
        refusals: the answers so far to what is written `shortly`; None: whoever writes waits.
    """

    def __init__(
        self, database: Database, writer: GroupWriter, patience_s: float, refusals: Refusals | None = None
    ) -> None:
        self.database = database
        self._writer = writer
        self._patience_s = patience_s
        self._refusals = refusals

    def shortly(self, refusals: Refusals) -> Self:
        """Return the same for whoever has other jobs to look after, and tries again later: a write has 2 s."""
        return type(self)(self.database, self._writer, self._patience_s, refusals)

    async def ack(self, job: Job, result: Any = None, seconds: float | None = None) -> bool:
        """Move the job to done with `finished_at` and what its function has returned; False where it was taken away."""
        return await self.end(job, lambda: transitions.done(now(), result, seconds))

    async def begin_to_fail(self, job: Job, daemon: str, error: str, traceback: str = "") -> bool:
        """Take note that the job has failed for good, and that `daemon` tells of it; False where it was taken away."""
        return await self.end(job, lambda: transitions.ending(daemon, error, traceback))

    async def nack(self, job: Job, error: str, traceback: str = "", seconds: float | None = None) -> bool:
        """Move the job to errored with `error` and `finished_at`; return False where it was taken away."""
        return await self.end(job, lambda: transitions.errored(job, now(), error, traceback, seconds))

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
        try:
            answer = await self._write(marked, document["_rev"], patience_s=self._patience_s)
            if answer.written is Written.REFUSED:
                answer, _ = await self._reduce(document, encode(document), f"bad job: {reason}; {answer.reason}")
        except BadRequest:  # it can be read, and is nested too deep to be written
            _, original = await self.database.raw(document["_id"])
            answer, _ = await self._reduce(document, original, f"bad job: {reason}")
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
            raise as_error(answer, job_in(self.database.name, document["_id"]))
        return answer.stored

    async def end(self, job: Job, changes_of: Callable[[], Changes]) -> bool:
        """Write an end until it is stored; return False where the job was taken away.

        An end that CouchDB does not take is stored as far as possible: the job is errored then, unless it is done.

        Args:
            job: ours, or nobody's.
            changes_of: returns the fields that change; it is asked again where others have changed meanwhile.

        Raises:
            Refused: CouchDB takes nothing of it.
            Unavailable: it may be stored or not. A caller that waits meets this only once the full end was refused, and
                the smaller document cannot be written now.
        """
        whose = job.claim.id if job.claim is not None else job.rev
        while True:
            changes = changes_of()
            document = job.document_with(changes)
            answer = await self._write(document, whose, str(changes.get("state", "ending")), insist_s=INSIST_FOR_LONG_S)
            if answer.written is Written.REFUSED and changes.get("result") is not None:
                at, seconds = changes["finished_at"], changes.get("seconds")
                changes = transitions.done_without_result(job, at, answer.reason, seconds)
                document = job.document_with(changes)
                answer = await self._write(document, whose, "without its result", insist_s=INSIST_ON_OWN_S)
            if answer.written is Written.REFUSED:
                _logger.error("end of job refused", job=job.id, reason=answer.reason)
                answer, smaller = await self._reduce(document, encode(job.document()), answer.reason)
                if answer.stored:  # what it held stays in memory, for those who are told of it
                    told = {"state": State(smaller["state"]), "error": smaller.get("error")}
                    job.moved({**told, "claim": None, "ending": None}, smaller, answer.rev)
                    return True
            if answer.written in (Written.UNKNOWN, Written.REFUSED):
                raise as_error(answer, job_in(self.database.name, job.id))
            if answer.stored:
                job.moved(changes, document, answer.rev)
                return True
            if not await self._still_ours(job):
                return False

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

    async def _write(
        self, document: Document, *names: str, patience_s: float | None = None, insist_s: float = INSIST_ON_OWN_S
    ) -> WriteAnswer:
        """Write what ends a job; for a moment only, where whoever writes it tries again later.

        Args:
            document: as it is to be.
            names: what tells it apart from other attempts at the job.
            patience_s: seconds that CouchDB may take to take it; None: as long as it takes.
            insist_s: seconds for which CouchDB must have an error with it alone, until it is never taken.
        """
        if self._refusals is not None:
            return await write_shortly(self._writer, document, self._refusals, *names)
        return await write_surely(self._writer, document, patience_s=patience_s, insistence=Insistence(insist_s))

    async def _still_ours(self, job: Job) -> bool:
        if job.claim is None:  # it was one revision that was to end so
            return False
        present = await find_patiently(self.database, job.id, math.inf if self._refusals is None else SHORTLY_S)
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
