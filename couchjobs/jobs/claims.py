"""Claiming a queued job: becoming its owner, and nothing else, beyond doubt.

A claim is a write that moves the document from queued to running, on top of the revision that was read. What can fail,
and what then:
- answered `accepted`, it is a stored conflict of a cluster, not a claim: not ours;
- where its answer is lost, the document says whose claim it holds, and where that is ours, it is written once more, on
  top of itself: one copy of a cluster may show it, while the others have taken somebody else's.
"""

from __future__ import annotations

import itertools
import secrets
from contextlib import suppress
from enum import Enum
from time import monotonic

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.couch.database import Database, Document
from couchjobs.couch.surely import INSIST_TIMES, find_patiently
from couchjobs.couch.writer import GroupWriter
from couchjobs.errors import CouchError, NotFound
from couchjobs.jobs import transitions
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now

_logger = get_logger(__name__)
_LONGEST_ASKED_S = 10.0
"""Seconds that a slot waits for what became of a claim without an answer: a restart of CouchDB takes less."""
_WHAT_IT_IS = ("worker", "message", "payload", "event", "options", "trigger_id")
"""Fields that say what is to be done: where one of them is another now, it is another job that would be claimed."""


class Claimed(Enum):
    """What became of an attempt to claim a job."""

    OURS = "ours"
    LOST = "lost"
    """Somebody else has it, or it has changed or gone, or nobody has it for certain: its next row tells."""
    LATER = "later"
    """Nothing is known, or nothing was written: it is to be looked at again."""
    REFUSED = "refused"
    """CouchDB never takes the claim of this document."""


class Claimer:
    """Claims jobs of one database.

    Args:
        database: the database.
        writer: its writer.
        db: the tenant.
    """

    def __init__(self, database: Database, writer: GroupWriter, db: Prefixer) -> None:
        self._database = database
        self._writer = writer
        self._db = db
        self._nonce = secrets.token_hex(8)
        self._count = itertools.count()

    async def claim(self, job: Job, daemon: str, claims: OwnClaims) -> Claimed:
        """Try to become the owner of a queued job; OURS where that is so, beyond doubt, and nowhere else.

        `claims`: where it is noted what this attempt leaves to be known.
        """
        changes = transitions.claimed(job, self._db, f"{self._nonce}{next(self._count):x}", daemon, now())
        document = job.document_with(changes)
        try:
            answer = await self._writer.write(document)
        except NotFound as error:
            answer = WriteAnswer(Written.UNKNOWN, reason=str(error), unsent=True)
        if answer.written is Written.UNKNOWN and not answer.unsent:
            return await self._look_whose_it_is(job, document, claims, answer)
        claims.refusals.forget(job.id, job.rev)
        match answer.written:
            case Written.OK:
                job.moved(changes, document, answer.rev)
                claims.revisions.add(answer.rev)
                return Claimed.OURS
            case Written.ACCEPTED:
                claims.note_unconfirmed(job.id)
                return Claimed.LOST
            case Written.CONFLICT:
                return Claimed.LOST
            case Written.REFUSED:
                _logger.warning("claim refused", job=job.id, reason=answer.reason)
                return Claimed.REFUSED
            case Written.UNKNOWN:
                return Claimed.LATER

    async def _look_whose_it_is(self, job: Job, document: Document, claims: OwnClaims, answer: WriteAnswer) -> Claimed:
        """Read the document of a claim whose answer was lost."""
        insistence = claims.refusals.of(job.id, job.rev)
        try:
            present = await find_patiently(self._database, job.id, _LONGEST_ASKED_S)
        except CouchError as error:
            _logger.warning("it is not known whose a job is: it is looked at again", job=job.id, reason=str(error))
            claims.note_unconfirmed(job.id)
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
            claims.note_unconfirmed(job.id)  # rewritten since: it is looked at anew, from the queue
            return Claimed.LOST
        return await self._confirmed(job, present, claims)

    async def _confirmed(self, job: Job, present: Document, claims: OwnClaims) -> Claimed:
        """Write our claim, as it was read, on top of itself: where enough copies take that, nobody else has the job."""
        answer = WriteAnswer(Written.UNKNOWN)
        with suppress(NotFound):
            if not present.get("cancel_requested"):  # no row would tell of that any more
                answer = await self._writer.write(present)
        if answer.written is not Written.OK:
            claims.note_unconfirmed(job.id)
            return Claimed.LOST
        claims.revisions.add(answer.rev)
        job.adopt({**present, "_rev": answer.rev})
        return Claimed.OURS
