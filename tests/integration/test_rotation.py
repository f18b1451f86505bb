"""A password that is changed while daemons run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import Answer, FaultProxy
from triggering import note

from couchjobs.couch.access import give_role
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.installation import WORKER_ROLE, secure
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import wait
from couchjobs.prefixer import Prefixer

_LOCKED_AFTER = 5
"""Failures from one address within five minutes: CouchDB's default."""


@pytest.fixture
async def user(connection: Connection, db: Prefixer, name: str) -> AsyncIterator[str]:
    """A user who may run a daemon, with the password `old`."""
    await secure(connection, db)
    await give_role(connection.server, name, WORKER_ROLE, "old")
    yield name
    users = Database(connection.server, "_users")
    await users.delete(f"org.couchdb.user:{name}", (await users.get(f"org.couchdb.user:{name}"))["_rev"])


async def test_password_when_changed_under_load_then_the_account_is_not_locked_and_no_job_waits(
    connection: Connection, db: Prefixer, start: Any, user: str, server_url: str, tmp_path: Path
) -> None:
    """One daemon has a file, which is written a little later; another one is started with the new password."""
    file = tmp_path / "credentials"
    file.write_text(f"COUCHJOBS_USERNAME={user}\nCOUCHJOBS_PASSWORD=old\n")
    port = urlsplit(server_url)
    jobs, users = connection.database(db.database("jobs")), Database(connection.server, "_users")
    refused: list[str] = []
    pushed: list[str] = []

    def after(answer: Answer) -> None:
        if answer.status in (401, 403):
            refused.append(f"{answer.method} {answer.path} {answer.status}")

    async def push(seconds: float) -> None:
        for _ in range(int(seconds / 0.1)):
            pushed.append(f"job-{len(pushed)}")
            await jobs.put({"_id": pushed[-1], "worker": "note", "message": None, "state": "queued"})
            await asyncio.sleep(0.1)

    async with FaultProxy(f"http://{port.hostname}:{port.port}") as proxy:
        proxy.after = after
        await start(note, url=proxy.url, credentials_file=str(file), beat_interval=10, dead_after=30)
        await push(1)
        present = await users.get(f"org.couchdb.user:{user}")
        await users.put({**present, "password": "new"})
        await push(2)
        assert 1 <= len(refused) < _LOCKED_AFTER, refused
        await start(note, url=f"http://{user}:new@{port.hostname}:{port.port}", beat_interval=10, dead_after=30)
        for job_id in pushed:
            assert (await wait(db, job_id, 3)).state is State.DONE
        file.write_text(f"COUCHJOBS_USERNAME={user}\nCOUCHJOBS_PASSWORD=new\n")
        await push(3)
        for job_id in pushed:
            assert (await wait(db, job_id, 5)).state is State.DONE
        assert len(refused) < _LOCKED_AFTER, refused
