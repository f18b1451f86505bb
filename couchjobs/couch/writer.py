"""Group commit: documents that wait while a request is out go together with the next one.

CouchDB pays per request and per commit, so all writes of a database pass through one writer. At rest a write leaves
after a few turns of the event loop, so that what follows from the same cause goes with it (the end of a job, and the
claim of the next one for its slot); under load batches grow by themselves. A second request goes out beside the first
only where many documents wait, for two small commits take longer than one. Documents are held for a moment where others
are about to come (`hold`), and a few where nobody would be idle meanwhile (`may_hold`). Each caller gets the answer of
his own row.

What an answer proves of each document is said by `answers`. A request that is refused as a whole may be refused for one
document that it holds (too large, something a firewall does not like) or for none of them (an outage, a proxy that
restarts, a password that was changed). A write of nothing tells: where the database does not take that either, nobody's
document was refused. Where it does, the request is halved, until the document that is refused stands alone. So is one
over which CouchDB itself stumbled, though some of it may be stored: a conflict of what is written again proves nothing.
An error in the row of a document is its own where others are stored.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass

from couchjobs.couch.answers import (
    WriteAnswer,
    Written,
    is_of_document,
    read_write_row,
    refuses_document,
    refuses_request,
)
from couchjobs.couch.codec import encode
from couchjobs.couch.database import Database, Document
from couchjobs.deadlines import Deadlines
from couchjobs.errors import CouchError, Forbidden, NotFound, Stumbled, Unauthorized, Unavailable, Unreachable

_MAX_ANSWER = 4_000_000
"""Bytes of one answer: 500 rows have some 50,000."""
_MANY = 200
"""Documents that go at once, and beside a request under way, rather than wait for more."""
_FEW = 20
_VERY_FEW = 5
"""So many documents are worth holding for others: fewer go at once, and a job at rest waits for nobody."""
_TURNS = 3
"""Turns of the loop for which a document waits for others that are submitted in the same moment."""
_TURNS_TO_FOLLOW = 6
"""Of the event loop, in which ends follow from claims that have been answered, and claims from a page of the feed."""
_LONGEST_HOLD_S = 0.02
"""For which documents are held so that others can go with them, whatever is under way."""
_MOST_APART = 1000
"""Documents that are remembered as to be sent alone, the newest."""
_MOST_HALVED = 64
"""Times that the parts of one request are halved that break off: seven of 500 documents need that. The rest waits."""


@dataclass(slots=True)
class _Waiting:
    doc_id: str
    body: bytes
    answer: asyncio.Future[WriteAnswer]


@dataclass(slots=True)
class _Halving:
    """What is known of a request that is written again in parts."""

    maybe_stored: bool = False
    """Whether it was broken off, with some of it stored perhaps."""
    times: int = 0


class GroupWriter:
    """The one writer of a database. Close it when done: what waits is still written."""

    def __init__(
        self, database: Database, *, max_docs: int = 500, max_bytes: int = 8_000_000, in_flight: int = 2
    ) -> None:
        self.database = database
        self._max_docs = max_docs
        self._max_bytes = max_bytes
        self._in_flight = in_flight
        self._waiting: deque[_Waiting] = deque()
        self._unsent: set[asyncio.Future[WriteAnswer]] = set()
        """The answers of those, but for what was withdrawn."""
        self._requests: set[asyncio.Task[None]] = set()
        self._woken = False
        self._loop: asyncio.AbstractEventLoop
        self._hold: asyncio.TimerHandle | None = None
        self._awaits_others = False
        self.newest = ""
        """The revision of a document that was written last."""
        self._stored_at = 0.0
        self._apart: dict[str, None] = {}
        """Documents over which CouchDB has stumbled, and that no other one is to be written with."""
        self._context = Context()
        """Of its tasks: whoever submits a document, a user's function perhaps, has no hold on the request."""
        self.deadlines = Deadlines()
        """Of those who wait for answers."""
        self.may_hold: Callable[[], bool] = lambda: False
        """Whether a few documents may wait for others, 20 ms at most beyond the request that is out."""

    def submit(self, doc: Document) -> asyncio.Future[WriteAnswer]:
        """Queue one document and return the future of its answer. The document needs an `_id`.

        Raises:
            BadRequest: the document is not JSON.
        """
        body = encode(doc)
        if not self._woken:
            self._wake(_TURNS)
        answer: asyncio.Future[WriteAnswer] = self._loop.create_future()
        self._waiting.append(_Waiting(doc["_id"], body, answer))
        self._unsent.add(answer)
        return answer

    def withdraw(self, answer: asyncio.Future[WriteAnswer]) -> bool:
        """Have the document never be sent whose answer this is; return whether that is so: it may be out already."""
        found = answer in self._unsent
        self._unsent.discard(answer)
        return found

    async def write(self, doc: Document) -> WriteAnswer:
        """Write one document and return its answer.

        Raises:
            NotFound: the database does not exist.
        """
        return await self.submit(doc)

    def hold(self) -> None:
        """Have documents wait for others that are about to come, until `release`, or for 20 ms; not where many wait."""
        self._awaits_others = True

    def release(self) -> None:
        """Send what waits, and what follows from what the caller has done just now."""
        self._awaits_others = False
        if not self._woken:
            self._wake(_TURNS_TO_FOLLOW)

    async def answered(self, timeout: float) -> None:
        """Return once what is out, or about to be sent, has been answered: after `timeout` seconds at the latest."""
        for _ in range(_TURNS_TO_FOLLOW + 1):
            if self._woken and not self._requests:
                await asyncio.sleep(0)
        if self._requests:
            await asyncio.wait([*self._requests], timeout=timeout)

    async def close(self) -> None:
        """Wait until everything that was submitted has its answer."""
        self.may_hold = lambda: False
        self._awaits_others = False
        self._send()
        while self._requests or self._waiting:
            await asyncio.sleep(0)
            await asyncio.gather(*self._requests)

    def _wake(self, turns: int) -> None:
        self._loop = asyncio.get_running_loop()  # asking for it takes as long as all the rest of a submit
        self._woken = True
        self._loop.call_soon(self._send_after, turns, context=self._context)

    def _send_after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._send_after, turns - 1)
        else:
            self._woken = False
            self._send_or_hold()

    def _send_or_hold(self) -> None:
        if not self._is_held():
            self._send()
        elif self._hold is None:
            self._hold = asyncio.get_running_loop().call_later(_LONGEST_HOLD_S, self._send)

    def _is_held(self) -> bool:
        waiting = len(self._waiting)
        return (self._awaits_others and _VERY_FEW <= waiting < _MANY) or (0 < waiting < _FEW and self.may_hold())

    def _send(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold, self._awaits_others = None, False
        while self._waiting and len(self._requests) < (self._in_flight if len(self._waiting) >= _MANY else 1):
            if not (batch := self._next_batch()):
                continue
            writing = self._write_batch(batch)
            context = self._context.copy()  # a task that is eager enters it at once, and this may run in it
            request = asyncio.create_task(writing, name=f"write {self.database.name}", context=context)
            self._requests.add(request)
            request.add_done_callback(self._request_ended, context=self._context)

    def _request_ended(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        if len(self._waiting) >= _MANY:
            self._send()
        elif self._waiting and not self._woken:
            self._wake(_TURNS_TO_FOLLOW)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < self._max_docs:
            size += len(self._waiting[0].body)
            if batch and (size > self._max_bytes or (self._apart and self._waiting[0].doc_id in self._apart)):
                break
            one = self._waiting.popleft()
            if one.answer not in self._unsent:
                size -= len(one.body)
                continue
            self._unsent.discard(one.answer)
            batch.append(one)
            if self._apart and batch[0].doc_id in self._apart:
                break
        return batch

    async def _write_batch(self, batch: list[_Waiting], halving: _Halving | None = None) -> None:
        """Write documents and answer them. `halving`: that of the request that they are a part of."""
        halving = halving or _Halving()
        try:
            self.database.server.traffic.written.note(len(batch))
            rows = await self._post(b",".join(waiting.body for waiting in batch))
            if halving.maybe_stored:
                rows = [_without_conflict(row) for row in rows]
            if self._apart and len(batch) == 1:
                self._apart.pop(batch[0].doc_id, None)
            if newest := _newest_of(rows):
                self.newest, self._stored_at = newest, time.monotonic()
            _answer_by_row(batch, rows, self._stored_at, others_are_stored=bool(newest))
        except NotFound as error:
            if halving.maybe_stored:
                _answer_all(batch, _nothing_known(error))
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(NotFound(str(error), 404))
        except CouchError as error:
            await self._answer_refused(batch, error, halving)
        except BaseException:
            _answer_all(batch, WriteAnswer(Written.UNKNOWN, reason="the writer was stopped"))
            raise

    async def _post(self, bodies: bytes) -> list[object]:
        rows: list[object] = await self.database.server.request(
            "POST",
            f"{self.database.path}/_bulk_docs",
            body=b'{"docs":[' + bodies + b"]}",
            max_answer=_MAX_ANSWER,
            has=list,
        )
        return rows

    async def _answer_refused(self, batch: list[_Waiting], error: CouchError, halving: _Halving) -> None:
        """Answer the documents of a request that got an error, or write them again in halves."""
        has_stumbled = isinstance(error, Stumbled)
        if not (has_stumbled or refuses_request(error)):
            answer = _nothing_known(error)
        elif len(batch) == 1 and has_stumbled:
            self._keep_apart(batch[0].doc_id)
            answer = WriteAnswer(Written.UNKNOWN, reason=str(error), own_error=True, others_stored_at=self._stored_at)
        elif len(batch) == 1 and refuses_document(error, batch[0].doc_id):
            answer = WriteAnswer(Written.REFUSED, reason=str(error))
        elif not await self._takes_anything():
            answer = _nothing_known(error)
        elif len(batch) == 1:
            answer = WriteAnswer(Written.UNKNOWN, reason=str(error), alone=True)
        elif halving.times >= _MOST_HALVED and has_stumbled:
            answer = WriteAnswer(Written.UNKNOWN, reason=str(error), unasked=True)
        else:
            halving.times += has_stumbled
            halving.maybe_stored |= has_stumbled
            await self._write_batch(batch[: len(batch) // 2], halving)
            await self._write_batch(batch[len(batch) // 2 :], halving)
            return
        _answer_all(batch, answer._replace(unsent=answer.unsent and not halving.maybe_stored))

    def _keep_apart(self, doc_id: str) -> None:
        if len(self._apart) >= _MOST_APART:
            del self._apart[next(iter(self._apart))]
        self._apart[doc_id] = None

    async def _takes_anything(self) -> bool:
        """Return whether the database takes a write now: one of no documents."""
        try:
            await self._post(b"")
        except CouchError:
            return False
        return True


def _nothing_known(error: CouchError) -> WriteAnswer:
    unsent = isinstance(error, Unreachable | Unauthorized | Forbidden) or error.status == 429
    after = error.retry_after_s if isinstance(error, Unavailable) else 0.0
    return WriteAnswer(Written.UNKNOWN, reason=str(error), unsent=unsent, retry_after_s=after)


def _without_conflict(row: object) -> object:
    """Return the row of a document that is perhaps stored already: a conflict of it may be one with that."""
    if isinstance(row, dict) and row.get("error") == "conflict":
        return {"id": row.get("id"), "error": "error", "reason": "a conflict, perhaps with an earlier attempt"}
    return row


def _newest_of(rows: list[object]) -> str:
    """Return a revision that was written; empty where none was, or it is not told."""
    return next((rev for row in reversed(rows) if isinstance(row, dict) and isinstance(rev := row.get("rev"), str)), "")


def _answer_by_row(batch: list[_Waiting], rows: list[object], stored_at: float, *, others_are_stored: bool) -> None:
    """Answer each document by its row: nearly always that in its place."""
    if len(rows) == len(batch) and all(_is_of(row, waiting) for row, waiting in zip(rows, batch, strict=True)):
        for row, waiting in zip(rows, batch, strict=True):
            _answer(waiting.answer, row, stored_at, others_are_stored=others_are_stored)
        return
    by_id: defaultdict[str, deque[asyncio.Future[WriteAnswer]]] = defaultdict(deque)
    for waiting in batch:
        by_id[waiting.doc_id].append(waiting.answer)
    for row in rows:
        futures = by_id.get(str(row.get("id"))) if isinstance(row, dict) else None
        if futures:
            _answer(futures.popleft(), row, stored_at, others_are_stored=others_are_stored)
    _answer_all(batch, WriteAnswer(Written.UNKNOWN, reason="the answer has no row for the document"))


def _answer(future: asyncio.Future[WriteAnswer], row: object, stored_at: float, *, others_are_stored: bool) -> None:
    if future.done():
        return
    answer = read_write_row(row)
    if answer.written is Written.UNKNOWN and is_of_document(row):
        answer = answer._replace(own_error=True, others_stored_at=stored_at, alone=others_are_stored)
    future.set_result(answer)


def _is_of(row: object, waiting: _Waiting) -> bool:
    return isinstance(row, dict) and row.get("id") == waiting.doc_id


def _answer_all(batch: list[_Waiting], answer: WriteAnswer) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_result(answer)
