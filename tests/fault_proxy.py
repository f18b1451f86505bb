"""A proxy before the server that does what networks, clusters and load balancers do on a bad day."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import web
from yarl import URL


@dataclass
class Answer:
    """What the server has answered, and what the proxy makes of it."""

    method: str
    path: str
    status: int
    body: bytes
    sent: bytes = b""
    cookies: list[str] = field(default_factory=list)
    """As they are set by the server."""
    lose: bool = False
    """Close the connection instead of answering."""
    cut_at: int | None = None
    """Send so many bytes of the body, then close the connection."""
    pieces: int | None = None
    """Send the body in pieces of so many bytes."""

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return orjson.loads(self.body)

    @json.setter
    def json(self, value: Any) -> None:
        self.body = orjson.dumps(value)


@dataclass
class Refusal(Exception):
    """Answer this instead of asking the server."""

    status: int
    body: dict[str, str] = field(default_factory=lambda: {"error": "unavailable", "reason": "by the proxy"})


Before = Callable[[str, str, bytes], Awaitable[None] | None]
After = Callable[[Answer], Awaitable[None] | None]


class FaultProxy:
    """Passes requests on to `target`; `before` may raise a Refusal, `after` may change the answer."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = f"{parts.scheme}://{parts.hostname}:{parts.port}"
        self._credentials = f"{parts.username}:{parts.password}@" if parts.username else ""
        self.before: Before = lambda method, path, body: None
        self.after: After = lambda answer: None
        self.path_of: Callable[[str], str] = lambda path: path
        """What is asked of the server instead of a path."""
        self.url = ""
        self._writers: set[web.StreamResponse] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{self._credentials}127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path
        sent = await request.read()
        try:
            await _maybe(self.before(request.method, path, sent))
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in ("host", "content-length")
        }
        try:
            async with self._session.request(
                request.method, URL(self._target + self.path_of(path), encoded=True), data=sent, headers=headers
            ) as response:
                cookies = response.headers.getall("Set-Cookie", [])
                answer = Answer(request.method, path, response.status, await response.read(), sent, cookies)
        except (aiohttp.ClientError, OSError):
            return self._close(request)
        await _maybe(self.after(answer))
        if answer.lose:
            return self._close(request)
        try:
            return await self._send(request, answer)
        except (aiohttp.ClientError, ConnectionError):  # the client has not waited for it
            return self._close(request)

    async def _send(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
        response.content_length = len(answer.body)
        for cookie in answer.cookies:
            response.headers.add("Set-Cookie", cookie)
        await response.prepare(request)
        body = answer.body if answer.cut_at is None else answer.body[: answer.cut_at]
        step = answer.pieces or max(1, len(body))
        for at in range(0, len(body), step):
            await response.write(body[at : at + step])
            await asyncio.sleep(0)
        if answer.cut_at is not None:
            return self._close(request)
        await response.write_eof()
        return response

    @staticmethod
    def _close(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


async def _maybe(value: Any) -> None:
    if asyncio.iscoroutine(value):
        await value
