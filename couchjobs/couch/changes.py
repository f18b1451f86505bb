"""The changes feed, by long poll, in pages, at the pace of the reader.

A page is asked for when the reader asks, and not before: a slow reader slows the feed, it does not fill memory, and
the rows of a document that changed meanwhile merge into one. A waiting request is watched by its heartbeat, at which
CouchDB also looks again for changes: one that comes just when a request begins to wait may go unnoticed until then
(once in some thousand requests, measured with 3.5). What the reader has not said to be done with comes again: after an
error, and where he asks once more. Whether the database is still the one that the position is of is found out after
each interruption, and, by its `instance_start_time` alone, once after the last rows: it may have been made anew between
two requests, and a feed that waits at the new one says nothing of that. Source: CouchDB docs, api/database/changes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from couchjobs.couch.database import Database, Document, Witness
from couchjobs.couch.identity import Known, instance_of, is_another_than
from couchjobs.couch.positions import current_sequence
from couchjobs.errors import (
    BadRequest,
    CouchError,
    Forbidden,
    NotFound,
    PositionRefused,
    Unauthorized,
    Unavailable,
    Unreadable,
)
from couchjobs.log import get_logger
from couchjobs.waits import LONGEST_OUTAGE_PAUSE_S, backoff

_logger = get_logger(__name__)
_LOUD_AFTER = 3
"""Failures in a row until one is a warning: a server that starts anew refuses once or twice."""
_LONGEST_WAIT_S = 120.0
"""Seconds after which a request that waits is sent anew, whatever signs of life it gives."""
_TOLD_AFTER = 5
"""Answers in a row that bring rows and no new position, until that is said."""
_SILENCE_S = 10.0
"""Seconds without a byte after which a waiting request is given up: ten heartbeats, more than a busy server takes."""
_REFUSED_FOR_S = 5.0
"""How long a position must be refused, while the feed is there otherwise, before it counts as meaning nothing."""
_AT_ONCE_S = 0.3
"""An empty or cut answer that took longer is how some proxies end a wait; one that came sooner is no wait at all."""
_WITNESSES = 16
"""Rows before a position that vouch for it: a copy may be older in some shards of a database alone."""
MAX_PAGE_BYTES = 16 * 1024 * 1024
"""Of one page, which is halved where it is larger: memory is this for each feed, not 1,000 of the largest documents."""
PAGE = 1000
"""Rows of a page, unless a reader asks for fewer."""


class Change(NamedTuple):
    """One row: the winning revision of a document, whether it is a deletion, and the document if asked for."""

    doc_id: str
    rev: str
    deleted: bool
    document: Document | None = None
    in_conflict: bool = False
    """Whether the document has other leaves, deleted ones perhaps."""


@dataclass(frozen=True, slots=True)
class Page:
    """The rows of one answer, at least one, and the sequence after them."""

    changes: list[Change]
    last_seq: str


class ChangesFollower:
    """Follows one database from `since`: "0" from the beginning, "now" from the first request on, or a sequence.

    Args:
        database: the database.
        since: where to begin.
        heartbeat_s: seconds between two signs of life of a request that waits.
        silence_s: seconds without one after which it is given up.
        limit: rows of a page.
        leaves: whether to tell which documents are in conflict.
        instance: the database's `instance_start_time`, where it is known.
        witnesses: documents and their revisions, of rows before `since`: see identity.
        purges: how many purges the database has seen, where that is known; who reads it may say later ones.
        in_any_case: whether it waits at the server however many feeds do.
    """

    def __init__(
        self,
        database: Database,
        since: str,
        *,
        heartbeat_s: float = 1.0,
        silence_s: float = _SILENCE_S,
        limit: int = PAGE,
        leaves: bool = False,
        instance: str = "",
        witnesses: Sequence[Witness] = (),
        purges: int = 0,
        in_any_case: bool = False,
    ) -> None:
        self._in_any_case = in_any_case
        self.database = database
        self.witnesses: deque[Witness] = deque(witnesses, _WITNESSES)
        self.purges = purges
        self.since = since
        self._heartbeat_s = heartbeat_s
        self._silence_s = max(silence_s, 3 * heartbeat_s)
        self._limit = limit
        self._leaves = leaves
        self._instance = instance
        self._shards = 0
        """Of the database; 0 where that is not known yet."""
        self._empty = 0
        self._looks = False
        """Whether the next request waits for nothing: the last one had nothing for long, or more than came in time."""
        self._standing = 0
        """How many pages have not moved on."""
        self._interrupted = False
        self._is_known = False
        """Whether the database has been found to be the same since the last rows came."""
        self._refused_since: float | None = None
        self.failures = 0
        """How many requests in a row have failed; 0 while the feed is well."""
        self._failing_since = 0.0

    def done(self, page: Page) -> None:
        """Take note that the rows of the page have been dealt with: they need not come again."""
        self.since = page.last_seq
        self.witnesses.extend(
            Witness(change.doc_id, change.rev, change.deleted, self.purges) for change in page.changes[-_WITNESSES:]
        )

    async def next_page(self, limit: int | None = None, *, documents: bool = False) -> Page:
        """Wait for changes and return them, at most `limit`. Reconnects for as long as it takes.

        `documents`: with their documents, unless those together are too large, or one of them cannot be read.

        Raises:
            NotFound: the database does not exist, or no longer.
            PositionRefused: the server cannot go on from `since`.
        """
        limit = limit or self._limit
        loop = asyncio.get_running_loop()
        while True:
            if self._interrupted:
                await self._look_whether_behind()
            began, was_well = loop.time(), not self._interrupted
            try:
                answer = await self._ask(limit, documents)
                page = _read_page(answer)
            except NotFound:
                self._is_known = False
                raise
            except Unreadable:
                if limit == 1 and not documents:
                    raise
                if not documents:
                    limit = max(1, limit // 4)
                documents = False
                continue
            except BadRequest as error:
                self._interrupted = True
                await self._pause(error)
                await self._doubt_position(error)
                continue
            except (CouchError, ValueError, KeyError, TypeError, IndexError) as error:
                self._interrupted = True
                is_late = isinstance(error, Unavailable) and not error.status and loop.time() - began > _AT_ONCE_S
                cut = was_well and is_late  # by a proxy that ends what waits, then, and not by an outage
                await (self._pause_empty(began) if cut else self._pause(error))
                continue
            self.failures, self._refused_since = 0, None
            if page.changes:
                self._empty, self._is_known = 0, False
                await self._pause_standing(page)
                return page
            await self._after_nothing(page, began)

    async def _after_nothing(self, page: Page, began: float) -> None:
        """Do what is to be done between an answer without rows and the next request."""
        if self.since == "now":
            self.since = page.last_seq
        if self._is_known:
            self._interrupted = True  # by the end of the database, perhaps
            await self._pause_empty(began)
        else:
            await self._look_whether_made_anew()

    async def _pause_empty(self, began: float) -> None:
        """Wait a little after an answer without rows, longer where they come at once, one after the other."""
        self._empty = 0 if asyncio.get_running_loop().time() - began > _AT_ONCE_S else self._empty + 1
        if self._empty:
            await asyncio.sleep(backoff(self._empty, first=0.02, longest=1.0))

    async def _pause_standing(self, page: Page) -> None:
        """Wait a little where the position of a page is the one before it: the same rows would come without end."""
        self._standing = self._standing + 1 if page.last_seq == self.since else 0
        if self._standing == _TOLD_AFTER:
            _logger.warning("the feed gives the same position again", database=self.database.name, since=self.since)
        if self._standing:
            await asyncio.sleep(backoff(self._standing, first=0.02, longest=1.0))

    async def _look_whether_behind(self) -> None:
        """Find out, after an interruption, whether the database is still the one that it was.

        Raises:
            PositionRefused: it was made anew, or is an older copy: it has seen fewer changes than this follower.
        """
        try:
            is_another = await is_another_than(self.database, Known(self.since, self._instance, [*self.witnesses]))
        except CouchError:
            return
        self._interrupted = False
        if is_another:
            raise PositionRefused(f"{self.database.name} is not what it was at {self.since[:40]!r}")

    async def _look_whether_made_anew(self) -> None:
        """Find out, after the last rows, whether the database has been made anew between two requests.

        Raises:
            NotFound: it does not exist.
            PositionRefused: it has.
        """
        try:
            found = instance_of(await self.database.info())
        except NotFound:
            raise
        except CouchError:
            self._interrupted = self._is_known = True  # it is found out later
            return
        self._is_known = True
        known, self._instance = self._instance, found
        if known and found != known:
            raise PositionRefused(f"{self.database.name} was made anew after {self.since[:40]!r}")

    async def _doubt_position(self, error: BadRequest) -> None:
        """Find out whether it is the position that the server refuses.

        Raises:
            PositionRefused: it is.
        """
        try:
            await current_sequence(self.database)
        except CouchError:
            self._refused_since = None
            return
        present = asyncio.get_running_loop().time()
        self._refused_since = self._refused_since or present
        if present - self._refused_since >= _REFUSED_FOR_S:
            self._refused_since = None
            raise PositionRefused(f"{self.database.name} has no position {self.since!r}: {error}", 400)

    async def _ask(self, limit: int, documents: bool) -> Any:
        """Return an answer, as soon as there are rows, or the server has ended a wait."""
        feeds = self.database.server.live_feeds
        if feeds is None or self._in_any_case:
            return await self._request(limit, documents, waits=True)
        if not self._shards:
            self._shards = shards_of(await self.database.info())
        while True:
            with feeds.place(self.database.name, self._shards) as waits:
                answer = await self._request(limit, documents, waits=waits)
            if waits or answer["results"] or not self._is_known:
                return answer
            self._is_known = not await feeds.changed(self.database.name)

    async def _request(self, limit: int, documents: bool, *, waits: bool) -> Any:
        params: dict[str, Any] = {"since": self.since, "limit": limit}
        waits, self._looks = waits and not self._looks, False
        if waits:
            params |= {"feed": "longpoll", "heartbeat" if self._is_known else "timeout": int(self._heartbeat_s * 1000)}
        if documents:
            params["include_docs"] = True
        if self._leaves:
            params["style"] = "all_docs"
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S if waits else None):
                return await self.database.server.request(
                    "GET",
                    f"{self.database.path}/_changes",
                    params=params,
                    silence_s=self._silence_s if waits else None,
                    max_answer=MAX_PAGE_BYTES,
                    has="results",
                )
        except TimeoutError:  # signs of life are no rows: what stands between may have lost sight of the feed
            self._looks = True
            return {"results": [], "last_seq": self.since}

    async def has_more(self) -> bool:
        """Return whether there are rows that have not been dealt with.

        Raises:
            CouchError: it is not known now.
        """
        params = {"since": self.since, "limit": 1}
        path = f"{self.database.path}/_changes"
        return bool((await self.database.server.request("GET", path, params=params, has="results"))["results"])

    @property
    def unanswered_s(self) -> float:
        """Return for how many seconds no request has been answered; 0 while the feed is well."""
        return time.monotonic() - self._failing_since if self.failures else 0.0

    async def _pause(self, error: Exception) -> None:
        if not self.failures:
            self._failing_since = time.monotonic()
        self.failures += 1
        pause = backoff(self.failures, longest=LONGEST_OUTAGE_PAUSE_S)
        loud = self.failures & (self.failures - 1) == 0 and (
            self.failures >= _LOUD_AFTER or isinstance(error, Unauthorized | Forbidden)
        )
        log = _logger.warning if loud else _logger.debug
        log(
            "feed interrupted",
            database=self.database.name,
            error=str(error),
            failures=self.failures,
            again_in_s=round(pause, 2),
        )
        await asyncio.sleep(pause)


def shards_of(info: Document) -> int:
    """Return how many shards a database has, by what it says of itself."""
    cluster = info.get("cluster")
    shards = cluster.get("q") if isinstance(cluster, dict) else None
    return shards if isinstance(shards, int) and shards > 0 else 1


def _read_page(answer: Any) -> Page:
    changes = [
        Change(
            row["id"],
            row["changes"][0]["rev"],
            bool(row.get("deleted")),
            row.get("doc"),
            len(row["changes"]) > 1,
        )
        for row in answer["results"]
    ]
    return Page(changes, str(answer["last_seq"]))


async def pages_since(
    database: Database, since: str, limit: int = 5000, *, leaves: bool = False
) -> AsyncIterator[Page]:
    """Yield the rows after a position, without documents and without waiting, until there are no more.

    `leaves`: tell which documents are in conflict.

    Raises:
        NotFound: the database does not exist.
        BadRequest: the server cannot use the position.
    """
    while True:
        params: dict[str, Any] = {"since": since, "limit": limit} | ({"style": "all_docs"} if leaves else {})
        page = _read_page(
            await database.server.request("GET", f"{database.path}/_changes", params=params, has="results")
        )
        if page.changes:
            yield page
        if len(page.changes) < limit:
            return
        since = page.last_seq
