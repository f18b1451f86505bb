"""Which databases of a server change: a hint, for who cannot keep a feed of each.

CouchDB tells in `_db_updates`, half a second later (to administrators, where the server has a `_global_changes`
database). Elsewhere the databases are asked what their last sequence is, slowly, for that costs a server much: a round
of `_dbs_info` over 1,000 takes a second of its time. Source: CouchDB docs, api/server/common.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from couchjobs.couch.client import CouchServer
from couchjobs.errors import BadRequest, CouchError, Unavailable
from couchjobs.log import get_logger
from couchjobs.waits import LONGEST_OUTAGE_PAUSE_S, backoff

_logger = get_logger(__name__)
_TOGETHER_S = 0.05
"""Seconds in which further changes are told together."""
_AT_ONCE_S = 0.5
"""Seconds within which an answer has not waited for anything."""
_LONGEST_PAUSE_S = 5.0
"""Seconds between two answers that have not waited, and tell the same."""
_SILENCE_S = 10.0
"""Seconds without a byte after which a waiting request is given up: ten signs of life."""
_REST = 9.0
"""Times as long as a round took is the pause after it: a tenth of one core of the server at most."""
_LEAST_PAUSE_S = 2.0
"""Seconds between two rounds at least: of 1,000 databases one takes a second."""
_FIRST_ASK_AGAIN_S = 20.0
"""Seconds after which a server that did not tell is asked again whether it does, doubled each time: it may start."""
_ASK_AGAIN_S = 600.0
"""The longest of those times."""
_UNTOLD_S = 10.0
"""Seconds for which it may fail to tell until the databases are asked: a restart of CouchDB takes less, and the first
answer after it tells of all that has changed since the last one."""
_UNTOLD_NOW = "CouchDB does not tell now which databases change, and they are asked in turn"
_NEVER_TOLD = (
    "CouchDB does not tell which databases change, and they are asked in turn, which takes minutes where they are "
    "many: make the database _global_changes, and be an administrator"
)


class DatabaseUpdates:
    """Those of one server.

    Args:
        server: the server.
        names: what returns the databases of interest, for where the server does not tell of all.
        heartbeat_s: seconds between two signs of life of a request that waits.
    """

    def __init__(self, server: CouchServer, names: Callable[[], Iterable[str]], heartbeat_s: float = 1.0) -> None:
        self._server = server
        self._names = names
        self._heartbeat_s = heartbeat_s
        self._sequences: dict[str, object] = {}
        self._ask_at = 0.0
        """When the databases may be asked next, by the clock of the loop."""
        self._untold = 0
        """Times in a row that it was found not to tell."""
        self.are_told = False
        """Whether the server tells."""

    async def follow(self) -> AsyncIterator[set[str]]:
        """Yield the names of databases that have changed, again and again; none where `are_told` has. It never ends."""
        while True:
            try:
                async for names in self._told():
                    yield names
            except CouchError as error:
                self._note_untold(_NEVER_TOLD, error)
            loop = asyncio.get_running_loop()
            self._untold += 1
            until = loop.time() + backoff(self._untold, first=_FIRST_ASK_AGAIN_S, longest=_ASK_AGAIN_S)
            while loop.time() < until:
                yield await self._changed_since_asked()
                await asyncio.sleep(max(0.0, self._ask_at - loop.time()))

    def _note_untold(self, what: str, error: CouchError) -> None:
        if self.are_told or not self._sequences:
            _logger.warning(what, reason=str(error))
        self.are_told = False

    async def _told(self) -> AsyncIterator[set[str]]:
        """Yield what the server tells, and what the databases do while it does not.

        Raises:
            CouchError: it never does, for this user.
        """
        loop = asyncio.get_running_loop()
        since, failures, standing, failing_since, was_refused = "now", 0, 0, 0.0, False
        while True:
            began = loop.time()
            try:
                answer = await self._ask_what_changed(since)
            except Unavailable as error:
                failures += 1
                failing_since = failing_since if failures > 1 else began
                if failures & (failures - 1) == 0:
                    _logger.info("which databases change is not to be had now", reason=str(error))
                if loop.time() - failing_since > _UNTOLD_S and loop.time() >= self._ask_at:
                    self._note_untold(_UNTOLD_NOW, error)
                    yield await self._changed_since_asked()
                await asyncio.sleep(backoff(failures, longest=LONGEST_OUTAGE_PAUSE_S))
                continue
            except BadRequest:
                if since == "now" or was_refused:
                    raise
                since, was_refused = "now", True  # the database that tells was made anew
                continue
            stands = str(answer["last_seq"]) == since and loop.time() - began < _AT_ONCE_S
            standing = standing + 1 if stands else 0
            self._untold = 0
            begins, failures, self.are_told, since = since == "now", 0, True, str(answer["last_seq"])
            was_refused &= begins
            if begins:  # nobody has told of what came before
                yield {*self._names()}
            rows = [row for row in answer.get("results") or () if isinstance(row, dict)]
            names = {row["db_name"] for row in rows if isinstance(row.get("db_name"), str)}
            if names and not stands:
                yield names
            await asyncio.sleep(
                backoff(standing, first=_TOGETHER_S, longest=_LONGEST_PAUSE_S) if stands else _TOGETHER_S
            )

    async def _ask_what_changed(self, since: str) -> dict[str, Any]:
        params: dict[str, Any] = {"since": "now", "limit": 1}
        if since != "now":
            params = {"feed": "longpoll", "since": since, "heartbeat": int(self._heartbeat_s * 1000)}
        silence_s = max(_SILENCE_S, 3 * self._heartbeat_s)
        answer: dict[str, Any] = await self._server.request(
            "GET", "_db_updates", params=params, silence_s=silence_s, has="last_seq"
        )
        return answer

    async def _changed_since_asked(self) -> set[str]:
        """Ask all databases once; return which have changed since that was done last, all the first time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._ask_at = began + _LEAST_PAUSE_S
        try:
            found = await self._server.sequences([*self._names()])
        except CouchError as error:
            _logger.info("the databases cannot be asked now", reason=str(error))
            return set()
        self._ask_at = max(self._ask_at, loop.time() + _REST * (loop.time() - began))
        known, self._sequences = self._sequences, found
        return {name for name, sequence in found.items() if known.get(name) != sequence}
