"""`queues`: what waits, runs and has ended, by worker type."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from couchjobs.cli.options import (
    Domain,
    Json,
    Prefix,
    Tenants,
    Url,
    cell,
    print_json,
    tenants_of,
    with_connection,
)
from couchjobs.couch.connection import Connection
from couchjobs.errors import NotFound
from couchjobs.overview import queues as overview

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
        table.add_row(*map(cell, (*values, row["oldest_due"] or ("not known" if row["due"] else ""), by)))
    Console(width=None if Console().is_terminal else 200).print(table)


async def _queues_of(connection: Connection, tenants: str | None) -> list[dict[str, Any]]:
    """Return the rows of these tenants, with their prefixes where they are many."""
    if tenants is None:
        return await overview(connection, connection.settings.tenant)
    rows: list[dict[str, Any]] = []
    for db in await tenants_of(connection, tenants):
        with suppress(NotFound):  # it has no databases yet
            rows += [{"tenant": db.key, **row} for row in await overview(connection, db)]
    return rows
