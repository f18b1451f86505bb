"""Writing until it is known what became of the document, and reading until it is known what it is."""

from __future__ import annotations

import asyncio
import time

from couchjobs.couch.absence import is_surely_gone
from couchjobs.couch.answers import WriteAnswer, Written, as_error
from couchjobs.couch.database import Database, Document
from couchjobs.couch.writer import GroupWriter
from couchjobs.errors import CouchError, NotFound, Unavailable
from couchjobs.log import get_logger
from couchjobs.waits import backoff

_logger = get_logger(__name__)
INSIST_S = 15.0
"""How long a document must be refused alone, while others are taken, before that is believed to be for good. What
restarts or is set up anew between a daemon and CouchDB takes seconds; a wrong belief costs a job."""
INSIST_ON_OWN_S = 30.0
"""The same of an error of its own: a function that validates documents may be broken for a kind of them, and mended."""
INSIST_FOR_LONG_S = 300.0
"""The same where nothing else waits for the document."""
INSIST_TIMES = 4
"""A write that is refused so often while others are stored is refused for what it says."""
_MOST_REFUSED = 10_000
"""Documents that are remembered as refused, the newest."""
_FORGOTTEN_S = 600.0
"""Seconds: longer than between two attempts at a document that is still to be written."""
SHORTLY_S = 2.0
"""Seconds that a document is written that is one of many: time for three more attempts."""
_TOLD_AFTER = 5
"""Failures in a row to read a document: about a second of an outage, as `backoff` has it."""
_LAST_LOOK_S = 0.01
"""Seconds after the end of patience at which it is tried once more."""


class Insistence:
    """Whether the answers to one document, one after the other, amount to a refusal for good.

    `on_own_s`: seconds for which it must have an error of its own.
    """

    def __init__(self, on_own_s: float = INSIST_ON_OWN_S) -> None:
        self._on_own_s = on_own_s
        self._since: float | None = None
        self._are_others_stored = False
        self.noted_at = 0.0
        """When there was an answer last."""
        self.times = 0
        """How many of them, in a row, were refusals."""

    def note(self, answer: WriteAnswer, now: float) -> bool:
        """Take note of one more answer at that monotonic time; return whether the document will never be taken.

        An error of its own counts once another document has been stored since the first one: a function that validates
        documents may be broken for all of them.
        """
        self.noted_at = now
        if answer.unasked:
            return False
        if not (answer.alone or answer.own_error):
            self._since, self.times, self._are_others_stored = None, 0, False
            return False
        self._since = now if self._since is None else self._since
        self._are_others_stored |= answer.alone or answer.others_stored_at > self._since
        self.times += 1
        seconds = self._on_own_s if answer.own_error else INSIST_S
        return self._are_others_stored and self.times >= INSIST_TIMES and now - self._since >= seconds


class Refusals:
    """The answers so far to documents that are written again and again, each at one revision: some thousand at most.

    `on_own_s`: as for `Insistence`.
    """

    def __init__(self, on_own_s: float = INSIST_FOR_LONG_S) -> None:
        self._on_own_s = on_own_s
        self._known: dict[tuple[str, ...], Insistence] = {}

    def of(self, *names: str) -> Insistence:
        """Return the answers so far to a document, named by its id, its revision, and what else tells it apart."""
        return self._known.get(names) or Insistence(self._on_own_s)

    def keep(self, insistence: Insistence, *names: str) -> None:
        """Remember the answers so far, if the last one was a refusal.

        Where they are too many, those are forgotten that nobody has asked for lately: the others are to come to an end.
        """
        self._known.pop(names, None)
        if not insistence.times:
            return
        if len(self._known) >= _MOST_REFUSED:
            oldest = next(iter(self._known))
            if insistence.noted_at - self._known[oldest].noted_at < _FORGOTTEN_S:
                return
            del self._known[oldest]
        self._known[names] = insistence

    def times(self, *names: str) -> int:
        """Return how many of them, in a row, were refusals."""
        return self._known[names].times if names in self._known else 0

    def forget(self, *names: str) -> None:
        """Forget them, for there was an answer that was none."""
        if self._known:
            self._known.pop(names, None)


async def write_surely(
    writer: GroupWriter,
    doc: Document,
    *,
    patience_s: float | None = None,
    longest_s: float | None = None,
    insistence: Insistence | None = None,
) -> WriteAnswer:
    """Write `doc` and return an answer that is not UNKNOWN, unless patience ends before one is to be had.

    After a lost answer the same write is sent again: where the first one had happened, CouchDB answers conflict, and
    the document that is there is the one that was sent. That counts as stored, whoever's answer it is.

    Args:
        writer: the database's writer.
        doc: the document, with the `_rev` that it replaces.
        patience_s: seconds after which nothing is sent again; None: for ever.
        longest_s: seconds after which an answer is not waited for any more; None: as long as a request may take.
        insistence: the answers to earlier attempts; None: there were none.

    Raises:
        NotFound: the database does not exist; without a limit of patience only once that is beyond doubt.
        BadRequest: the document is not JSON.
    """
    deadline = None if patience_s is None else time.monotonic() + patience_s
    last_moment = None if longest_s is None else asyncio.get_running_loop().time() + longest_s
    insistence = insistence or Insistence()
    failures = 0
    maybe_stored = False
    while True:
        try:
            answer = await (writer.write(doc) if last_moment is None else _write_by(last_moment, writer, doc))
        except NotFound as error:
            if patience_s is not None or await is_surely_gone(writer.database):
                raise
            answer = WriteAnswer(Written.UNKNOWN, reason=str(error))
        if answer.written is Written.CONFLICT and maybe_stored:
            answer = await _was_it_ours(writer, doc, answer)
        if answer.written is not Written.UNKNOWN:
            return answer
        if insistence.note(answer, time.monotonic()):
            return WriteAnswer(Written.REFUSED, reason=answer.reason)
        if insistence.times == INSIST_TIMES:
            _logger.warning("document is refused, and tried again", document=doc["_id"], reason=answer.reason)
        failures += 1
        maybe_stored |= not answer.unsent
        pause = max(answer.retry_after_s, backoff(failures))
        if deadline is not None:
            if time.monotonic() > deadline:
                return answer._replace(unsent=not maybe_stored)
            pause = min(pause, deadline - time.monotonic() + _LAST_LOOK_S)
        await asyncio.sleep(pause)


async def write_shortly(writer: GroupWriter, doc: Document, refusals: Refusals, *names: str) -> WriteAnswer:
    """Write `doc` for a moment only, for others wait; UNKNOWN where that was too short, and is to be tried again.

    `refusals`: what was said of it so far; `names`: what else than its id tells it apart there.

    Raises:
        NotFound: the database does not exist, for now at least.
    """
    names = (writer.database.name, doc["_id"], *names)
    insistence = refusals.of(*names)
    answer = await write_surely(writer, doc, patience_s=SHORTLY_S, insistence=insistence)
    if answer.stored or answer.written is Written.CONFLICT:
        refusals.forget(*names)
    else:
        refusals.keep(insistence, *names)
    return answer


async def _write_by(last_moment: float, writer: GroupWriter, doc: Document) -> WriteAnswer:
    """Write one document and return its answer; UNKNOWN where there is none by then."""
    answer = writer.submit(doc)
    timer = writer.deadlines.call_at(last_moment, _give_up, writer, answer)
    try:
        return await answer
    finally:
        timer.cancel()


def _give_up(writer: GroupWriter, answer: asyncio.Future[WriteAnswer]) -> None:
    """Tell that there is no answer; what has not been sent by now never is: nobody would know of it."""
    if not answer.done():
        unsent = writer.withdraw(answer)
        answer.set_result(WriteAnswer(Written.UNKNOWN, reason="no answer in time", unsent=unsent))


async def write_or_raise(writer: GroupWriter, doc: Document) -> WriteAnswer:
    """Write `doc` and return an answer that says stored or conflict.

    Raises:
        Refused: CouchDB never takes this document.
        Unavailable: the database does not exist now.
    """
    try:
        answer = await write_surely(writer, doc)
    except NotFound as error:
        raise Unavailable(str(error), 404) from error
    if answer.written is Written.REFUSED:
        raise as_error(answer, f"{doc['_id']} in database {writer.database.name}")
    return answer


async def _was_it_ours(writer: GroupWriter, doc: Document, conflict: WriteAnswer) -> WriteAnswer:
    try:
        present = await writer.database.find(doc["_id"])
    except CouchError as error:
        return WriteAnswer(Written.UNKNOWN, reason=str(error))
    if present is not None and _without_data(present) == _without_data(doc):
        return WriteAnswer(Written.OK, rev=present["_rev"])
    return conflict


async def find_patiently(database: Database, doc_id: str, longest_s: float) -> Document | None:
    """Return the document, None where it is gone; CouchDB may take so many seconds to say so.

    Raises:
        CouchError: it does not.
    """
    failures, deadline = 0, time.monotonic() + longest_s
    while True:
        try:
            return await database.find(doc_id)
        except NotFound as error:
            if await is_surely_gone(database):
                return None
            if time.monotonic() > deadline:
                raise Unavailable(str(error), 404) from error
        except CouchError as error:
            if time.monotonic() > deadline:
                raise
            failures += 1
            if failures == _TOLD_AFTER:
                _logger.warning("document cannot be read, and is asked for again", document=doc_id, reason=str(error))
        await asyncio.sleep(backoff(failures))


def _without_data(doc: Document) -> Document:
    """Return the document with the names of its attachments alone: CouchDB gives their data back as a digest."""
    found = content(doc)
    if "_attachments" in found:
        found["_attachments"] = sorted(found["_attachments"])
    return found


def content(doc: Document) -> Document:
    """Return the document without its revision."""
    return {key: value for key, value in doc.items() if key != "_rev"}
