"""One server, its databases, and the one group-commit writer of each: what a process holds of CouchDB."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from couchjobs.couch.access import KnownUsers
from couchjobs.couch.client import CouchServer
from couchjobs.couch.database import Database
from couchjobs.couch.writer import GroupWriter
from couchjobs.errors import ConfigurationError
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings, load_settings

NOWHERE = (
    "nothing says where CouchDB is: set COUCHJOBS_URL, open a connection around this (`async with Couchjobs(url=...)`, "
    "`async with connect(url=...)`), or call it in a worker"
)
_no_server: list[str] = []
_forbidden: ContextVar[str] = ContextVar("couchjobs_forbidden", default="")
_current: ContextVar[Connection | None] = ContextVar("couchjobs_connection", default=None)


class Connection:
    """The connection of a process. The constructor does not touch the network."""

    def __init__(self, settings: Settings) -> None:
        check_allowed()
        self.settings = settings
        self.server = CouchServer(
            settings.url,
            credentials_file=settings.credentials_file,
            request_timeout=settings.request_timeout,
            proxy=settings.proxy,
        )
        self.users = KnownUsers(self.server)
        self._writers: dict[str, GroupWriter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def database(self, name: str) -> Database:
        """Return the database, whether or not it exists."""
        return Database(self.server, name)

    def writer(self, name: str) -> GroupWriter:
        """Return the writer of the database, always the same one."""
        if name not in self._writers:
            self._writers[name] = GroupWriter(self.database(name))
        return self._writers[name]

    @property
    def control(self) -> Database:
        """Return the database of daemons, checkpoints and schedules."""
        return self.database(self.settings.control_db)

    def of(self, tenant: Prefixer) -> Connection:
        """Return this connection with the settings of another tenant; whoever opened it closes it."""
        other = copy.copy(self)
        other.settings = self.settings.model_copy(update={"domain": tenant.domain, "prefix": tenant.prefix})
        return other

    async def close(self) -> None:
        """Write what waits, as far as CouchDB takes it within `push_timeout`, then close all connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.push_timeout):
                for writer in self._writers.values():
                    await writer.close()
        await self.server.close()

    def use(self) -> None:
        """Make this the connection of the present task and of those that it starts."""
        self._loop = asyncio.get_running_loop()
        _current.set(self)

    @property
    def is_of_here(self) -> bool:
        """Return whether it belongs to the present event loop: a function in a thread may run one of its own."""
        return self._loop is asyncio.get_running_loop()


@contextmanager
def no_server(reason: str) -> Iterator[None]:
    """Have nobody in this process open a connection inside the block; `reason` is what they are told."""
    _no_server.append(reason)
    try:
        yield
    finally:
        _no_server.remove(reason)


def check_allowed() -> None:
    """Check that a connection may be had here.

    Raises:
        ConfigurationError: it may not, as the text says.
    """
    if reason := _why_not():
        raise ConfigurationError(reason)


def _why_not() -> str:
    return _forbidden.get() or (_no_server[-1] if _no_server else "")


def forbid_connections(reason: str) -> None:
    """Have no connection be had from here on, in this task and those that it starts; `reason` is what they are told."""
    _forbidden.set(reason)


@contextmanager
def using(connection: Connection) -> Iterator[None]:
    """Make this the connection of what is called inside the block."""
    before = _current.get()
    connection.use()
    try:
        yield
    finally:
        _current.set(before)


def current_connection() -> Connection | None:
    """Return the connection of the surrounding `connect` or worker, in its event loop; None outside of one."""
    present = _current.get()
    return present if present is not None and present.is_of_here else None


@asynccontextmanager
async def connect(settings: Settings | None = None, **given: Any) -> AsyncIterator[Connection]:
    """Open a connection that everything inside the block uses; settings come from the environment unless given.

    Raises:
        ConfigurationError: a setting cannot be used.
    """
    connection = Connection(settings or load_settings(**given))
    before = _current.get()
    connection.use()
    try:
        yield connection
    finally:
        _current.set(before)  # no token: fixtures of test frameworks leave in another context than they entered
        await connection.close()


@asynccontextmanager
async def connected() -> AsyncIterator[Connection]:
    """Yield the connection of the surrounding `connect` or worker; outside of one, one for this block alone.

    Raises:
        ConfigurationError: there is none, and nothing says where CouchDB is.
    """
    present = _current.get()
    check_allowed()
    if present is not None and present.is_of_here:
        yield present
        return
    if present is None and not os.environ.get("COUCHJOBS_URL"):
        raise ConfigurationError(NOWHERE)
    async with connect(present.settings if present is not None else None) as connection:
        yield connection
