"""What those who ask may take of the process at once: connections, time and memory. It runs jobs, too.

- There are so many connections, of all together; one more is closed at once. A connection whose first request does not
  come is closed after a while, and so is one that is idle, or whose end does not take what it is sent.
- Answers that may be long (lists of jobs) are made few at a time, fewer still for one caller, and none while many bytes
  are on their way to him, or to all.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import cast

from aiohttp import web

from couchjobs.http.access import CALLER
from couchjobs.log import get_logger
from couchjobs.waits import Signal

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
_SENT_TO_ONE = 32 * 1024 * 1024
_SENT_TO_ALL = 128 * 1024 * 1024
"""Bytes of such answers that may be on their way until the next one is made."""
_LOOK_S = 1.0
KEPT_S = 30.0
"""Seconds that a connection is kept without a request, once it has had one."""
_MOST_KEPT = 1000
MOST_BYTES = 4 * 1024 * 1024
"""Of the documents of a list; what is left is for the next page."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Limits:
    """Those of one process."""

    def __init__(self) -> None:
        self._silent: dict[object, asyncio.TimerHandle] = {}
        """Connections whose first request has not come, and what ends them."""
        self._sending: Counter[str] = Counter()
        """Bytes of long answers that are being sent, by caller."""
        self._sent = Signal()
        self.past = asyncio.Semaphore(_LONG_ANSWERS)
        """For streams that tell of the past, a page at a time."""
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
            self._silent[handler] = loop.call_later(_FIRST_REQUEST_S, self._look, handler)
            return handler

        return enter

    def _look(self, handler: web.RequestHandler) -> None:
        if self._silent.pop(handler, None) is not None and handler.transport is not None:
            handler.transport.abort()

    def begun(self, request: web.Request) -> None:
        """Take note that the request of a connection has come."""
        if (timer := self._silent.pop(request.protocol, None)) is None:
            return
        timer.cancel()
        transport = request.transport
        connection: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
        if connection is not None:
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_UNREAD_S * 1000))

    @asynccontextmanager
    async def making(self, caller: str) -> AsyncIterator[None]:
        """Wait until one more long answer may be made for that caller: few at once, none while much is being sent."""
        own = self._of.setdefault(caller, asyncio.Semaphore(_OF_ONE_CALLER))
        self._of.move_to_end(caller)
        if len(self._of) > _MOST_KEPT:
            self._of.popitem(last=False)
        async with own, self._long:
            while self._sending[caller] > _SENT_TO_ONE or self._sending.total() > _SENT_TO_ALL:
                await self._sent.within(_LOOK_S)
            yield

    @contextmanager
    def sending(self, caller: str, size: int) -> Iterator[None]:
        """Count the bytes of an answer for as long as it is sent."""
        self._sending[caller] += size
        try:
            yield
        finally:
            self._sent.set()
            self._sending[caller] -= size
            if not self._sending[caller]:
                del self._sending[caller]


LIMITS: web.AppKey[Limits] = web.AppKey("limits", Limits)


class _Closed(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()  # uvloop's is no subclass of it


def long_answer(handler: Handler) -> Handler:
    """Have a handler, whose answers may be long, make few of them at a time, and count what is being sent."""

    async def limited(request: web.Request) -> web.StreamResponse:
        limits, caller = request.app[LIMITS], request[CALLER].key
        async with limits.making(caller):
            response = await handler(request)
        body = response.body if isinstance(response, web.Response) else None
        harden(response)
        with limits.sending(caller, len(body) if isinstance(body, bytes) else 0):
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
