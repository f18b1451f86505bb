"""The server that integration and acceptance tests run on, and what isolates one test from another.

COUCHJOBS_TEST_URL names a real CouchDB; without it the embedded server is started. Where neither can be had, the
tests fail; they are never skipped.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import Connection, connect
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.installation import install
from couchjobs.log import configure_logging
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.settings import Settings, load_settings
from couchjobs.system import JobSystem, system_start
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import config_of

configure_logging("debug")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of the shell that started it."""
    for name in [*os.environ]:
        if name.startswith("COUCHJOBS_") and name not in ("COUCHJOBS_TEST_URL", "COUCHJOBS_CACHE_DIR"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of the server, with an administrator's credentials."""
    given = os.environ.get("COUCHJOBS_TEST_URL")
    if given:
        yield given.rstrip("/")
        return
    with EmbeddedServer() as server:
        yield server.url


@pytest.fixture
def name() -> str:
    """A prefix that no other test has."""
    return f"t{secrets.token_hex(5)}"


@pytest.fixture
def settings_for(server_url: str, name: str) -> Callable[..., Settings]:
    """Make settings for this test's databases, else those that users have: a short sweep or beat hides what is late."""

    def make(**given: Any) -> Settings:
        own = {"url": server_url, "domain": "test.example", "prefix": name, "control_db": f"{name}-control"}
        return load_settings(**(own | given))

    return make


@pytest.fixture
async def connection(settings_for: Callable[..., Settings]) -> AsyncIterator[Connection]:
    """A connection to databases of this test's own, installed, and removed afterwards."""
    before = asyncio.all_tasks()
    settings = settings_for()
    async with connect(settings) as connection:
        await install(connection, settings.tenant)
        try:
            yield connection
        finally:
            for database in await connection.server.all_databases():
                if settings.prefix and database.startswith(settings.prefix):
                    await connection.server.delete_database(database)
    left = {task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()}
    assert not left, f"tasks that nobody ended: {left}"


@pytest.fixture
def db(connection: Connection) -> Prefixer:
    """The tenant of this test."""
    return connection.settings.tenant


@pytest.fixture
async def start(connection: Connection, settings_for: Callable[..., Settings]) -> AsyncIterator[Callable[..., Any]]:
    """Start a system with these worker functions, in this process; it is shut down after the test."""
    async with AsyncExitStack() as stack:

        async def run(*functions: Callable[..., Any], **given: Any) -> JobSystem:
            own = await stack.enter_async_context(connect(settings_for(**given)))
            workers = WorkersList(config_of(function) for function in functions)
            system = await system_start(CouchBroker(own), CouchScheduler(own), workers)
            stack.push_async_callback(_shut_down, system)
            return system

        yield run


async def _shut_down(system: JobSystem) -> None:
    if system.state == "running":
        await system.shutdown(timeout=0)
