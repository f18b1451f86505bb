"""The one way of all HTTP requests, logins included: connections, time limits, certificates, the proxy.

Certificates are checked against the authorities of the system, or of the file that SSL_CERT_FILE names. A proxy is used
where the setting names one, and HTTP_PROXY is not looked at: what is told to a database is not told to whoever that is.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from couchjobs import errors
from couchjobs.couch.answers import is_of_node
from couchjobs.couch.codec import decode
from couchjobs.couch.nodes import Nodes
from couchjobs.log import redact

_CONNECT_S = 10.0
"""For the connection alone: a host that is gone answers nothing, and another node may."""
_LOOK_BACK_S = 2.0
"""For `/_up` of a node that was left."""
_PATIENCE_S = 2.0
"""Seconds after which a node is asked whether it is there, where others might answer."""
_LONGEST_PATIENCE_S = 30.0
"""Between two looks at a node that was left: doubled from two seconds."""
_REDIRECTS = range(300, 400)
_LONGEST_UP = 10_000
"""Bytes of `/_up` that are read: CouchDB says some hundred."""
_FORKED = 70
"""The exit code EX_SOFTWARE."""
_POOL = 64
"""Connections at most, but for what may take long: feeds, and what users stream."""
_LARGE_BODY = 2**20
"""Bytes from which a body goes out piece by piece: aiohttp warns of, and copies, larger ones."""
MAX_ANSWER = 64 * 1024 * 1024
"""The largest answer that is read, in bytes; a larger one is Unreadable, in bounded memory."""


class Answer(NamedTuple):
    """What a server has answered."""

    body: bytes
    status: int
    headers: Mapping[str, str]
    """By name, in whatever case."""
    cookies: Mapping[str, str]
    node: str = ""
    """Which of several has answered."""


class Download(NamedTuple):
    """What a server is about to answer."""

    pieces: AsyncIterator[bytes]
    status: int
    headers: Mapping[str, str]


class Transport:
    """Sends requests. `close` when done; built without the network.

    Args:
        request_timeout: seconds that a request may take which does not wait on purpose.
        proxy: the URL of a proxy for all requests; None: there is none.
        nodes: those of the server, by the first of which it is called; None: there is but one.
    """

    def __init__(self, request_timeout: float = 60.0, proxy: str | None = None, nodes: Nodes | None = None) -> None:
        self._nodes = nodes or Nodes([""])
        self._looking_back: asyncio.Task[None] | None = None
        self._request_timeout = request_timeout
        self._proxy = proxy
        self._pid = os.getpid()
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] | None = None,
        silence_s: float | None = None,
        max_answer: int = MAX_ANSWER,
    ) -> Answer:
        """Return what the server answers, whatever that is.

        Args:
            method: the HTTP method.
            url: quoted.
            headers: beside those that say JSON.
            body: bytes, at once or in pieces.
            silence_s: for a request that waits on purpose: no limit on the whole, but this one between two pieces.
            max_answer: bytes.

        Raises:
            Unreachable: there is no connection, so that nothing was sent.
            Unavailable: no answer, or half of one.
            Unreadable: it is too large.
        """
        in_pieces = not isinstance(body, bytes | None)
        if in_pieces:  # whoever gives them may take his time
            limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        elif silence_s is None:
            limit = aiohttp.ClientTimeout(total=self._request_timeout, sock_connect=_CONNECT_S)
        else:
            limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silence_s)
        if os.getpid() != self._pid:
            os._exit(_FORKED)  # a clone of a process, in whose event loop it has come back from a fork
        if self._nodes.is_to_look_back():
            self._looking_back = asyncio.create_task(self._look_back(), name="look at the first node")
        once = partial(
            self._send, method, url, headers, body, limit, max_answer, waits=in_pieces or silence_s is not None
        )
        if len(self._nodes) == 1:
            return await once()
        path = url.partition("?")[0]
        return await self._send_to_one_of_several(once, path, again=not in_pieces)

    async def _send_to_one_of_several(
        self, once: Callable[[], Coroutine[Any, Any, Answer]], path: str, *, again: bool
    ) -> Answer:
        """Send a request to the node in use, and where it surely has not taken it, to the others in turn.

        `again`: whether it can be sent more than once.
        """
        for _ in range(len(self._nodes) - 1):
            try:
                answer = await self._watched(once, path)
            except errors.Unreachable:
                if not again:
                    raise
            else:
                if answer.status not in _REDIRECTS or not again:
                    return answer
        return await self._watched(once, path)

    def note_answer(self, answer: Answer, *, is_couchdb: bool) -> None:
        """Take note of whether what has answered is CouchDB: of several nodes, another one is used where it is not."""
        if len(self._nodes) > 1:
            self._nodes.note_answer(answer.node, is_couchdb=is_couchdb)

    async def _watched(self, once: Callable[[], Coroutine[Any, Any, Answer]], path: str) -> Answer:
        """Send a request to one of several nodes, and give it up where the node says nothing to a simple question."""
        node = in_use = self._nodes.in_use
        patience_s, asked_at = _PATIENCE_S, time.monotonic()
        sending = asyncio.ensure_future(once())
        try:
            while not (await asyncio.wait([sending], timeout=min(patience_s, _PATIENCE_S)))[0]:
                if self._nodes.in_use == in_use and time.monotonic() < asked_at + patience_s:
                    continue
                in_use, asked_at = self._nodes.in_use, time.monotonic()  # another request may have found this one dead
                patience_s = min(2 * patience_s, _LONGEST_PATIENCE_S)  # a feed waits for hours
                if await self._is_up(node) is None:
                    self._nodes.failed(node, "it hangs")
                    raise errors.Unavailable(f"{node} hangs")
            answer = await sending
        finally:
            sending.cancel()
        if answer.status in _REDIRECTS or is_of_node(path, answer.status, answer.body):
            self._nodes.failed(node, f"it answers {answer.status}")
        return answer

    async def _is_up(self, node: str) -> bool | None:
        """Return whether a node says that it is up, as CouchDB says it; None where it says nothing."""
        limit = aiohttp.ClientTimeout(total=_LOOK_BACK_S)
        try:
            async with self._open_session(waits=True).get(
                f"{node}/_up", timeout=limit, allow_redirects=False, proxy=self._proxy
            ) as response:
                said = decode(await response.content.read(_LONGEST_UP))
                return response.status == HTTPStatus.OK and isinstance(said, dict) and said.get("status") == "ok"
        except ValueError:
            return False
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] | None,
        limit: aiohttp.ClientTimeout,
        max_answer: int,
        *,
        waits: bool,
    ) -> Answer:
        node = self._nodes.in_use
        with self._told(method, url) as where:
            async with self._open_session(waits=waits).request(
                method,
                where,
                data=_as_payload(body),
                headers=headers,
                timeout=limit,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                content = await _read(response, max_answer)
                cookies = {name: cookie.value for name, cookie in response.cookies.items()} if response.cookies else {}
                return Answer(content, response.status, response.headers, cookies, node)

    async def _look_back(self) -> None:
        """Use the first node again, if it says that it is up: a node that is being mended says that it is not."""
        if await self._is_up(self._nodes.first):
            self._nodes.is_back()

    @asynccontextmanager
    async def download(self, url: str, *, headers: Mapping[str, str]) -> AsyncIterator[Download]:
        """Ask for something of whatever size, and have it in pieces: no limit on the whole, but one between two.

        Raises: as `send`.
        """
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=self._request_timeout)
        with self._told("GET", url) as where:
            async with self._open_session(waits=True).get(
                where, headers=headers, timeout=limit, allow_redirects=False, proxy=self._proxy
            ) as response:
                yield Download(response.content.iter_any(), response.status, response.headers)

    async def close(self) -> None:
        """Close all connections."""
        if self._looking_back is not None:
            self._looking_back.cancel()
            await asyncio.gather(self._looking_back, return_exceptions=True)
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    @contextmanager
    def _told(self, method: str, url: str) -> Iterator[URL]:
        """Yield where a request goes; raise what has become of it as an error of this package."""
        node, where = self._nodes.in_use, URL(self._nodes.at(url), encoded=True)
        try:
            yield where
        except TimeoutError as error:  # whether the node is there is asked beside
            raise errors.Unavailable(f"{method} {where.raw_path}: no answer in time from {where.origin()}") from error
        except aiohttp.ClientConnectorError as error:
            reason = f"no connection to {error.host}:{error.port}: {error.os_error}"
            self._nodes.failed(node, reason)
            raise errors.Unreachable(f"{method} {where.raw_path}: {reason}") from error
        except (aiohttp.ClientError, OSError) as error:
            reason = redact(f"{type(error).__name__}: {error}")  # which may quote the URL of a proxy
            self._nodes.failed(node, reason)
            raise errors.Unavailable(f"{method} {where.raw_path}: {reason}") from error

    def _open_session(self, *, waits: bool) -> aiohttp.ClientSession:
        """Return the session of what may take long, of which there may be any number, or that of the rest."""
        if waits not in self._sessions:
            self._sessions[waits] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0 if waits else _POOL, keepalive_timeout=30),
                headers={
                    "Accept": "application/json",
                    "Content-Type": "application/json",
                    "Accept-Encoding": "identity",
                },
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[waits]


def _as_payload(body: bytes | AsyncIterable[bytes] | None) -> bytes | BytesIO | AsyncIterable[bytes] | None:
    """Return a large body as a file, which aiohttp sends in pieces, leaving the event loop to others meanwhile."""
    return BytesIO(body) if isinstance(body, bytes) and len(body) > _LARGE_BODY else body


async def _read(response: aiohttp.ClientResponse, max_answer: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > max_answer:
            response.close()
            raise errors.Unreadable(
                f"the answer to {response.method} {response.url.raw_path} is larger than {max_answer:,} bytes"
            )
        pieces.append(piece)
    return b"".join(pieces)
