"""`couchjobs daemons`: which there are, what they run, and when each was last heard of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from couchjobs.cli.options import Domain, Json, Prefix, Url, cell, print_json, with_connection
from couchjobs.cluster.peers import PREFIX, tenants_of
from couchjobs.couch.connection import Connection
from couchjobs.errors import NotFound
from couchjobs.overview import row_of_daemon
from couchjobs.timestamps import now, parse_time


def daemons(url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """List the daemons of the tenant, for rolling restarts: one that has ended in order is no longer there."""
    rows = with_connection(url, domain, prefix, _rows)
    if as_json:
        print_json(rows)
        return
    table = Table("daemon", "host", "version", "slots", "workers", "heard of, by its clock")
    for row in rows:
        values = [row[name] for name in ("id", "host", "version", "slots")]
        table.add_row(*map(cell, (*values, ", ".join(row["worker_types"]), _heard(row, now()))))
    Console(width=None if Console().is_terminal else 200).print(table)


async def _rows(connection: Connection) -> list[dict[str, Any]]:
    try:
        documents = await connection.control.with_prefix(PREFIX)
    except NotFound:
        return []
    tenant = connection.settings.tenant.key
    return [row_of_daemon(document) for document in documents if tenant in tenants_of(document)]


def _heard(row: dict[str, Any], present: datetime) -> str:
    try:
        heard = parse_time(row["at"])
    except ValueError:
        heard = None
    if heard is None:
        return "?"
    seconds = max(0.0, (present - heard).total_seconds())
    told = f"{seconds:.0f} s ago"
    return f"{told}: dead, if its clock is right" if seconds > row["dead_after"] > 0 else told
