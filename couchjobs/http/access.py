"""Who asks, and what he may do.

A token (`Authorization: Bearer cj_...`) may do what its scopes say. A user of CouchDB (`Authorization: Basic`, or the
cookie of a session) may do what his roles allow him there: administrators and workers everything, producers push, see
and cancel jobs. Without any token in the control database, whoever reaches this server on its own machine may do
everything: then it listens nowhere else, and takes no request that a page of another host could have made.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

from aiohttp import web

from couchjobs.couch.connection import Connection
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.scopes import Matcher, Scope, read_scopes
from couchjobs.http.tokens import TokenCheck, has_tokens
from couchjobs.installation import PRODUCER_ROLE, WORKER_ROLE
from couchjobs.prefixer import Prefixer

_ALL = read_scopes(["*"])
_PRODUCER = read_scopes(["jobs:GET,POST,PATCH", "queues:GET"])
TOKEN_COOKIE = "couchjobs_token"  # noqa: S105  the name of a cookie
_LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
_SAFE = ("GET", "HEAD", "OPTIONS")
_LOOK_S = 5.0
"""Seconds within which the first token, or the last one's end, is noticed."""
_ROLES_KEPT_S = 30.0
_WRONG_S = 90.0
"""Four times in five minutes: CouchDB locks an account, this server's own perhaps, after five."""
_MOST_KEPT = 1000
_PER_S = 100.0
_BURST = 200.0
_REFUSED_PER_S = 5.0
_REFUSED_BURST = 100.0
"""Of one address, of what is refused: each costs CouchDB a question. Behind a proxy all callers have one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    name: str
    scopes: tuple[Scope, ...]
    key: str = ""
    """What tells callers apart: names may be the same."""
    is_of_all_tenants: bool = False
    """Whether he is whoever runs all this."""

    @property
    def may_all(self) -> bool:
        """Return whether it may do everything."""
        return any(scope == _ALL[0] for scope in self.scopes)

    def may(self, verb: str, doctype: str, thing: Matcher | None = None) -> bool:
        """Return whether that may be done with a thing; None: with all of that doctype."""
        return any(scope.allows(verb, doctype, thing) for scope in self.scopes)

    def check(self, verb: str, doctype: str, thing: Matcher | None = None) -> None:
        """Check that it may.

        Raises:
            ApiError: 403: it may not.
        """
        if not self.may(verb, doctype, thing):
            raise ApiError(403, f"{self.name} may not {verb} {doctype}")


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
_ANYBODY = Caller("anybody on this machine", _ALL, is_of_all_tenants=True)


class Access:
    """Says who asks. `open_paths`: what begins so is for everybody; their handlers see to themselves."""

    def __init__(
        self, connection: Connection, db: Prefixer, open_paths: tuple[str, ...], *, may_be_open: bool = True
    ) -> None:
        """Take the paths that are open, and whether all others are where there is no token: to this machine alone."""
        self._connection = connection
        self._tokens = TokenCheck(connection, db)
        self._open_paths = open_paths
        self._is_closed = not may_be_open
        self._look_at = 0.0
        self._users: OrderedDict[str, tuple[float, Caller | None]] = OrderedDict()
        self._wrong: OrderedDict[str, float] = OrderedDict()
        """By name of a user, until when CouchDB is not asked for him: five wrong passwords lock him out there."""
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._good: OrderedDict[str, None] = OrderedDict()
        """Digests of what those have shown who might ask."""

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Find out who asks, before anything is done for him."""
        resource = request.match_info.route.resource
        if resource is None or resource.canonical not in self._open_paths:
            shown = _digest_of(request)
            if shown not in self._good:
                self.check_stranger(request)
            try:
                caller = await self._caller(request)
            except ApiError:
                self.check_stranger(request, cost=1)
                raise
            self._note_good(shown)
            self._check_rate(caller.key, _PER_S, _BURST)
            request[CALLER] = caller
        return await handler(request)

    def _note_good(self, shown: str) -> None:
        """Take note that somebody may ask: what others at his address are refused does not lock him out."""
        self._good[shown] = None
        self._good.move_to_end(shown)
        if len(self._good) > _MOST_KEPT:
            self._good.popitem(last=False)

    def check_stranger(self, request: web.Request, cost: float = 0) -> None:
        """Check that whoever is at that address was not refused too often; `cost`: whether he is, once more.

        Raises:
            ApiError: 429.
        """
        self._check_rate(f"refused {request.remote}", _REFUSED_PER_S, _REFUSED_BURST, cost)

    async def of_token(self, text: str) -> Caller | None:
        """Return whose token that is; None where it is none of this tenant, or no longer."""
        token = await self._tokens.token(text)
        return None if token is None else Caller(f"token {token.name}", token.scopes, token.id)

    async def _caller(self, request: web.Request) -> Caller:
        kind, _, shown = request.headers.get("Authorization", "").partition(" ")
        kind = kind.lower()
        if kind == "bearer":
            caller = await self.of_token(shown.strip())
            if caller is None:
                raise ApiError(401, "the token is none of this tenant, or no longer")
            return caller
        if kind == "basic":
            user = await self._user(request)
            if user is None:
                raise ApiError(401, "CouchDB does not know this user, or he has no role of couchjobs")
            check_origin(request)  # a browser shows it to whoever's page asks
            return user
        known = await self._of_cookies(request)
        if known is not None:
            check_origin(request)
            return known
        if await self._is_open():
            check_origin(request)
            if urlsplit(f"//{request.host}").hostname not in ("127.0.0.1", "localhost", "::1"):
                raise ApiError(403, f"{request.host} is not how this machine calls itself: use 127.0.0.1")
            return _ANYBODY
        raise ApiError(401, "a token is wanted: Authorization: Bearer cj_...; see `couchjobs tokens create`")

    async def _of_cookies(self, request: web.Request) -> Caller | None:
        """Return whom the cookies show; None for nobody: they may be old, or of another server of this host."""
        if TOKEN_COOKIE in request.cookies:
            caller = await self.of_token(request.cookies[TOKEN_COOKIE])
            if caller is not None:
                return caller
        return await self._user(request) if "AuthSession" in request.cookies else None

    async def _is_open(self) -> bool:
        """Return whether nobody needs a token; once there has been one, somebody does, whatever becomes of it."""
        present = asyncio.get_running_loop().time()
        if not self._is_closed and present >= self._look_at:
            self._is_closed = await has_tokens(self._connection)
            self._look_at = present + _LOOK_S
        return not self._is_closed

    async def _user(self, request: web.Request) -> Caller | None:
        shown = {name: request.headers[name] for name in ("Authorization", "Cookie") if name in request.headers}
        key = sha256(repr(sorted(shown.items())).encode()).hexdigest()
        present = asyncio.get_running_loop().time()
        if key in self._users and self._users[key][0] > present:
            return self._users[key][1]
        name = _name_in(request.headers.get("Authorization", ""))
        if self._wrong.get(name, 0.0) > present:
            raise ApiError(429, "a wrong password was shown for this user: CouchDB is asked again in a minute or two")
        found = await self._connection.server.user_of(shown)
        if found is None and name:
            self._wrong[name] = present + _WRONG_S
            if len(self._wrong) > _MOST_KEPT:
                self._wrong.popitem(last=False)
        caller = None if found is None else _of_roles(*found)
        self._users[key] = present + _ROLES_KEPT_S, caller
        if len(self._users) > _MOST_KEPT:
            self._users.popitem(last=False)
        return caller

    def _check_rate(self, key: str, per_s: float, burst: float, cost: float = 1) -> None:
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


def _of_roles(name: str, roles: list[str]) -> Caller | None:
    if "_admin" in roles or WORKER_ROLE in roles:
        return Caller(f"user {name}", _ALL, f"user {name}", is_of_all_tenants=True)
    return Caller(f"user {name}", _PRODUCER, f"user {name}") if PRODUCER_ROLE in roles else None


def _digest_of(request: web.Request) -> str:
    """Return what tells apart what callers show."""
    shown = request.headers.get("Authorization", ""), request.headers.get("Cookie", "")
    return sha256(repr(shown).encode("utf-8", "replace")).hexdigest()


def check_origin(request: web.Request) -> None:
    """Check that a request which changes something is not that of another host's page.

    Raises:
        ApiError: 403.
    """
    origin = request.headers.get("Origin")
    if request.method not in _SAFE and origin is not None and urlsplit(origin).netloc != request.host:
        raise ApiError(403, f"a page of {origin} may not do this")


def is_local(host: str) -> bool:
    """Return whether a host is this machine alone."""
    return host in _LOCAL
