"""`GET /dashboard/changes`: that jobs have changed, for pages that then look again; their documents are not read.

That is much less than `/events` tells, and costs CouchDB a fraction: the feed is read without documents, a second apart
where much happens. A reader is told ids, as long as they are few, and where he may see all jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from aiohttp import web

from couchjobs.couch.changes import PAGE, ChangesFollower
from couchjobs.couch.codec import encode
from couchjobs.couch.database import Database
from couchjobs.couch.positions import current_sequence
from couchjobs.errors import NotFound, PositionRefused
from couchjobs.http.access import CALLER
from couchjobs.http.api import API, Api
from couchjobs.http.streams import BEAT, BEAT_S, Readers, Stay, begin, stream
from couchjobs.jobs.lanes import stores
from couchjobs.supervisor import Supervisor
from couchjobs.waits import Signal

_FEW = 20
"""Ids that are told; of more, that there are many."""
_BUSY_PAUSE_S = 1.0
_LOOK_AGAIN_S = 1.0


class _Reader:
    def __init__(self, *, sees_ids: bool) -> None:
        self.news = Signal()
        self._ids: dict[str, None] = {}
        self._are_many = not sees_ids
        self._sees_ids = sees_ids

    def tell(self, ids: Iterable[str]) -> None:
        """Take note that these jobs have changed."""
        if not self._are_many:
            self._ids |= dict.fromkeys(ids)
            self._are_many = len(self._ids) > _FEW
        self.news.set()

    def take(self) -> bytes:
        """Return what is to be sent, and forget it."""
        told = None if self._are_many else [*self._ids]
        self._ids.clear()
        self._are_many = not self._sees_ids
        return b"event: changed\ndata: " + encode({"ids": told}) + b"\n\n"


class Changes:
    """Those of one server: `close` when done."""

    def __init__(self) -> None:
        self._readers = Readers[_Reader]()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """GET /dashboard/changes: until the reader goes."""
        reader = _Reader(sees_ids=request[CALLER].may("GET", "jobs"))
        response = stream()
        joined = self._readers.joined_by(reader, partial(self._begin, request.app[API]))
        with joined, suppress(ConnectionError):
            await begin(response, request)
            stay = Stay(request)
            while self._readers.is_open and await stay.lasts():
                changed = await reader.news.within(BEAT_S)
                await response.write(reader.take() if changed else BEAT)
        return response

    async def close(self) -> None:
        """Follow nothing more."""
        await self._readers.close()

    def _begin(self, api: Api, tasks: Supervisor) -> None:
        for store in stores(api.connection, api.db):
            tasks.start("follow jobs for pages", partial(self._follow, store.database))

    async def _follow(self, database: Database) -> None:
        follower: ChangesFollower | None = None
        while True:
            try:
                if follower is None:
                    follower = ChangesFollower(database, await current_sequence(database))
                page = await follower.next_page(PAGE)
            except (NotFound, PositionRefused):
                await asyncio.sleep(_LOOK_AGAIN_S)
                follower = None
                continue
            ids = [change.doc_id for change in page.changes]
            for reader in [*self._readers.present]:
                reader.tell(ids)
            follower.done(page)
            if len(ids) == PAGE:  # further behind than a page: what is now is what counts
                follower = None
            if len(ids) > _FEW:
                await asyncio.sleep(_BUSY_PAUSE_S)
