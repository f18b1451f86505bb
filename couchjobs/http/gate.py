"""What one process remembers of those who ask, whichever tenant they ask about: who was refused, who comes too often.

CouchDB locks an account, this server's own perhaps, after five wrong passwords: one that was wrong is not shown to it
again for a while.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import OrderedDict
from hashlib import sha256

from aiohttp import web

from couchjobs.couch.connection import Connection
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.tokens import has_tokens

_LOOK_S = 5.0
"""Seconds within which the first token, or the last one's end, is noticed."""
_ROLES_KEPT_S = 30.0
_WRONG_S = 90.0
"""Four times in five minutes: CouchDB locks an account, this server's own perhaps, after five."""
_TRUSTED_S = 90.0
"""Seconds that what was right a moment ago is taken for right, while CouchDB is not asked for that user."""
_MOST_KEPT = 1000
_PER_S = 100.0
_BURST = 200.0
_REFUSED_PER_S = 5.0
_REFUSED_BURST = 100.0
"""Of one address, of what is refused: each costs CouchDB a question. Behind a proxy all callers have one."""

User = tuple[str, list[str]]
"""Name and roles."""


class Gate:
    """Who may ask this process, and how often.

    `may_be_open`: whether nobody needs a token where there is none, for it listens on this machine alone.
    """

    def __init__(self, connection: Connection, *, may_be_open: bool = True) -> None:
        self._connection = connection
        self._is_closed = not may_be_open
        self._look_at = 0.0
        self._users: OrderedDict[str, tuple[float, User | None]] = OrderedDict()
        self._wrong: OrderedDict[str, float] = OrderedDict()
        """By name of a user, until when CouchDB is not asked for him."""
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._good: OrderedDict[str, None] = OrderedDict()
        """Digests of what those have shown who might ask."""

    def check_unknown(self, request: web.Request) -> None:
        """Check that whoever shows what nobody has shown here with success was not refused too often.

        Raises:
            ApiError: 429.
        """
        if _digest_of(request) not in self._good:
            self.check_stranger(request)

    def check_stranger(self, request: web.Request, cost: float = 0) -> None:
        """Check that whoever is at that address was not refused too often; `cost`: whether he is, once more.

        Raises:
            ApiError: 429.
        """
        self._check_rate(f"refused {request.remote}", _REFUSED_PER_S, _REFUSED_BURST, cost)

    def note_good(self, request: web.Request, caller: str) -> None:
        """Take note that somebody may ask, unless he asks too often.

        What others at his address are refused does not lock him out.

        Raises:
            ApiError: 429.
        """
        shown = _digest_of(request)
        self._good[shown] = None
        self._good.move_to_end(shown)
        if len(self._good) > _MOST_KEPT:
            self._good.popitem(last=False)
        self._check_rate(caller, _PER_S, _BURST, 1)

    async def is_open(self) -> bool:
        """Return whether nobody needs a token; once there has been one, somebody does, whatever becomes of it."""
        present = asyncio.get_running_loop().time()
        if not self._is_closed and present >= self._look_at:
            self._is_closed = await has_tokens(self._connection)
            self._look_at = present + _LOOK_S
        return not self._is_closed

    async def user(self, request: web.Request) -> User | None:
        """Return the user of CouchDB who asks; None where CouchDB does not know him.

        Raises:
            ApiError: 429: his password was wrong a moment ago.
        """
        shown = {name: request.headers[name] for name in ("Authorization", "Cookie") if name in request.headers}
        key = sha256(repr(sorted(shown.items())).encode()).hexdigest()
        present = asyncio.get_running_loop().time()
        if key in self._users and self._users[key][0] > present:
            return self._users[key][1]
        name = _name_in(request.headers.get("Authorization", ""))
        if self._wrong.get(name, 0.0) > present:
            if (known := self._users.get(key)) is not None and known[0] + _TRUSTED_S > present:
                return known[1]  # somebody else has shown a wrong one
            raise ApiError(429, "a wrong password was shown for this user: CouchDB is asked again in a minute or two")
        found = await self._connection.server.user_of(shown)
        if found is None and name:
            self._wrong[name] = present + _WRONG_S
            if len(self._wrong) > _MOST_KEPT:
                self._wrong.popitem(last=False)
        self._users[key] = present + _ROLES_KEPT_S, found
        if len(self._users) > _MOST_KEPT:
            self._users.popitem(last=False)
        return found

    def _check_rate(self, key: str, per_s: float, burst: float, cost: float) -> None:
        """Check that somebody does not ask too often: so many times a second, and so many at once.

        Raises:
            ApiError: 429.
        """
        present = asyncio.get_running_loop().time()
        left, at = self._buckets.pop(key, (burst, present))
        left = min(burst, left + (present - at) * per_s)
        self._buckets[key] = max(0.0, left - cost), present
        if len(self._buckets) > _MOST_KEPT:
            self._buckets.popitem(last=False)
        if left < 1:
            raise ApiError(429, f"more than {per_s:g} requests a second")


def _name_in(authorization: str) -> str:
    kind, _, shown = authorization.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(shown).decode("utf-8", "replace").partition(":")[0]
    except (ValueError, binascii.Error):
        return ""


def _digest_of(request: web.Request) -> str:
    """Return what tells apart what callers show."""
    shown = request.headers.get("Authorization", ""), request.headers.get("Cookie", "")
    return sha256(repr(shown).encode("utf-8", "replace")).hexdigest()
