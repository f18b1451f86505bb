"""What those who ask may take of the process at once: connections, time and memory. It runs jobs, too.

- There are so many connections, of all together; one more is closed at once. A connection whose first request does not
  come is closed after a while, and so is one whose end does not take what it is sent.
- Answers that may be long (lists of jobs) are made and sent few at a time, fewer still for one caller.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

from aiohttp import web

from couchjobs.http.access import CALLER
from couchjobs.log import get_logger

_logger = get_logger(__name__)
_MOST_CONNECTIONS = 2000
"""A thousand readers of `/events`, and as many others."""
_OF_DESCRIPTORS = 0.5
"""Which part of the descriptors that the process may have: jobs and CouchDB need the others."""
_FIRST_REQUEST_S = 30.0
_TELL_EACH_S = 60.0
_LONGEST_ANSWER_S = 300.0
"""Seconds that somebody may take to read one."""
_UNREAD_S = 60.0
"""Seconds that sent bytes may stay unread at the other end."""
_LONG_ANSWERS = 16
_OF_ONE_CALLER = 4
_MOST_KEPT = 1000
MOST_BYTES = 4 * 1024 * 1024
"""Of the documents of a list; what is left is for the next page."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Limits:
    """Those of one process."""

    def __init__(self) -> None:
        self._silent: set[object] = set()
        """Connections whose first request has not come."""
        self._long = asyncio.Semaphore(_LONG_ANSWERS)
        self._of: OrderedDict[str, asyncio.Semaphore] = OrderedDict()
        self._most = min(_MOST_CONNECTIONS, int(_descriptors() * _OF_DESCRIPTORS))
        self._tell_at = 0.0

    def door(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol of a new connection."""

        def enter() -> asyncio.Protocol:
            loop = asyncio.get_running_loop()
            if len(server.connections) >= self._most:
                if loop.time() >= self._tell_at:
                    self._tell_at = loop.time() + _TELL_EACH_S
                    _logger.warning("no more connections are taken", most=self._most)
                return _Closed()
            handler = server()
            self._silent.add(handler)
            loop.call_later(_FIRST_REQUEST_S, self._look, handler)
            return handler

        return enter

    def _look(self, handler: web.RequestHandler) -> None:
        if handler in self._silent:
            self._silent.discard(handler)
            if handler.transport is not None:
                handler.transport.abort()

    def begun(self, request: web.Request) -> None:
        """Take note that the request of a connection has come."""
        if request.protocol not in self._silent:
            return
        self._silent.discard(request.protocol)
        transport = request.transport
        connection: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_UNREAD_S * 1000))

    @asynccontextmanager
    async def long_answer(self, caller: str) -> AsyncIterator[None]:
        """Wait until one more long answer may be made for that caller."""
        own = self._of.setdefault(caller, asyncio.Semaphore(_OF_ONE_CALLER))
        self._of.move_to_end(caller)
        if len(self._of) > _MOST_KEPT:
            self._of.popitem(last=False)
        async with own, self._long:
            yield


LIMITS: web.AppKey[Limits] = web.AppKey("limits", Limits)


class _Closed(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()  # uvloop's is no subclass of it


def long_answer(handler: Handler) -> Handler:
    """Have a handler, whose answers may be long, make and send few of them at a time."""

    async def limited(request: web.Request) -> web.StreamResponse:
        async with request.app[LIMITS].long_answer(request[CALLER].key):
            response = await handler(request)
            harden(response)
            try:
                async with asyncio.timeout(_LONGEST_ANSWER_S):
                    await response.prepare(request)
                    await response.write_eof()
            except (ConnectionError, TimeoutError):
                if request.transport is not None:
                    request.transport.abort()
        return response

    return limited


def _descriptors() -> int:
    """Return how many descriptors the process may have, of which it takes as many as it may: Unix gives 1,024 first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(_MOST_CONNECTIONS / _OF_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else soft


def harden(response: web.StreamResponse) -> None:
    """Say to browsers that an answer is nothing but what it says it is, and nobody else's to keep."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
