"""`bench`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from couchjobs.bench.run import BenchResult, run_bench
from couchjobs.cli.options import Json, Url, print_json, settings_of
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.log import configure_logging


def bench(
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many jobs each measurement takes.")] = 5000,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: the database's own limit, and what share of it couchjobs reaches.

    Uses the server of COUCHJOBS_URL, else an embedded one. Works in databases of its own and removes them.
    """
    configure_logging("warning")
    if url is not None or "COUCHJOBS_URL" in os.environ:
        result = uvloop.run(run_bench(settings_of(url, None, None), jobs))
    else:
        print("couchjobs: no COUCHJOBS_URL: measuring the embedded server, in memory", file=sys.stderr)
        with EmbeddedServer() as server:
            result = uvloop.run(
                run_bench(settings_of(server.bare_url, None, None).model_copy(update={"url": server.url}), jobs)
            )
    if as_json:
        print_json(result.as_json())
    else:
        _print_table(result)


def _print_table(result: BenchResult) -> None:
    table = Table("what", "jobs/s", "of the limit", title=f"{result.jobs} jobs, {result.server}")
    table.add_row(
        "limit: created, read once, claimed, ended by bare bulk requests", f"{result.limit_jobs_per_s:,.0f}", ""
    )
    table.add_row(
        "drain: jobs queued, then the daemon starts", f"{result.drain_jobs_per_s:,.0f}", f"{result.drain_ratio:.2f}"
    )
    table.add_row(
        "end to end: the daemon waits, jobs are pushed",
        f"{result.end_to_end_jobs_per_s:,.0f}",
        f"{result.end_to_end_ratio:.2f}",
    )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print(
        f"latency at rest, from document to start: p50 {result.latency_ms.p50} ms, p99 {result.latency_ms.p99} ms"
    )
