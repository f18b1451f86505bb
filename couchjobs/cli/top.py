"""`top`: queues, throughput and running jobs with their progress, for as long as one looks."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from couchjobs.cli.options import Domain, Prefix, Url, cell, with_connection
from couchjobs.couch.connection import Connection
from couchjobs.errors import Unavailable
from couchjobs.figures import Figures, last_hour
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.queries import JobFilter, newest
from couchjobs.overview import queues
from couchjobs.timestamps import now

_RUNNING = 12
_BAR_WIDTH = 24
_PATIENCE = 10.0
"""Times as long as a look has taken until the next one: a busy server is asked more seldom."""


@dataclass(slots=True)
class _Look:
    """What there is at one moment."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    minute: Figures | None = field(default_factory=Figures)
    """Of the last whole minute; None where this user may not know."""
    trouble: str = ""


def top(
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
) -> None:
    """Show queues, throughput and running jobs with their progress, until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        with_connection(url, domain, prefix, lambda connection: _watch(connection, every, once=once))


async def _watch(connection: Connection, every: float, *, once: bool) -> None:
    console = Console(width=None if Console().is_terminal else 120)
    if once:
        console.print(_shown(await _look(connection)))
        return
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        last = _Look()
        while True:
            began = time.monotonic()
            try:
                last = await _look(connection)
            except Unavailable as error:
                last.trouble = str(error)
            live.update(_shown(last), refresh=True)
            await asyncio.sleep(max(every, _PATIENCE * (time.monotonic() - began) - every))


async def _look(connection: Connection) -> _Look:
    tenant, present = connection.settings.tenant, now()
    rows = await queues(connection, tenant)
    running = await newest(connection, tenant, JobFilter(state=State.RUNNING), _RUNNING)
    minute: Figures | None
    try:
        minute = (await last_hour(connection, tenant, present))[-2].figures
    except Exception:  # noqa: BLE001  who may not see the control database sees the rest
        minute = None
    return _Look(rows, [Job.read(document) for document in running], minute)


def _shown(look: _Look) -> Group:
    parts: list[Any] = [_head(look), _queues(look.rows)]
    if look.running:
        parts.append(_running(look.running))
    return Group(*parts)


def _head(look: _Look) -> Text:
    text = Text("last minute: " + _minute(look.minute))
    if look.trouble:
        text.append("\n").append(cell(f"as it was: {look.trouble}"), style="bold red")
    return text


def _minute(minute: Figures | None) -> str:
    if minute is None:
        return "not known: the control database cannot be read"
    told = f"{minute.done:,} done, {minute.failed:,} failed, {minute.retried:,} tried again"
    return told + (f", waited {minute.waited_s / minute.waited:.3g} s on average" if minute.waited else "")


def _queues(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "worker", *(_number(name) for name in ("due", "queued", "running", "done 1h", "failed 1h")), "taken by"
    )
    for row in rows:
        by = "?" if row["taken_by"] is None else ", ".join(row["taken_by"]) or "nobody"
        if row["paused"]:
            by = "paused"
        values = [f"{row[name]:,}" for name in ("due", "queued", "running", "done", "failed")]
        table.add_row(*map(cell, (row["worker"], *values, by)))
    return table


def _number(name: str) -> Column:
    return Column(name, justify="right")


def _running(jobs: list[Job]) -> Table:
    table = Table("running", "worker", "for", "progress", "")
    present = now()
    for job in jobs:
        since = job.claim.at if job.claim is not None else job.started_at
        told = job.progress if isinstance(job.progress, dict) else {}
        done = told.get("done")
        known = isinstance(done, int | float) and not isinstance(done, bool) and 0 <= done <= 1
        bar = ProgressBar(total=1.0, completed=float(done), width=_BAR_WIDTH) if known and done is not None else ""
        length = f"{max(0.0, (present - since).total_seconds()):.0f} s" if since else ""
        table.add_row(cell(job.id), cell(job.worker), cell(length), bar, cell(told.get("text") or ""))
    return table
