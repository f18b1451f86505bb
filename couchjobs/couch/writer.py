"""Group commit: documents that wait while a request is out go together with the next one.

CouchDB pays per request and per commit, so all writes of a database pass through one writer. At rest a write leaves
after a few turns of the event loop, so that what follows from the same cause goes with it (the end of a job, and the
claim of the next one for its slot); under load batches grow by themselves. A second request goes out beside the first
only where many documents wait, for two small commits take longer than one. A few documents are held for a moment where
nobody would be idle meanwhile (`may_hold`). Each caller gets the answer of his own row.

What can go wrong, and what the caller is told:
- the row says conflict, or that the document is refused: CONFLICT, FORBIDDEN;
- the row says "accepted" (a cluster: stored at too few copies, may lose to another branch): ACCEPTED;
- no answer, half of one, or an error of the server: UNKNOWN, for the write may have happened all the same;
- the request as a whole is refused: it is halved until the document that does not fit stands alone: FORBIDDEN.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import orjson

from couchjobs.couch.database import Database, Document
from couchjobs.errors import BadRequest, CouchError, Forbidden, NotFound, TooLarge, Unauthorized, Unavailable

_MAX_ANSWER = 4_000_000
_MANY = 200
_FEW = 20
_TURNS = 3
_LONGEST_HOLD_S = 0.02


class Written(Enum):
    """What became of a document that was written."""

    OK = "ok"
    ACCEPTED = "accepted"
    CONFLICT = "conflict"
    FORBIDDEN = "forbidden"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class WriteAnswer:
    """The answer for one document: its new revision where it was stored, the reason where it was not."""

    written: Written
    rev: str = ""
    reason: str = ""
    whole: bool = False
    """Whether it was the request that was refused, for the user's sake, and not this document."""

    @property
    def stored(self) -> bool:
        """Return whether the document is in the database, on the winning branch or on another."""
        return self.written in (Written.OK, Written.ACCEPTED)


@dataclass(slots=True)
class _Waiting:
    doc_id: str
    body: bytes
    answer: asyncio.Future[WriteAnswer]


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
        self._requests: set[asyncio.Task[None]] = set()
        self._woken = False
        self._hold: asyncio.TimerHandle | None = None
        self.may_hold: Callable[[], bool] = lambda: False
        """Whether a few documents may wait for others, 20 ms at most beyond the request that is out."""

    def submit(self, doc: Document) -> asyncio.Future[WriteAnswer]:
        """Queue one document and return the future of its answer. The document needs an `_id`.

        Raises:
            BadRequest: the document is not JSON.
        """
        body = _encode(doc)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[WriteAnswer] = loop.create_future()
        self._waiting.append(_Waiting(doc["_id"], body, answer))
        if not self._woken:
            self._woken = True
            loop.call_soon(self._send_after, _TURNS)
        return answer

    async def write(self, doc: Document) -> WriteAnswer:
        """Write one document and return its answer.

        Raises:
            NotFound: the database does not exist.
        """
        return await self.submit(doc)

    async def answered(self, timeout: float) -> None:
        """Return as soon as the requests that are out now have been answered, after `timeout` seconds at the latest."""
        if self._requests:
            await asyncio.wait([*self._requests], timeout=timeout)

    async def close(self) -> None:
        """Wait until everything that was submitted has its answer."""
        self.may_hold = lambda: False
        self._send()
        while self._requests or self._waiting:
            await asyncio.sleep(0)
            await asyncio.gather(*self._requests)

    def _send_after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._send_after, turns - 1)
        else:
            self._woken = False
            self._send_or_hold()

    def _send_or_hold(self) -> None:
        if len(self._waiting) >= _FEW or not self.may_hold():
            self._send()
        elif self._waiting and self._hold is None:
            self._hold = asyncio.get_running_loop().call_later(_LONGEST_HOLD_S, self._send)

    def _send(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        while self._waiting and len(self._requests) < (self._in_flight if len(self._waiting) >= _MANY else 1):
            request = asyncio.create_task(self._write_batch(self._next_batch()), name=f"write {self.database.name}")
            self._requests.add(request)
            request.add_done_callback(self._request_ended)

    def _request_ended(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        self._send_or_hold()

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < self._max_docs:
            size += len(self._waiting[0].body)
            if batch and size > self._max_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _write_batch(self, batch: list[_Waiting]) -> None:
        body = b'{"docs":[' + b",".join(waiting.body for waiting in batch) + b"]}"
        try:
            rows = await self.database.server.request(
                "POST", f"{self.database.path}/_bulk_docs", body=body, max_answer=_MAX_ANSWER
            )
            _answer_by_row(batch, rows)
        except NotFound as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(NotFound(str(error), 404))
        except (BadRequest, TooLarge) as error:
            if not error.status:  # it is the answer that is too large: the write may have happened
                _answer_all(batch, Written.UNKNOWN, str(error))
            elif len(batch) > 1:
                half = len(batch) // 2
                await self._write_batch(batch[:half])
                await self._write_batch(batch[half:])
            else:
                _answer_all(batch, Written.FORBIDDEN, str(error))
        except (Unauthorized, Forbidden) as error:
            _answer_all(batch, Written.FORBIDDEN, str(error), whole=True)
        except (Unavailable, CouchError) as error:
            _answer_all(batch, Written.UNKNOWN, str(error))
        except BaseException:
            _answer_all(batch, Written.UNKNOWN, "the writer was stopped")
            raise


def _encode(doc: Document) -> bytes:
    try:
        return orjson.dumps(doc)
    except TypeError as error:  # orjson reads deeper nesting than it writes
        try:
            return json.dumps(doc).encode()
        except (TypeError, ValueError, RecursionError):
            raise BadRequest(f"document {doc.get('_id')!r} is not JSON: {error}") from error


_REFUSALS = {
    "forbidden",
    "unauthorized",
    "doc_validation",
    "bad_request",
    "illegal_docid",
    "document_too_large",
    "too_large",
}


def _answer_by_row(batch: list[_Waiting], rows: list[dict[str, object]]) -> None:
    by_id: defaultdict[str, deque[asyncio.Future[WriteAnswer]]] = defaultdict(deque)
    for waiting in batch:
        by_id[waiting.doc_id].append(waiting.answer)
    for row in rows:
        futures = by_id.get(str(row.get("id")))
        if futures:
            answer = futures.popleft()
            if not answer.done():
                answer.set_result(_read_row(row))
    _answer_all(batch, Written.UNKNOWN, "the answer has no row for the document")


def _read_row(row: dict[str, object]) -> WriteAnswer:
    if row.get("ok") is True or ("rev" in row and "error" not in row):
        written = Written.ACCEPTED if row.get("accepted") else Written.OK
        return WriteAnswer(written, rev=str(row["rev"]))
    reason = f"{row.get('error')}: {row.get('reason')}"
    if row.get("error") == "conflict":
        return WriteAnswer(Written.CONFLICT, reason=reason)
    return WriteAnswer(Written.FORBIDDEN if row.get("error") in _REFUSALS else Written.UNKNOWN, reason=reason)


def _answer_all(batch: list[_Waiting], written: Written, reason: str, *, whole: bool = False) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_result(WriteAnswer(written, reason=reason, whole=whole))
