"""What there is of each worker type: what waits and runs, what came of the last hour, who takes it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from couchjobs.cluster.pauses import paused
from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.cluster.peers import takers
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import Forbidden, NotFound, Unauthorized
from couchjobs.jobs.job import State
from couchjobs.jobs.lanes import stores
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

_RECENT = timedelta(hours=1)


async def queues(connection: Connection, tenant: Prefixer) -> list[dict[str, Any]]:
    """Return a row for each worker type; done and failed are of the jobs that were queued within the last hour.

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
        for one in await store.database.reduced("jobs/by_state", [""], [{}], group_level=2):
            worker, state = one["key"]
            if not isinstance(worker, str):  # a document that is no job
                continue
            row = rows.setdefault(worker, _row_of(worker, taken))
            if state in (State.QUEUED, State.RUNNING):
                row[state] += one["value"]
        for worker, row in rows.items():
            await _add_recent(store.database, worker, row)
    return [rows[worker] | {"paused": worker in stopped} for worker in sorted(rows)]


def _row_of(worker: str, taken: dict[str, list[str]] | None) -> dict[str, Any]:
    numbers = dict.fromkeys(("queued", "due", "running", "done", "failed"), 0)
    by = None if taken is None else taken.get(worker, [])
    return {"worker": worker, **numbers, "oldest_due": None, "taken_by": by}


async def _add_recent(database: Database, worker: str, row: dict[str, Any]) -> None:
    present_time = format_time(now())
    hour_ago = format_time(now() - _RECENT)
    for name, state in (("done", State.DONE), ("failed", State.ERRORED)):
        counted = await database.reduced("jobs/by_state", [worker, state, hour_ago], [worker, state, {}])
        row[name] += counted[0]["value"] if counted else 0
    due = await database.reduced("queue/due", [worker, "due", ""], [worker, "due", present_time])
    row["due"] += due[0]["value"] if due else 0
    oldest = await database.view("queue/due", [worker, "due", "0"], [worker, "due", present_time], limit=1)
    if oldest and (row["oldest_due"] is None or oldest[0]["key"][2] < row["oldest_due"]):
        row["oldest_due"] = oldest[0]["key"][2]
