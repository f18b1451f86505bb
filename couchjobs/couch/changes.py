"""The changes feed, by long poll, in pages, at the pace of the reader.

A page is asked for when the reader asks, and not before: a slow reader slows the feed, it does not fill memory, and
the rows of a document that changed meanwhile merge into one. A waiting request is watched by its heartbeat, at which
CouchDB also looks again for changes: one that comes just when a request begins to wait may go unnoticed until then
(once in some thousand requests, measured with 3.5). After an error the feed goes on from the last sequence that was
handed out, so that nothing is left out and some rows may come again. Source: CouchDB docs, api/database/changes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from couchjobs.couch.database import Database
from couchjobs.errors import CouchError, Forbidden, NotFound, TooLarge, Unauthorized, Unreadable
from couchjobs.log import get_logger
from couchjobs.supervisor import backoff

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_LOUD_AFTER = 3
MAX_PAGE_BYTES = 16 * 1024 * 1024


class Change(NamedTuple):
    """One row: the winning revision of a document, whether it is a deletion, and the document if asked for."""

    doc_id: str
    rev: str
    deleted: bool
    document: Document | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """The rows of one answer, at least one, and the sequence after them."""

    changes: list[Change]
    last_seq: str


class ChangesFollower:
    """Follows one database from `since`: "0" from the beginning, "now" from the first request on, or a sequence."""

    def __init__(
        self, database: Database, since: str, *, heartbeat_s: float = 1.0, silence_s: float = 30.0, limit: int = 1000
    ) -> None:
        self.database = database
        self.since = since
        self._heartbeat_s = heartbeat_s
        self._silence_s = max(silence_s, 3 * heartbeat_s)
        self._limit = limit
        self.failures = 0
        """How many requests in a row have failed; 0 while the feed is well."""

    async def next_page(self, limit: int | None = None, *, documents: bool = False) -> Page:
        """Wait for changes and return them, at most `limit`. Reconnects for as long as it takes.

        `documents`: with their documents, unless those together are too large, or one of them cannot be read.

        Raises:
            NotFound: the database does not exist, or no longer.
        """
        limit = limit or self._limit
        while True:
            try:
                answer = await self._ask(limit, documents)
                page = _read_page(answer)
            except NotFound:
                raise
            except (TooLarge, Unreadable):
                if limit == 1 and not documents:
                    raise
                if not documents:
                    limit = max(1, limit // 4)
                documents = False
                continue
            except (CouchError, ValueError, KeyError, TypeError) as error:
                await self._pause(error)
                continue
            self.failures = 0
            self.since = page.last_seq
            if page.changes:
                return page

    async def _ask(self, limit: int, documents: bool) -> Any:
        params: dict[str, Any] = {
            "feed": "longpoll",
            "since": self.since,
            "limit": limit,
            "heartbeat": int(self._heartbeat_s * 1000),
        }
        if documents:
            params["include_docs"] = True
        return await self.database.server.request(
            "GET",
            f"{self.database.path}/_changes",
            params=params,
            silence_s=self._silence_s,
            max_answer=MAX_PAGE_BYTES,
        )

    async def _pause(self, error: Exception) -> None:
        self.failures += 1
        pause = backoff(self.failures)
        loud = self.failures >= _LOUD_AFTER or isinstance(error, Unauthorized | Forbidden)
        log = _logger.warning if loud else _logger.debug
        log(
            "feed interrupted",
            database=self.database.name,
            error=str(error),
            failures=self.failures,
            again_in_s=round(pause, 2),
        )
        await asyncio.sleep(pause)


def _read_page(answer: Any) -> Page:
    changes = [
        Change(row["id"], row["changes"][0]["rev"], bool(row.get("deleted")), row.get("doc"))
        for row in answer["results"]
    ]
    return Page(changes, str(answer["last_seq"]))


async def current_sequence(database: Database) -> str:
    """Return the sequence of the database's present state: a feed from there shows what comes later.

    Raises:
        NotFound: the database does not exist.
    """
    answer = await database.server.request("GET", f"{database.path}/_changes", params={"since": "now", "limit": 1})
    return str(answer["last_seq"])
