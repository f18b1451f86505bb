"""`bench`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from couchjobs import process
from couchjobs.bench.compare import compare
from couchjobs.bench.run import BenchResult, Growth, run_bench, run_growth
from couchjobs.cli.options import Json, Url, print_json, settings_of
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.log import configure_logging
from couchjobs.settings import Settings

T = TypeVar("T")


def bench(
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many jobs each measurement takes.")] = 5000,
    scale: Annotated[
        bool, typer.Option("--scale", help="Also with 2, 4 and 8 child processes and daemons; takes minutes.")
    ] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="Instead: a daemon in front of 0, 10,000 and 100,000 finished jobs.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="With --growth: also of 1,000,000.")] = False,
    burst: Annotated[
        bool, typer.Option("--burst", help="Instead: 100 jobs a second in the two minutes after --jobs were drained.")
    ] = False,
    tenants: Annotated[
        int, typer.Option("--tenants", min=0, help="Instead: one daemon of so many tenants.", metavar="N")
    ] = 0,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Instead: 16 programs that push one job after another.")
    ] = False,
    compared: Annotated[
        str | None, typer.Option("--compare", help="A commit to measure beside this checkout, in turn with it.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="With --compare: runs of each commit.")] = 3,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: the database's own limit, and what share of it couchjobs reaches.

    Uses the server of COUCHJOBS_URL, else an embedded one. Works in databases of its own and removes them.
    """
    configure_logging("warning")
    if compared is not None:
        settings = settings_of(url, None, None) if url is not None or "COUCHJOBS_URL" in os.environ else None
        _print_comparison(compare(compared, settings, jobs, rounds), as_json)
        return
    wanted = Growth(growth, full, burst, tenants, one_by_one)
    if wanted:
        print_json(_measure(url, lambda settings: run_growth(settings, jobs, wanted)))
        return
    result = _measure(url, lambda settings: run_bench(settings, jobs, scaled=scale))
    if as_json:
        print_json(result.as_json())
    else:
        _print_table(result)


def _measure(url: str | None, run: Callable[[Settings], Coroutine[Any, Any, T]]) -> T:
    """Run a measurement on the server that is given, or else on an embedded one."""
    if url is not None or "COUCHJOBS_URL" in os.environ:
        return process.run(run(settings_of(url, None, None)))
    print("couchjobs: no COUCHJOBS_URL: measuring the embedded server, in memory", file=sys.stderr)
    with EmbeddedServer() as server:
        settings = settings_of(server.bare_url, None, None).model_copy(update={"url": server.url})
        return process.run(run(settings))


def _print_comparison(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    table = Table("what", f"this / {found['ref']}", title=f"medians of {found['rounds']} runs each")
    for name, ratio in found["ratios"].items():
        table.add_row(name.replace("_", " "), f"{ratio:.3f}")
    Console().print(table)


def _print_table(result: BenchResult) -> None:
    table = Table("what", "jobs/s", "of the limit", title=f"{result.jobs} jobs, {result.server}")
    table.add_row(
        "limit: created, read once, claimed, ended by bare bulk requests", f"{result.limit_jobs_per_s:,.0f}", ""
    )
    table.add_row("the same without their creation", f"{result.drain_limit_jobs_per_s:,.0f}", "")
    table.add_row(
        "drain: jobs queued, then the daemon starts", f"{result.drain_jobs_per_s:,.0f}", f"{result.drain_ratio:.2f}"
    )
    few = f"{result.drain_at_100_slots_ratio:.2f}; {result.drain_ratio_at_100_slots:.2f} of it in turns"
    table.add_row("the same with 100 slots", f"{result.drain_at_100_slots_jobs_per_s:,.0f}", few)
    table.add_row(
        "end to end: the daemon waits, jobs are pushed",
        f"{result.end_to_end_jobs_per_s:,.0f}",
        f"{result.end_to_end_ratio:.2f}",
    )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    latencies = {
        "at rest": result.latency_ms,
        "at rest, by bare requests": result.latency_limit_ms,
        "at half load": result.latency_at_half_load_ms,
    }
    for when, latency in latencies.items():
        console.print(f"latency {when}, from document to start: p50 {latency.p50} ms, p99 {latency.p99} ms")
    pushed = result.enqueue_jobs_per_s
    console.print(f"pushing: {pushed['bulk']:,.0f} jobs/s together, {pushed['single']:,.0f} jobs/s one by one from 16")
    console.print(
        f"{result.cpu_ms_per_job} ms of the daemon's CPU, {result.server_cpu_ms_per_job or '?'} ms of the server's, "
        f"and {result.bytes_per_job:,.0f} bytes on disk a job, "
        f"{result.memory_mb:.0f} MB of memory"
    )
    for kind, shares in (result.scale or {}).items():
        console.print(f"{kind.replace('_', ' ')}: " + ", ".join(f"{n}: {share}" for n, share in shares.items()))
