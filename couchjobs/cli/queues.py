"""`queues`: what waits, runs and has ended, by worker type."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from couchjobs.cli.options import Domain, Json, Prefix, Tenants, Url, cell, print_json, tenants_of, with_connection
from couchjobs.cluster.pauses import paused
from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.cluster.peers import takers
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import ConfigurationError, Forbidden, NotFound, Unauthorized
from couchjobs.jobs.job import State
from couchjobs.jobs.lanes import stores
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

_RECENT = timedelta(hours=1)


def queues(
    url: Url = None, domain: Domain = None, prefix: Prefix = None, tenants: Tenants = None, as_json: Json = False
) -> None:
    """Show each type of worker: what is queued, due and running, what came of the last hour's jobs, who takes it."""
    rows = with_connection(url, domain, prefix, lambda connection: _queues_of(connection, tenants))
    if as_json:
        print_json(rows)
        return
    whose = ["tenant"] if tenants else []
    table = Table(*whose, "worker", "queued", "due", "running", "done 1h", "failed 1h", "oldest due", "taken by")
    for row in rows:
        by = "?" if row["taken_by"] is None else ", ".join(row["taken_by"]) or "nobody"
        by += " (paused)" * (row["paused"] is True)
        values = [row[name] for name in (*whose, "worker", "queued", "due", "running", "done", "failed")]
        table.add_row(*map(cell, (*values, row["oldest_due"] or "", by)))
    Console(width=None if Console().is_terminal else 200).print(table)


async def _queues_of(connection: Connection, tenants: str | None) -> list[dict[str, Any]]:
    """Return the rows of these tenants, with their prefixes where they are many."""
    if tenants is None:
        return await _queues(connection, connection.settings.tenant)
    rows: list[dict[str, Any]] = []
    for db in await tenants_of(connection, tenants):
        rows += [{"tenant": db.key, **row} for row in await _queues(connection, db)]
    return rows


async def _queues(connection: Connection, tenant: Prefixer) -> list[dict[str, Any]]:
    """Return a row for each worker type; done and failed are of the jobs that were queued within the last hour."""
    try:
        taken: dict[str, list[str]] | None = takers(await connection.control.with_prefix(DAEMON), tenant)
        stopped = await paused(connection, tenant)
    except (Forbidden, NotFound, Unauthorized):
        taken, stopped = None, frozenset()
    rows: dict[str, dict[str, Any]] = {}
    for name in taken or {}:
        rows[name] = _row_of(name, taken)
    for store in stores(connection, tenant):
        try:
            counted = await store.database.reduced("jobs/by_state", [""], [{}], group_level=2)
        except NotFound as error:
            raise ConfigurationError(f"{error}; run `couchjobs init` first") from error
        for one in counted:
            worker, state = one["key"]
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
