"""The server: which routes there are, and where it listens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from couchjobs.broker.runtime import Runtime
from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, NotFound
from couchjobs.http.access import Access, is_local
from couchjobs.http.api import API, Api
from couchjobs.http.events import Events
from couchjobs.http.gate import Gate
from couchjobs.http.jsonapi import tell_errors
from couchjobs.http.limits import KEPT_S, LIMITS, Limits, harden
from couchjobs.http.metrics import Metrics
from couchjobs.http.openapi import OpenApi
from couchjobs.http.pages import routes as pages
from couchjobs.http.pages.page import tell_errors as tell_errors_as_pages
from couchjobs.http.routes import routes
from couchjobs.http.tenants import Sites, add_sites
from couchjobs.http.tokens import has_tokens
from couchjobs.log import get_logger

_logger = get_logger(__name__)
_ENVELOPE = 65_536
"""Bytes that a body may have beyond those of the largest message."""
_OPEN = ("/jobs/webhooks/{id}", "/health/live", "/health/ready", "/openapi.json")
_LAST_ANSWERS_S = 2.0


def make_app(
    connection: Connection,
    runtime: Runtime | None = None,
    *,
    base: str = "",
    gate: Gate | None = None,
    limits: Limits | None = None,
) -> web.Application:
    """Return the application for the tenant of the connection's settings.

    Args:
        connection: to CouchDB.
        runtime: what the daemon of this process runs jobs with; None: there is none here.
        base: what its paths begin with, where others have gone before.
        gate: what is remembered of those who ask, where it serves others, too; None: it serves this tenant alone, and
            everybody on this machine where there is no token.
        limits: what those who ask may take at once, where others serve them, too.
    """
    settings = connection.settings
    access = Access(connection, settings.tenant, (*_OPEN, *pages.OPEN), gate or Gate(connection))
    app = web.Application(
        middlewares=[_guard, tell_errors, tell_errors_as_pages, access.middleware],
        client_max_size=settings.max_message_bytes + _ENVELOPE,
    )
    app[LIMITS] = limits or Limits()
    app[API] = Api(connection, runtime, base)
    events = Events()
    served = routes(events, Metrics())
    app.router.add_routes([web.route(one.method, one.path, one.answer) for one in served])
    app.router.add_get("/openapi.json", OpenApi(served, base).answer)
    pages.add_pages(app, access, served)

    async def close(_: web.Application) -> None:
        await events.close()

    app.on_shutdown.append(close)
    return app


def make_front(
    connection: Connection, tenants: str, runtime: Runtime | None, gate: Gate, limits: Limits | None = None
) -> web.Application:
    """Return the application for many tenants, `tenants` being which, as the option `--tenants` says it.

    Raises:
        ConfigurationError: there is no such file.
    """
    limits = limits or Limits()

    def make(connection: Connection, base: str) -> web.Application:
        return make_app(connection, base=base, gate=gate, limits=limits)

    sites = Sites(connection, tenants, make, make_app(connection, runtime, gate=gate, limits=limits), gate)
    front = web.Application(
        middlewares=[_guard, tell_errors, sites.middleware],
        client_max_size=connection.settings.max_message_bytes + _ENVELOPE,
    )
    front[LIMITS] = limits
    add_sites(front, sites)
    return front


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    request.app[LIMITS].begun(request)
    response = await handler(request)
    if not response.prepared:  # else it has been sent already
        harden(response)
    return response


class HttpServer:
    """One that listens: `open`, then `start`; `stop` after use.

    Args:
        connection: to CouchDB.
        address: host and port; 0 takes a free one.
        tenants: which, as `--tenants` says it; None: that of the settings alone.
    """

    def __init__(self, connection: Connection, address: tuple[str, int], tenants: str | None = None) -> None:
        self._connection = connection
        self._address = address
        self._tenants = tenants
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._limits = Limits()

    async def open(self) -> None:
        """Take the address: who connects waits until the start.

        Raises:
            ConfigurationError: the address cannot be had, or is not of this machine alone, and there is no token.
        """
        host, port = self._address
        if not is_local(host) and not await self._has_tokens():
            raise ConfigurationError(
                f"--http {host}:{port}: who may do what? make a token first (couchjobs tokens create), or listen on "
                "127.0.0.1"
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ConfigurationError(f"--http {host}:{port}: {error.strerror or error}") from None

    async def _has_tokens(self) -> bool:
        try:
            return await has_tokens(self._connection)
        except NotFound:  # a daemon makes its control database only now
            return False

    async def start(self, runtime: Runtime | None = None) -> None:
        """Answer. `runtime`: what the daemon of this process runs jobs with; None: there is none here."""
        if self._socket is None:
            await self.open()
        gate, limits = Gate(self._connection, may_be_open=is_local(self._address[0])), self._limits
        if self._tenants is None:
            app = make_app(self._connection, runtime, gate=gate, limits=limits)
        else:
            app = make_front(self._connection, self._tenants, runtime, gate, limits)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=_LAST_ANSWERS_S, handle_signals=False, keepalive_timeout=KEPT_S
        )
        await self._runner.setup()
        door = limits.door(cast("web.Server", self._runner.server))
        listening = cast("socket.socket", self._socket)
        self._listener = await asyncio.get_running_loop().create_server(door, sock=listening)
        _logger.info("HTTP", url=self.url)

    @property
    def url(self) -> str:
        """Return where it listens."""
        host, port = self._socket.getsockname()[:2] if self._socket is not None else self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Listen no more; requests that are being answered have two seconds."""
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()
        elif self._socket is not None:
            self._socket.close()
