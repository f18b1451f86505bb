"""Daemons as users start them: processes of their own, at the settings that everybody has."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from couchjobs.couch.connection import Connection
from couchjobs.prefixer import Prefixer

_LOOK_S = 0.05
_MB = 1024 * 1024


@asynccontextmanager
async def daemons(connection: Connection, db: Prefixer, *options: str, count: int = 1) -> AsyncIterator[list[Process]]:
    """Start so many daemons of a tenant with these options; yield them at once, end them after the block."""
    environment = environment_of(connection, None if "--tenants" in options else db)
    command = [sys.executable, "-m", "couchjobs", "run", "couchjobs.bench.noop", "--log-level", "error", *options]
    running = [await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.terminate()
        for process in running:
            await process.wait()


def environment_of(connection: Connection, db: Prefixer | None) -> dict[str, str]:
    """Return the environment of a process that works with the same databases."""
    settings = connection.settings
    own = {} if db is None else {"COUCHJOBS_DOMAIN": db.domain, "COUCHJOBS_PREFIX": db.db_prefix}
    where = {"URL": settings.url, "CONTROL_DB": settings.control_db, "JOBS_DOCTYPE": settings.jobs_doctype}
    return {**os.environ, **{f"COUCHJOBS_{name}": value for name, value in where.items()}, **own}


async def until_there(connection: Connection, count: int) -> None:
    """Return once so many daemons have come in."""
    while len(await connection.control.with_prefix("daemon:")) < count:  # noqa: ASYNC110  it is another process
        await asyncio.sleep(_LOOK_S)


async def forget_daemons(connection: Connection) -> None:
    """Remove what daemons have left that were ended."""
    for daemon in await connection.control.with_prefix("daemon:"):
        await connection.control.delete(daemon["_id"], daemon["_rev"])


def memory_mb(process: Process) -> float:
    """Return how much memory a process has now."""
    return round(float(psutil.Process(process.pid).memory_info().rss) / _MB, 1)
