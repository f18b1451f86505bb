"""A password that is changed while daemons run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import Answer, FaultProxy
from triggering import note, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.access import admit, give_role
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database
from couchjobs.errors import Unauthorized
from couchjobs.installation import PRODUCER_ROLE, WORKER_ROLE, secure
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.sources import write_list

_SOURCES = ["orders", "people", "things", "bills"]


@pytest.fixture
async def user(connection: Connection, db: Prefixer, name: str) -> AsyncIterator[str]:
    """A user who may run a daemon, with the password `old`."""
    await secure(connection, db)
    await give_role(connection.server, name, WORKER_ROLE, "old")
    yield name
    users = Database(connection.server, "_users")
    await users.delete(f"org.couchdb.user:{name}", (await users.get(f"org.couchdb.user:{name}"))["_rev"])


async def all_followed(connection: Connection) -> bool:
    """Whether a daemon has begun to follow each source."""
    return len(await connection.control.with_prefix("checkpoint:")) == len(_SOURCES)


async def test_password_when_changed_under_load_then_the_account_is_not_locked_and_no_job_waits(
    connection: Connection, db: Prefixer, start: Any, user: str, server_url: str, tmp_path: Path
) -> None:
    """One daemon has a file, which is written a little later; another one is started with the new password.

    The first follows four databases, whose feeds are all interrupted by the change. CouchDB counts wrong passwords; a
    session that has ended costs nothing.
    """
    file = tmp_path / "credentials"
    file.write_text(f"COUCHJOBS_USERNAME={user}\nCOUCHJOBS_PASSWORD=old\n")
    port = urlsplit(server_url)
    jobs, users = connection.database(db.database("jobs")), Database(connection.server, "_users")
    sources = [connection.database(db.database(doctype)) for doctype in _SOURCES]
    wrong: list[str] = []
    locked: list[str] = []
    pushed: list[str] = []

    def after(answer: Answer) -> None:
        if answer.status == 401 and answer.path.strip("/") == "_session":
            wrong.append(f"{answer.method} {answer.path}")
        if b"temporarily locked" in answer.body:
            locked.append(f"{answer.method} {answer.path}")

    async def push(seconds: float) -> None:
        for _ in range(int(seconds / 0.1)):
            pushed.append(f"job-{len(pushed)}")
            await jobs.put({"_id": pushed[-1], "worker": "note", "message": None, "state": "queued"})
            await asyncio.gather(*(source.put({"_id": pushed[-1]}) for source in sources))
            await asyncio.sleep(0.1)

    await write_list(connection, db, _SOURCES)
    for source, doctype in zip(sources, _SOURCES, strict=True):
        await connection.server.create_database(source.name)
        await admit(source, [WORKER_ROLE, PRODUCER_ROLE])
        rule = {"type": "@event", "arguments": f"{doctype}:CREATED", "worker": "note", "message": None}
        await triggers_of(connection, db).put({"_id": doctype, **rule})
    async with FaultProxy(f"http://{port.hostname}:{port.port}") as proxy:
        proxy.after = after
        first = await start(note, url=proxy.url, credentials_file=str(file), beat_interval=10, dead_after=30)
        await eventually(lambda: all_followed(connection))
        await push(1)
        present = await users.get(f"org.couchdb.user:{user}")
        await users.put({**present, "password": "new"})
        await push(2)
        assert len(wrong) == 1, wrong
        await start(note, url=f"http://{user}:new@{port.hostname}:{port.port}", beat_interval=10, dead_after=30)
        for job_id in pushed:
            job = await get_job(db, job_id)
            if job.claim is None or job.claim.daemon != first.broker.daemon.id:  # whose ends wait for its new password
                assert (await wait(db, job_id, 3)).state is State.DONE
        file.write_text(f"COUCHJOBS_USERNAME={user}\nCOUCHJOBS_PASSWORD=new\n")
        await push(3)
        for job_id in pushed:
            assert (await wait(db, job_id, 5)).state is State.DONE
        for doctype in _SOURCES:
            await eventually(lambda doctype=doctype: so_many_jobs_of(connection, db, doctype, len(pushed)))
        assert (len(wrong), locked) == (1, [])
        await first.shutdown(timeout=0)


async def test_session_when_it_has_ended_and_an_administrator_is_wanted_then_another_one_is_begun(
    settings_for: Any, server_url: str
) -> None:
    """CouchDB takes it for nobody's, and says that nobody is no administrator; of who is none, it is asked about."""
    port = urlsplit(server_url)
    logins = asked = 0
    is_none = False

    def after(answer: Answer) -> None:
        nonlocal logins, asked
        path = answer.path.partition("?")[0].strip("/")
        if (answer.method, path) == ("POST", "_session"):
            logins += 1
        elif path == "_session":
            asked += 1
            if logins == 1:
                answer.json = {**answer.json, "userCtx": {"name": None, "roles": []}}
        elif path == "_all_dbs" and (logins == 1 or is_none):
            answer.status = 401
            answer.json = {"error": "unauthorized", "reason": "You are not a server admin."}

    async with FaultProxy(f"http://{port.hostname}:{port.port}") as proxy:
        proxy.after = after
        url = proxy.url.replace("//", f"//{port.username}:{port.password}@")
        async with connect(settings_for(url=url)) as behind:
            await behind.server.databases_from("x")
            assert (logins, asked) == (2, 1)
            is_none = True
            with pytest.raises(Unauthorized, match="server admin"):
                await behind.server.databases_from("x")
            assert (logins, asked) == (2, 2)
