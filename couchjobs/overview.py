"""What there is of each worker type: what waits and runs, what came of the last hour, who takes it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from couchjobs.cluster.pauses import paused
from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.cluster.peers import seconds_of, taken_types, takers
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document, Update
from couchjobs.errors import Forbidden, NotFound, Unauthorized
from couchjobs.jobs.job import State
from couchjobs.jobs.lanes import store_of, stores
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

_RECENT = timedelta(hours=1)
_FIRST_TIME = "1000"
"""What comes before in the order of the view says no time: nothing, Go's zero time, some other text."""
_TOGETHER = 8


async def who_takes(connection: Connection, tenant: Prefixer) -> set[str] | None:
    """Return the worker types whose jobs somebody takes; None for who may not know, as producers may not."""
    try:
        return taken_types(await connection.control.with_prefix(DAEMON), tenant)
    except (Forbidden, NotFound, Unauthorized):
        return None


async def queues(connection: Connection, tenant: Prefixer, *, update: Update = "true") -> list[dict[str, Any]]:
    """Return a row for each worker type; done and failed are of the jobs that were queued within the last hour.

    `update`: whether the views are brought up to date first.

    Raises:
        NotFound: the databases, or their views, do not exist.
    """
    try:
        taken: dict[str, list[str]] | None = takers(await connection.control.with_prefix(DAEMON), tenant)
        stopped = await paused(connection, tenant)
    except (Forbidden, NotFound, Unauthorized):
        taken, stopped = None, frozenset()
    rows: dict[str, dict[str, Any]] = {}
    for name in taken or {}:
        rows[name] = _row_of(name, taken)
    for store in stores(connection, tenant):
        for one in await store.database.reduced("jobs/by_state", [""], [{}], group_level=2, update=update):
            worker, state = one["key"]
            if not isinstance(worker, str):  # a document that is no job
                continue
            row = rows.setdefault(worker, _row_of(worker, taken))
            if state in (State.QUEUED, State.RUNNING):
                row[state] += one["value"]
        together = asyncio.Semaphore(_TOGETHER)
        await asyncio.gather(
            *(_add_recent(store.database, update, together, worker, row) for worker, row in rows.items())
        )
    return [rows[worker] | {"paused": worker in stopped} for worker in sorted(rows)]


async def first_undated(connection: Connection, tenant: Prefixer, worker: str) -> str | None:
    """Return the id of a due job of that type that does not say since when: of an event, of another client.

    The same one for as long as nobody claims it; None where there is none.
    """
    database = store_of(connection, tenant, worker).database
    low, high = [worker, "due", ""], [worker, "due", _FIRST_TIME]
    rows = await database.view("queue/due", low, high, limit=1, update="false")
    return rows[0]["id"] if rows else None


def _row_of(worker: str, taken: dict[str, list[str]] | None) -> dict[str, Any]:
    numbers = dict.fromkeys(("queued", "due", "running", "done", "failed"), 0)
    by = None if taken is None else taken.get(worker, [])
    return {"worker": worker, **numbers, "oldest_due": None, "taken_by": by}


async def _add_recent(
    database: Database, update: Update, together: asyncio.Semaphore, worker: str, row: dict[str, Any]
) -> None:
    present_time = format_time(now())
    hour_ago = format_time(now() - _RECENT)
    async with together:
        for name, state in (("done", State.DONE), ("failed", State.ERRORED)):
            low, high = [worker, state, hour_ago], [worker, state, {}]
            counted = await database.reduced("jobs/by_state", low, high, update=update)
            row[name] += counted[0]["value"] if counted else 0
        if not row[State.QUEUED]:
            return
        low, high = [worker, "due", ""], [worker, "due", present_time]
        due = await database.reduced("queue/due", low, high, update=update)
        row["due"] += due[0]["value"] if due else 0
        oldest = await database.view("queue/due", [worker, "due", _FIRST_TIME], high, limit=1, update=update)
        if oldest and (row["oldest_due"] is None or oldest[0]["key"][2] < row["oldest_due"]):
            row["oldest_due"] = oldest[0]["key"][2]


def row_of_daemon(document: Document) -> dict[str, Any]:
    """Return what people are shown of a daemon, whatever its document holds."""
    types, slots = document.get("worker_types"), document.get("slots")
    return {
        "id": document["_id"].removeprefix(DAEMON),
        "worker_types": [str(one) for one in types] if isinstance(types, list) else [],
        "slots": slots if isinstance(slots, int) else 0,
        "dead_after": seconds_of(document.get("dead_after")),
        **{name: str(document.get(name) or "") for name in ("host", "version", "at")},
    }
