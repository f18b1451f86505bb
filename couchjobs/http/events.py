"""`GET /events`: what becomes of jobs, as it happens, to any number of readers (server-sent events).

One feed of each lane serves all readers, and is followed while there are some. Each event is encoded once. A reader
that does not keep up is dropped: it comes back with the `Last-Event-ID` of the last event that it has seen, and is told
what came since.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from couchjobs.couch.changes import Change, ChangesFollower, pages_since
from couchjobs.couch.codec import encode
from couchjobs.couch.database import Database, Document
from couchjobs.couch.positions import current_sequence
from couchjobs.errors import BadRequest, NotFound, PositionRefused
from couchjobs.http.access import CALLER, Caller
from couchjobs.http.api import API, Api
from couchjobs.http.jsonapi import refuse_parameter
from couchjobs.http.limits import LIMITS
from couchjobs.http.streams import BEAT, BEAT_S, Readers, Stay, begin, stream, with_beats
from couchjobs.jobs.lanes import stores
from couchjobs.jobs.request import JobRequest
from couchjobs.supervisor import Supervisor
from couchjobs.waits import Signal

_MOST_BEHIND = 5000
"""Events that wait for a reader, who share them; one for whom more wait is dropped."""
_PAGE = 1000
_TOGETHER = 50
"""Documents that are in memory at once for a reader who comes back."""
_PAUSE_A_READER_S = 0.0005
"""Between two pages, for each reader: what becomes of a job meanwhile is one event, and jobs go before readers."""
_FEW = 20
"""Rows of a page up to which the next one is asked for at once."""
_BUSY_PAUSE_S = 0.3
"""Else: each row costs CouchDB what a job costs it, and three states of a job that nobody asks about are one."""
_LONGEST_PAUSE_S = 0.5
_LOOK_AGAIN_S = 1.0
_SHOWN = ("worker", "state", "queued_at", "started_at", "finished_at", "error", "exec_count", "trigger_id", "progress")
_TOLD = ("cancelled", "cancel_requested", "scheduled_at", "seconds")

Positions = dict[str, str]
"""By lane, how far a reader has been told."""


class Event(NamedTuple):
    """One that is ready to be sent."""

    worker: str
    lane: str
    seq: str
    text: bytes
    """Its lines but for the id."""


class _Reader:
    def __init__(self, caller: Caller, worker: str | None, transport: asyncio.Transport | None = None) -> None:
        self.waiting: deque[Event] = deque()
        self.news = Signal()
        self.is_dropped = False
        self._transport = transport
        self._wants_all = worker is None and caller.may("GET", "jobs")
        self._caller = caller
        self._worker = worker
        self._may: dict[str, bool] = {}

    def wants(self, worker: str) -> bool:
        """Return whether the reader wants to be told of that worker's jobs, and may be."""
        if self._worker not in (None, worker):
            return False
        if worker not in self._may:
            self._may[worker] = self._caller.may("GET", "jobs", JobRequest(worker_type=worker))
        return self._may[worker]

    def tell(self, events: Sequence[Event]) -> None:
        """Have the events sent, or drop the reader: he may have stopped to read, and nothing would end the sending."""
        if self.is_dropped:
            return
        self.waiting.extend(events if self._wants_all else [one for one in events if self.wants(one.worker)])
        if len(self.waiting) > _MOST_BEHIND:
            self.is_dropped = True
            if self._transport is not None:
                self._transport.abort()
        elif self.waiting:
            self.news.set()

    def take(self) -> list[Event]:
        """Remove and return what is to be sent."""
        some = [*self.waiting]
        self.waiting.clear()
        return some


class Events:
    """Those of one server: `close` when done."""

    def __init__(self) -> None:
        self._readers = Readers[_Reader]()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """GET /events: of all workers, or of `worker`."""
        api, worker = request.app[API], request.query.get("worker")
        if worker is not None or not request[CALLER].workers("GET"):
            request[CALLER].check("GET", "jobs", JobRequest(worker_type=worker) if worker else None)
        present = {lane.name: await current_sequence(lane) for lane in _lanes(api)}
        positions = _positions(request.headers.get("Last-Event-ID"), present)
        reader = _Reader(request[CALLER], worker, request.transport)
        response = stream()
        joined = self._readers.joined_by(reader, partial(self._begin, api, present))  # what comes from now on waits
        with joined, suppress(ConnectionError):
            await begin(response, request)
            stay = Stay(request)
            async with aclosing(with_beats(self._before(request, positions, reader))) as told:
                async for events in told:
                    if reader.is_dropped or not await stay.lasts():
                        return response
                    await response.write(BEAT if events is None else _lines(events, positions))
            await self._send(response, reader, positions, stay)
        return response

    async def close(self) -> None:
        """Follow nothing more."""
        await self._readers.close()

    def _begin(self, api: Api, present: Positions, tasks: Supervisor) -> None:
        for lane, seq in present.items():
            tasks.start("follow jobs for readers", partial(self._follow, api, lane, seq))

    async def _follow(self, api: Api, lane: str, since: str) -> None:
        """Tell all readers what happens."""
        database = api.connection.database(lane)
        follower = ChangesFollower(database, since)
        while True:
            try:
                page = await follower.next_page(documents=True)
            except (NotFound, PositionRefused):
                await asyncio.sleep(_LOOK_AGAIN_S)
                follower = ChangesFollower(database, await current_sequence(database))
                continue
            events = _events(page.changes, lane, page.last_seq)
            for reader in [*self._readers.present]:
                reader.tell(events)
            follower.done(page)
            pause_s = _BUSY_PAUSE_S if len(page.changes) > _FEW else _PAUSE_A_READER_S * len(self._readers.present)
            await asyncio.sleep(min(_LONGEST_PAUSE_S, pause_s))

    @staticmethod
    async def _before(request: web.Request, positions: Positions, reader: _Reader) -> AsyncGenerator[list[Event]]:
        """Yield what has happened since then, page by page."""
        api, limits = request.app[API], request.app[LIMITS]
        for lane, seq in [*positions.items()]:
            database = api.connection.database(lane)
            try:
                async for page in pages_since(database, seq, _PAGE):
                    events: list[Event] = []
                    async with limits.past:
                        if request.transport is None:
                            return  # he has gone while he waited
                        for first in range(0, len(page.changes), _TOGETHER):
                            some = page.changes[first : first + _TOGETHER]
                            documents = await database.get_many(one.doc_id for one in some if not one.deleted)
                            rows = [one._replace(document=documents.get(one.doc_id)) for one in some]
                            events += _events(rows, lane, page.last_seq)
                    yield [event for event in events if reader.wants(event.worker)]
                    positions[lane] = page.last_seq
            except BadRequest:
                positions[lane] = await current_sequence(database)

    async def _send(self, response: web.StreamResponse, reader: _Reader, positions: Positions, stay: Stay) -> None:
        while self._readers.is_open and not reader.is_dropped and await stay.lasts():
            if some := reader.take():
                await response.write(_lines(some, positions))
            elif not await reader.news.within(BEAT_S):
                await response.write(BEAT)


def _lanes(api: Api) -> list[Database]:
    return [store.database for store in stores(api.connection, api.db)]


def _positions(last: str | None, present: Positions) -> Positions:
    """Return where a reader goes on: where he was, or now."""
    if last is None:
        return {**present}
    try:
        told = orjson.loads(base64.urlsafe_b64decode(last))
    except (ValueError, binascii.Error):
        told = None
    if not isinstance(told, dict):
        refuse_parameter("Last-Event-ID", "it is no id of an event of this server")
    return {lane: str(told.get(lane, seq)) for lane, seq in present.items()}


def _events(changes: Iterable[Change], lane: str, seq: str) -> list[Event]:
    """Return what rows tell; of a page, each event has the position after all of it but is told in order."""
    found = []
    for change in changes:
        document = change.document
        if change.deleted or document is None or not isinstance(document.get("worker"), str):
            continue
        found.append(Event(document["worker"], lane, seq, b"event: job\ndata: " + encode(_shown(document)) + b"\n\n"))
    return found


def _shown(document: Document) -> dict[str, Any]:
    kept = {name: document[name] for name in (*_SHOWN, *_TOLD) if document.get(name) is not None}
    return {"id": document["_id"], "rev": document.get("_rev", ""), **kept}


def _lines(events: Iterable[Event], positions: Positions) -> bytes:
    """Return what is sent of whole pages: the id comes with the last event, for only then all of a page are told."""
    text = bytearray()
    for event in events:
        text += event.text
        positions[event.lane] = event.seq
    if text:
        text[-1:] = b"id: " + base64.urlsafe_b64encode(orjson.dumps(positions)) + b"\n\n"
    return bytes(text)
