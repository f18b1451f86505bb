"""What each role may do through the Python API in guarded mode; where it is refused, nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from couchjobs.client import Couchjobs
from couchjobs.couch.access import give_role
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import Forbidden, Refused, Unauthorized
from couchjobs.installation import PRODUCER_ROLE, WORKER_ROLE, guard, secure
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings

REFUSED = (Forbidden, Refused, Unauthorized)
TRIGGER = {"type": "@every", "arguments": "1h", "worker": "w", "message": None}
Call = Callable[[Couchjobs], Awaitable[Any]]

# what is asked, whether a producer may, whether a worker may
TABLE: list[tuple[str, Call, bool, bool]] = [
    ("push", lambda one: one.push("w", 1, id="new"), True, True),
    ("push with a delay", lambda one: one.push("w", 1, id="later", delay="1h", priority=3), True, True),
    ("get", lambda one: one.get("queued"), True, True),
    ("jobs", lambda one: one.jobs(worker="w"), True, True),
    ("queue_len", lambda one: one.queue_len("w"), True, True),
    ("cancel", lambda one: one.cancel("queued"), True, True),
    ("retry", lambda one: one.retry("failed"), False, True),
    ("delete", lambda one: one.delete("failed"), False, True),
    ("fire_webhook", lambda one: one.fire_webhook("hook", 1), False, True),
    ("triggers.list", lambda one: one.triggers.list(), True, True),
    ("triggers.get", lambda one: one.triggers.get("hook"), True, True),
    ("triggers.add", lambda one: one.triggers.add({"_id": "t", **TRIGGER}), False, True),
    ("triggers.update", lambda one: one.triggers.update("hook", worker="v"), False, True),
    ("triggers.disable", lambda one: one.triggers.disable("hook"), False, True),
    ("triggers.delete", lambda one: one.triggers.delete("hook"), False, True),
]


@pytest.fixture
async def clients(
    connection: Connection, db: Prefixer, name: str, server_url: str, settings_for: Callable[..., Settings]
) -> AsyncIterator[dict[str, Couchjobs]]:
    """A client for each role."""
    await secure(connection, db)
    await guard(connection, db)
    at = urlsplit(server_url)
    opened: dict[str, Couchjobs] = {}
    users = Database(connection.server, "_users")
    for role in (PRODUCER_ROLE, WORKER_ROLE):
        user = f"{name}-{role}"
        await give_role(connection.server, user, role, "pw")
        url = f"http://{user}:pw@{at.hostname}:{at.port}"
        opened[role] = await Couchjobs(settings=settings_for(url=url)).open()
    yield opened
    for role, one in opened.items():
        await one.close()
        user_id = f"org.couchdb.user:{name}-{role}"
        await users.delete(user_id, (await users.get(user_id))["_rev"])


@pytest.mark.parametrize("role", [PRODUCER_ROLE, WORKER_ROLE])
async def test_role_when_it_asks_then_as_the_table_says_and_nothing_is_stored_where_refused(
    connection: Connection, db: Prefixer, clients: dict[str, Couchjobs], role: str
) -> None:
    """Each method of the Python API."""
    jobs, triggers = (connection.database(db.database(doctype)) for doctype in ("jobs", "triggers"))
    for what, call, producer, works in TABLE:
        for database in (jobs, triggers):
            for doc_id, rev in (await database.all_revisions()).items():
                if not doc_id.startswith("_"):
                    await database.put({"_id": doc_id, "_rev": rev, "_deleted": True})
        base = {"worker": "w", "message": None, "queued_at": "2026-01-01T00:00:00.000000Z"}
        await jobs.put({"_id": "queued", **base, "state": "queued"})
        await jobs.put({"_id": "failed", **base, "state": "errored", "exec_count": 1})
        await triggers.put({"_id": "hook", "type": "@webhook", "worker": "w", "message": None})
        before = [await jobs.all_revisions(), await triggers.all_revisions()]
        if producer if role == PRODUCER_ROLE else works:
            await call(clients[role])
        else:
            with pytest.raises(REFUSED):
                await call(clients[role])
            assert [await jobs.all_revisions(), await triggers.all_revisions()] == before, what
