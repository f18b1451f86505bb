"""Who asks, and what he may do.

A token (`Authorization: Bearer cj_...`) may do what its scopes say. A user of CouchDB (`Authorization: Basic`, or the
cookie of a session) may do what his roles allow him there: administrators and workers everything, producers push, see
and cancel jobs of their tenant. Without any token in the control database, whoever reaches this server on its own
machine may do everything: then it listens nowhere else, and takes no request that a page of another host could have
made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from couchjobs.couch.connection import Connection
from couchjobs.errors import CouchError
from couchjobs.http.gate import Gate
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.scopes import KINDS_OF_POST, Matcher, Scope, read_scopes
from couchjobs.http.tokens import TokenCheck
from couchjobs.installation import WORKER_ROLE, may_produce
from couchjobs.jobs.job import WORKER_TYPE, Job
from couchjobs.prefixer import Prefixer

_ALL = read_scopes(["*"])
_PRODUCER = (Scope("jobs", frozenset({"GET", "PUSH", "CANCEL"})), Scope("queues", frozenset({"GET"})))
"""What CouchDB lets a producer do in guarded mode, and not what this server could do for him."""
TOKEN_COOKIE = "couchjobs_token"  # noqa: S105  the name of a cookie
_MOST_COOKIES = 20
"""Of that name: one for each tenant that somebody is signed in at."""
_LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
_SAFE = ("GET", "HEAD", "OPTIONS")


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

    def may_some(self, verb: str, doctype: str) -> bool:
        """Return whether that may be done with anything of that doctype."""
        return any(one.is_about(verb, doctype) for one in self.scopes)

    def workers(self, verb: str) -> tuple[str, ...]:
        """Return the worker types that rules name with whose jobs that may be done."""
        rules = [one for one in self.scopes if one.is_about(verb, "jobs") and one.selector == WORKER_TYPE]
        return tuple(sorted({value for one in rules for value in one.values}))

    def check(self, verb: str, doctype: str, thing: Matcher | None = None) -> None:
        """Check that it may.

        Raises:
            ApiError: 403: it may not.
        """
        if not self.may(verb, doctype, thing):
            worker = getattr(thing, "worker_type", None) or getattr(thing, "worker", None)
            of = f" of worker {worker}" if worker and doctype == "jobs" else ""
            asked = "POST" if verb in KINDS_OF_POST else verb
            only = f":{worker}:worker" if of and self.may_some(verb, doctype) else ""
            raise ApiError(403, f"{self.name} may not {verb} {doctype}{of}: that needs {doctype}:{asked}{only}")

    def may_retry(self, job: Job) -> bool:
        """Return whether he may have a job run again; what an administrator has pushed, only who may everything."""
        return self.may("RETRY", "jobs", job) and (job.admin_proof is None or self.may_all)

    def check_retry(self, job: Job) -> None:
        """Check that he may have a job run again.

        Raises:
            ApiError: 403: he may not.
        """
        self.check("RETRY", "jobs", job)
        if not self.may_retry(job):
            raise ApiError(403, f"{self.name} may not have a job run again that was pushed with admin=True")


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
STILL: web.RequestKey[Any] = web.RequestKey("still", object)
"""Asks whether he may still do what he might when his request came: a stream lasts."""
_ANYBODY = Caller("anybody on this machine", _ALL, is_of_all_tenants=True)


class Access:
    """Says who asks. `open_paths`: what begins so is for everybody; their handlers see to themselves."""

    def __init__(self, connection: Connection, db: Prefixer, open_paths: tuple[str, ...], gate: Gate) -> None:
        self.gate = gate
        self._db = db
        self._tokens = TokenCheck(connection, db)
        self._open_paths = open_paths

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Find out who asks, before anything is done for him."""
        resource = request.match_info.route.resource
        if resource is None or resource.canonical not in self._open_paths:
            self.gate.check_unknown(request)
            try:
                caller = await self._caller(request)
            except ApiError:
                self.gate.check_stranger(request, cost=1)
                raise
            self.gate.note_good(request, caller.key)
            request[CALLER] = caller
            request[STILL] = partial(self._is_still, request, caller)
        return await handler(request)

    async def _is_still(self, request: web.Request, caller: Caller) -> bool:
        try:
            return await self._caller(request) == caller
        except ApiError:
            return False
        except CouchError:  # nothing says that he is not
            return True

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
        if await self.gate.is_open():
            check_origin(request)
            if urlsplit(f"//{request.host}").hostname not in ("127.0.0.1", "localhost", "::1"):
                raise ApiError(403, f"{request.host} is not how this machine calls itself: use 127.0.0.1")
            return _ANYBODY
        raise ApiError(401, "a token is wanted: Authorization: Bearer cj_...; see `couchjobs tokens create`")

    async def _of_cookies(self, request: web.Request) -> Caller | None:
        """Return whom the cookies show; None for nobody: they may be old, or of another server of this host."""
        for token in _tokens_in(request)[:_MOST_COOKIES]:
            caller = await self.of_token(token)
            if caller is not None:
                return caller
        return await self._user(request) if "AuthSession" in request.cookies else None

    async def _user(self, request: web.Request) -> Caller | None:
        found = await self.gate.user(request)
        return None if found is None else _of_roles(self._db, *found)


def _tokens_in(request: web.Request) -> list[str]:
    """Return the tokens of all cookies of that name: a browser sends one for each path that it is signed in at."""
    pairs = [part.partition("=") for header in request.headers.getall("Cookie", []) for part in header.split(";")]
    return [*dict.fromkeys(value.strip(' "') for name, _, value in pairs if name.strip() == TOKEN_COOKIE)]


def _of_roles(db: Prefixer, name: str, roles: list[str]) -> Caller | None:
    if "_admin" in roles or WORKER_ROLE in roles:
        return Caller(f"user {name}", _ALL, f"user {name}", is_of_all_tenants=True)
    return Caller(f"user {name}", _PRODUCER, f"user {name}") if may_produce(db, roles) else None


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
