"""What the attacks share: daemons at the settings that users have, and users with roles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop
from daemons import AS_USERS_HAVE

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.access import give_role
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database
from couchjobs.installation import PRODUCER_ROLE, WORKER_ROLE, secure
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.settings import Settings
from couchjobs.system import JobSystem, system_start
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import config_of

Begin = Callable[..., Any]
_BOTH_LOOPS = ("test_http_limits.py",)
"""Tests of what is another thing in the event loop of a daemon: uvloop's transports are not those of asyncio."""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The event loops in which a test runs."""
    loops: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name in _BOTH_LOOPS else loops


@pytest.fixture
async def begin(connection: Connection, settings_for: Callable[..., Settings]) -> AsyncIterator[Begin]:
    """Start a system with these worker functions at default settings, in this process."""
    async with AsyncExitStack() as stack:

        async def run(*functions: Callable[..., Any], **given: Any) -> JobSystem:
            own = await stack.enter_async_context(connect(settings_for(**(AS_USERS_HAVE | given))))
            workers = WorkersList(config_of(function) for function in functions)
            system = await system_start(CouchBroker(own), CouchScheduler(own), workers)
            stack.push_async_callback(_shut_down, system)
            return system

        yield run


async def _shut_down(system: JobSystem) -> None:
    if system.state == "running":
        await system.shutdown(timeout=0)


@pytest.fixture
async def urls(connection: Connection, db: Prefixer, server_url: str, name: str) -> AsyncIterator[dict[str, str]]:
    """The server's URL with the credentials of a producer and of a worker, on secured databases."""
    await secure(connection, db)
    parts = urlsplit(server_url)
    found: dict[str, str] = {}
    users = Database(connection.server, "_users")
    for who, role in (("producer", PRODUCER_ROLE), ("worker", WORKER_ROLE)):
        await give_role(connection.server, f"{name}-{who}", role, "pw")
        found[who] = f"{parts.scheme}://{name}-{who}:pw@{parts.hostname}:{parts.port}"
    yield found
    for who in found:
        user = await users.get(f"org.couchdb.user:{name}-{who}")
        await users.delete(user["_id"], user["_rev"])
