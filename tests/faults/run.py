"""`scripts/faults`: run the scenarios, print a table or JSON; exit code 1 where something was lost or done twice."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parent.parent)]

from ground import FULL, SHORT, ground  # noqa: E402
from scenarios import SCENARIOS, Scenario, node_stopped_and_started  # noqa: E402

from couchjobs.log import configure_logging  # noqa: E402

COLUMNS = ("scenario", "jobs", "lost", "doubles", "unexplained_doubles", "stuck", "conflicts_left", "recovery_s")


def is_bad(row: dict[str, Any]) -> bool:
    """Whether the row holds what must never be."""
    return bool(row["lost"] or row["unexplained_doubles"] or row["stuck"] or row["conflicts_left"])


async def run(name: str, scenario: Scenario, *, short: bool, url: str | None, processes: int) -> dict[str, Any]:
    """Run one scenario and return its row."""
    async with ground(SHORT if short else FULL, url, processes) as it:
        await scenario(it)
        return await it.count(name)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Break couchjobs on purpose and count what becomes of its jobs.")
    parser.add_argument("--short", action="store_true", help="300 jobs a scenario and quick beats, not 2,000")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--url", help="an Apache CouchDB with an administrator; the embedded server unless given")
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of scenarios")
    parser.add_argument("--processes", type=int, default=0, help="child processes of each daemon")
    parser.add_argument("--node-command", help="stops and starts a node of the cluster: called with stop, then start")
    given = parser.parse_args()
    configure_logging("error")
    scenarios = {name: one for name, one in SCENARIOS.items() if not given.only or int(name.split()[0]) in given.only}
    if given.node_command:
        scenarios["11 node stopped and started"] = partial(node_stopped_and_started, command=given.node_command)
    rows = []
    for name, scenario in scenarios.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(asyncio.run(run(name, scenario, short=given.short, url=given.url, processes=given.processes)))
    if given.json:
        print(orjson.dumps(rows).decode())
    else:
        table = Table(*(name.replace("_", " ") for name in COLUMNS))
        for row in rows:
            table.add_row(*(str(row[name]) for name in COLUMNS))
        Console(width=None if Console().is_terminal else 120).print(table)
    sys.exit(any(is_bad(row) for row in rows))


if __name__ == "__main__":
    main()
