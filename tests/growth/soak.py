"""Days in short: jobs come all the time, go a minute after their end, and daemons are replaced by others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from daemons import DaemonProcess
from long_run import LongRun, long_run, memory_mb, say, server_memory_mb

from couchjobs.couch.database import Database
from couchjobs.installation import install
from couchjobs.jobs.retention import store_rules
from couchjobs.prefixer import Prefixer

_TENANTS = 5
_REPLACED_EACH_S = 120.0
_ROW_EACH_S = 60.0
_RULES = [{"worker": "*", "state": "*", "keep": "1m"}]


async def soak(url: str | None, minutes: float, jobs_per_s: float) -> dict[str, Any]:
    """Return a row for each minute: memory, file sizes, documents and latency; and what was lost or ran twice."""
    async with long_run(url) as run:
        everybody = [Prefixer("", f"{run.name}-{number}") for number in range(_TENANTS)]
        for one in everybody:
            await install(run.connection, one)
            await store_rules(run.connection, one, _RULES)
        databases = [run.database("jobs", one) for one in everybody]
        (run.folder / "tenants").write_text("".join(f"{one.prefix}\n" for one in everybody))
        for _ in range(2):
            run.start("--tenants", str(run.folder / "tenants"))
        began, enough = time.time(), asyncio.Event()
        load = asyncio.create_task(run.write(jobs_per_s, until=enough.is_set, databases=databases))
        replacing = asyncio.create_task(_replace(run, enough))
        rows: list[dict[str, Any]] = []
        while time.time() - began < 60 * minutes:
            await asyncio.sleep(_ROW_EACH_S)
            rows.append(await _row(run, databases, round((time.time() - began) / 60)))
            say(str(rows[-1]))
        enough.set()
        await load
        await run.until_all_ran()
        await replacing
        lost, again = run.lost_and_again()
        if lost or again:
            run.tell_daemons()
        return {
            "jobs": len(run.sent),
            "jobs_per_s": jobs_per_s,
            "daemons": len(run.daemons),
            "rows": rows,
            "lost": len(lost),
            "ran_again": len(again),
        }


async def _replace(run: LongRun, enough: asyncio.Event) -> None:
    """Start a daemon now and then, and end the oldest one."""
    while not enough.is_set():
        try:
            await asyncio.wait_for(enough.wait(), _REPLACED_EACH_S)
        except TimeoutError:
            run.start("--tenants", str(run.folder / "tenants"))
            await run.stop(next(_alive(run)))


def _alive(run: LongRun) -> Iterable[DaemonProcess] | Any:
    return (one for one in run.daemons if one.process.poll() is None)


async def _row(run: LongRun, databases: list[Database], minute: int) -> dict[str, Any]:
    infos = [await one.info() for one in databases]
    present = time.time()
    return {
        "minute": minute,
        "latency_ms": run.waits(present - _ROW_EACH_S - 5, present - 5),
        "daemons_mb": [memory_mb({one.process.pid}) for one in _alive(run)],
        "server_mb": server_memory_mb(run.connection.server.url),
        "file_mb": round(sum(one.get("sizes", {}).get("file", 0) for one in infos) / 1e6, 1),
        "documents": sum(one["doc_count"] for one in infos),
    }
