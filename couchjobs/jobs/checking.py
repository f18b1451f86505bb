"""Whether a document of unknown origin is a job that can be run."""

from __future__ import annotations

import json

import orjson

from couchjobs.couch.codec import encode, is_deeper
from couchjobs.couch.database import Document
from couchjobs.errors import BadDocumentError, BadRequest, MessageUnmarshalError
from couchjobs.jobs.job import Job
from couchjobs.jobs.message import decode_message
from couchjobs.jobs.transitions import why_reduced
from couchjobs.jobs.values import MAX_DEPTH
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings

_LONGEST_ID = 10_000
"""Characters of a job's id; the views leave out those with more than 20,000, so that a page of rows can be read."""


class JobCheck:
    """Checks documents of one tenant, by the settings of a process."""

    def __init__(self, db: Prefixer, settings: Settings) -> None:
        self._db = db
        self._go_durations = settings.go_durations
        self._max_message = settings.max_message_bytes

    def job_and_size(self, document: Document) -> tuple[Job, int]:
        """Return the job that the document holds, and the bytes of the document as JSON.

        Raises:
            BadDocumentError: it cannot be run, and why.
        """
        size, message_size = self._sizes(document)
        job = Job.from_document(document, go_durations=self._go_durations)
        job.belongs_to(self._db.domain, self._db.prefix)
        if "state" not in document:
            raise BadDocumentError('state is missing: write "state": "queued"')
        self._check_size(message_size)
        if told := why_reduced(document):
            raise BadDocumentError(f"it cannot be tried again: {told}")
        return job, size

    def check_new(self, job: Job, document: Document) -> None:
        """Check the document of a job that was made here: what its model cannot say.

        Raises:
            BadDocumentError: it cannot be run, and why.
        """
        job.belongs_to(self._db.domain, self._db.prefix)
        try:
            decode_message(document.get("message"))
        except MessageUnmarshalError as error:
            raise BadDocumentError(f"message: {error}") from error
        self._check_size(self._sizes(document)[1])

    def check_message(self, message: object) -> None:
        """Check a message by itself: that of the jobs that a trigger will make.

        Raises:
            BadDocumentError: no job can have it.
        """
        self._check_size(self._sizes({"message": message})[1])

    def _sizes(self, document: Document) -> tuple[int, int]:
        """Return the bytes of the document, and, where those are too many for a message, of its message; else of both.

        Raises:
            BadDocumentError: its id is too long, it is nested too deep, or no JSON.
        """
        try:
            body = orjson.dumps(document)
        except TypeError:
            body = _encode_odd(document)
        size = len(body)
        if len(str(document.get("_id"))) > _LONGEST_ID:
            raise BadDocumentError(f"its id has more than {_LONGEST_ID:,} characters")
        if is_deeper(document, MAX_DEPTH, body):
            raise BadDocumentError(f"it is nested too deep: more than {MAX_DEPTH} levels")
        return size, (size if size <= self._max_message else len(encode(document.get("message"))))

    def _check_size(self, size: int) -> None:
        if size > self._max_message:
            raise BadDocumentError(
                f"message is {size:,} bytes; {self._max_message:,} are allowed (COUCHJOBS_MAX_MESSAGE_BYTES): "
                "store large data in a document or attachment of its own and name it in the message"
            )


def _encode_odd(document: Document) -> bytes:
    """Return the JSON of what orjson does not write: very long numbers, and what is nested deep.

    Raises:
        BadDocumentError: it is no JSON.
    """
    try:
        json.dumps(document, ensure_ascii=False).encode()
        return encode(document)
    except UnicodeEncodeError:
        raise BadDocumentError("it holds text that is none: a half of a character") from None
    except (BadRequest, TypeError, ValueError, RecursionError) as error:
        raise BadDocumentError(f"it is no JSON, or nested too deep: {error}") from None
