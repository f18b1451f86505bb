"""Writing until the answer is known: a lost answer is asked for again until CouchDB says what became of the write."""

from __future__ import annotations

import asyncio

from couchjobs.couch.database import Document
from couchjobs.couch.writer import GroupWriter, WriteAnswer, Written
from couchjobs.errors import Forbidden, NotFound, TooLarge, Unavailable
from couchjobs.supervisor import backoff


async def settle(writer: GroupWriter, doc: Document, *, patience_s: float | None = None) -> WriteAnswer:
    """Write `doc` and return an answer that is not UNKNOWN, unless patience ends before one is to be had.

    After a lost answer the same write is sent again: where the first one had happened, CouchDB answers conflict, and
    the document that is there is the one that was sent. That counts as stored, whoever's answer it is.

    Args:
        writer: the database's writer.
        doc: the document, with the `_rev` that it replaces.
        patience_s: seconds; None: for ever.

    Raises:
        NotFound: the database does not exist.
    """
    loop = asyncio.get_running_loop()
    deadline = None if patience_s is None else loop.time() + patience_s
    failures = 0
    while True:
        answer = await writer.write(doc)
        if answer.written is Written.CONFLICT and failures:
            answer = await _was_it_ours(writer, doc, answer)
        if answer.written is not Written.UNKNOWN:
            return answer
        failures += 1
        if deadline is not None and loop.time() > deadline:
            return answer
        await asyncio.sleep(backoff(failures))


async def settle_allowed(writer: GroupWriter, doc: Document) -> WriteAnswer:
    """Do the same, for as long as it takes, where a refusal is nobody's normal case.

    Raises:
        Forbidden: CouchDB refuses the document.
        Unavailable: the database does not exist.
    """
    try:
        answer = await settle(writer, doc)
    except NotFound as error:
        raise Unavailable(str(error), 404) from error
    if answer.written is Written.FORBIDDEN:
        raise Forbidden(f"{doc['_id']} in database {writer.database.name}: {answer.reason}", 403)
    return answer


async def _was_it_ours(writer: GroupWriter, doc: Document, conflict: WriteAnswer) -> WriteAnswer:
    try:
        present = await writer.database.find(doc["_id"])
    except (Unavailable, TooLarge) as error:
        return WriteAnswer(Written.UNKNOWN, reason=str(error))
    if present is not None and content(present) == content(doc):
        return WriteAnswer(Written.OK, rev=present["_rev"])
    return conflict


def content(doc: Document) -> Document:
    """Return the document without its revision."""
    return {key: value for key, value in doc.items() if key != "_rev"}
