"""Guarded mode and roles: who may do what, asked of the server's own JavaScript engine through HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from waiting import eventually

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.access import give_role, is_open
from couchjobs.couch.client import CouchServer
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database
from couchjobs.errors import Forbidden, NotFound, Unauthorized
from couchjobs.installation import PRODUCER_ROLE, WORKER_ROLE, guard, secure
from couchjobs.jobs.job import State
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.system import system_start
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker

CLAIM = {"id": "c", "daemon": "d", "at": "2026-01-01T00:00:00.000000Z"}
OTHER = {**CLAIM, "id": "other"}
QUEUED = {"worker": "w", "message": {"a": [1, {"b": None}]}, "state": "queued"}
RUNNING = {**QUEUED, "state": "running", "claim": CLAIM, "exec_count": 1}
DONE = {**RUNNING, "state": "done"}
NEW = None
DELETED = {"_deleted": True}

# who, what is there, what is written, whether that is allowed
JOBS: list[tuple[str, dict[str, Any] | None, dict[str, Any], bool]] = [
    ("producer", NEW, QUEUED, True),
    ("producer", NEW, {**QUEUED, "priority": 5, "options": {"timeout": 1}, "mine": 1}, True),
    ("producer", NEW, {**QUEUED, "state": "done"}, False),
    ("producer", NEW, RUNNING, False),
    ("producer", NEW, {**QUEUED, "trigger_id": "somebody's"}, False),
    ("producer", NEW, {**QUEUED, "admin_proof": "f00"}, False),
    ("producer", NEW, {**QUEUED, "worker": ["w"]}, False),
    ("producer", NEW, {"worker": "w", "state": "queued"}, False),
    ("producer", NEW, {**QUEUED, "state": "paused"}, False),
    ("producer", QUEUED, {**QUEUED, "cancel_requested": True}, True),
    ("producer", RUNNING, {**RUNNING, "cancel_requested": True}, True),
    ("producer", QUEUED, {**QUEUED, "cancel_requested": True, "message": 2}, False),
    ("producer", QUEUED, {**QUEUED, "priority": 9}, False),
    ("producer", {**QUEUED, "cancel_requested": True}, QUEUED, False),
    ("producer", DONE, QUEUED, False),
    ("producer", QUEUED, DELETED, False),
    ("worker", NEW, QUEUED, True),
    ("worker", NEW, RUNNING, False),
    ("worker", NEW, DONE, True),
    ("worker", QUEUED, RUNNING, True),
    ("worker", QUEUED, {**RUNNING, "claim": None}, False),
    ("worker", QUEUED, {**RUNNING, "exec_count": 2}, False),
    ("worker", QUEUED, {**QUEUED, "state": "done"}, False),
    ("worker", {**QUEUED, "worker": "client"}, {**QUEUED, "worker": "client", "state": "done"}, True),
    ("worker", QUEUED, {**QUEUED, "state": "errored"}, True),
    ("worker", QUEUED, {**QUEUED, "worker": "other"}, False),
    ("worker", RUNNING, DONE, True),
    ("worker", RUNNING, {**DONE, "claim": OTHER}, False),
    ("worker", RUNNING, {**RUNNING, "claim": OTHER}, False),
    ("worker", RUNNING, {**RUNNING, "progress": 50}, True),
    ("worker", RUNNING, QUEUED, True),
    ("worker", RUNNING, DELETED, False),
    ("worker", DONE, RUNNING, False),
    ("worker", DONE, {**QUEUED, "exec_count": 0}, True),
    ("worker", DONE, DELETED, True),
    ("admin", NEW, RUNNING, False),
    ("admin", DONE, RUNNING, False),
    ("admin", RUNNING, {**RUNNING, "claim": OTHER}, False),
    ("nobody", NEW, QUEUED, False),
    ("stranger", NEW, QUEUED, False),
]
TRIGGER = {"type": "@every", "arguments": "1h", "worker": "w", "message": None}
TRIGGERS: list[tuple[str, dict[str, Any] | None, dict[str, Any], bool]] = [
    ("worker", NEW, TRIGGER, True),
    ("admin", NEW, TRIGGER, True),
    ("admin", NEW, {**TRIGGER, "type": "@nothing"}, False),
    ("worker", NEW, {**TRIGGER, "arguments": 5}, False),
    ("worker", TRIGGER, DELETED, True),
    ("producer", NEW, TRIGGER, False),
    ("producer", TRIGGER, DELETED, False),
    ("nobody", NEW, TRIGGER, False),
]


@pytest.fixture
async def urls(connection: Connection, db: Prefixer, server_url: str, name: str) -> AsyncIterator[dict[str, str]]:
    """The server's URL with the credentials of each, on secured databases."""
    await secure(connection, db)
    parts = urlsplit(server_url)
    found = {"admin": server_url, "nobody": f"{parts.scheme}://{parts.hostname}:{parts.port}"}
    users = Database(connection.server, "_users")
    for who, role in (("producer", PRODUCER_ROLE), ("worker", WORKER_ROLE), ("stranger", "other")):
        assert await give_role(connection.server, f"{name}-{who}", role, "pw")
        assert not await give_role(connection.server, f"{name}-{who}", role, "ignored")
        found[who] = f"{parts.scheme}://{name}-{who}:pw@{parts.hostname}:{parts.port}"
    yield found
    for who in ("producer", "worker", "stranger"):
        user = await users.get(f"org.couchdb.user:{name}-{who}")
        await users.delete(user["_id"], user["_rev"])


async def _may_put(url: str, database: Database, document: dict[str, Any]) -> bool:
    async with CouchServer(url) as server:
        try:
            await Database(server, database.name).put(document)
        except (Forbidden, Unauthorized):
            return False
        return True


@pytest.mark.parametrize(("doctype", "attempts"), [("jobs", JOBS), ("triggers", TRIGGERS)])
async def test_guard_when_anybody_writes_then_allowed_or_refused_as_documented(
    connection: Connection, db: Prefixer, urls: dict[str, str], doctype: str, attempts: list[Any]
) -> None:
    """As producer, as worker, as administrator, as nobody."""
    database = connection.database(db.database(doctype))
    documents = [{"_id": f"doc-{number}", **written} for number, (_, _, written, _) in enumerate(attempts)]
    for document, (_, there, _, _) in zip(documents, attempts, strict=True):
        if there is not None:
            document["_rev"] = await database.put({"_id": document["_id"], **there})
    assert len(await guard(connection, db)) == 2
    assert await guard(connection, db) == []
    wrong = [
        (who, there, written)
        for document, (who, there, written, allowed) in zip(documents, attempts, strict=True)
        if await _may_put(urls[who], database, document) is not allowed
    ]
    assert wrong == []


async def test_guard_when_a_daemon_runs_as_a_worker_then_jobs_of_a_producer_are_done(
    connection: Connection, db: Prefixer, urls: dict[str, str], settings_for: Callable[..., Any]
) -> None:
    """Neither needs an administrator; a failed try, a retry and an update of progress included."""
    await guard(connection, db)

    @worker("w", retry_delay=0.01)
    async def function(ctx: WorkerContext, message: Any) -> Any:
        if ctx.exec_count == 1:
            raise OSError("once")
        return message

    async with connect(settings_for(url=urls["worker"])) as own:
        system = await system_start(CouchBroker(own), CouchScheduler(own), WorkersList([config_of(function)]))
        try:
            jobs = connection.database(db.database("jobs"))
            assert await _may_put(urls["producer"], jobs, {"_id": "by-hand", **QUEUED})
            async with connect(settings_for(url=urls["producer"])) as producer:
                pushed = await CouchBroker(producer).push_job(db, JobRequest(worker_type="w", message=1))
            assert pushed is not None
            for job_id in ("by-hand", pushed.id):
                assert (await wait(db, job_id, 10)).state is State.DONE
        finally:
            await system.shutdown(0)


async def test_secure_when_databases_are_open_then_closed_and_others_kept(connection: Connection, db: Prefixer) -> None:
    """Whoever is named already stays; a second time changes nothing."""
    jobs = connection.database(db.database("jobs"))
    await jobs.set_security({"members": {"names": ["ann"], "roles": []}, "admins": {"names": ["root"], "roles": []}})
    control = connection.control
    await control.set_security({})
    await eventually(lambda: is_open(control))  # whichever copy answers
    assert len(await secure(connection, db)) == 3
    assert await secure(connection, db) == []
    assert not await is_open(control)
    security = await jobs.security()
    assert security["members"] == {"names": ["ann"], "roles": [WORKER_ROLE, PRODUCER_ROLE]}
    assert security["admins"]["names"] == ["root"]


async def test_control_database_when_asked_by_a_producer_then_refused(
    connection: Connection, urls: dict[str, str], settings_for: Callable[..., Any]
) -> None:
    """There lies the secret that proves administrators' jobs."""
    async with connect(settings_for(url=urls["producer"])) as producer:
        with pytest.raises(Forbidden):
            await producer.control.find("secret:admin")
        with pytest.raises(NotFound):
            await connection.control.get("secret:admin")
