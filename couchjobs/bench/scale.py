"""More than one process: how fast a queue drains with child processes, and with several daemons."""

from __future__ import annotations

import asyncio
import os
import time

from couchjobs.bench.cpu import family_cpu_s
from couchjobs.bench.daemons import daemons as run_daemons
from couchjobs.bench.daemons import forget_daemons, until_there
from couchjobs.bench.engine import until_quiet
from couchjobs.bench.limit import job_documents, write_all
from couchjobs.couch.changes import ChangesFollower
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, generation
from couchjobs.installation import install
from couchjobs.prefixer import Prefixer

_SETTLE_S = 3.0
_PAUSE_S = 0.25
_GENERATION_OF_AN_END = 3
_BUSY_JOBS = 1200


async def drain_with(
    connection: Connection, db: Prefixer, count: int, *, daemons: int = 1, processes: int = 0, worker: str = "noop"
) -> tuple[float, float]:
    """Return the jobs a second of so many daemons as processes, each with so many children, and their share of all CPU.

    They run already. The clock starts when the first jobs are written, which takes little of the time, and stops when
    the last has ended.
    """
    await install(connection, db)
    database = connection.database(db.database(connection.settings.jobs_doctype))
    async with run_daemons(connection, db, "--processes", str(processes), count=daemons) as running:
        await until_there(connection, daemons)
        await asyncio.sleep(_SETTLE_S)
        cpu, started = sum(family_cpu_s(process.pid) for process in running), time.perf_counter()
        await write_all(database, job_documents(count, worker))
        await until_done(database, count)
        seconds = time.perf_counter() - started
        cpu = sum(family_cpu_s(process.pid) for process in running) - cpu
        return count / seconds, cpu / seconds / (os.cpu_count() or 1)


async def until_done(database: Database, count: int) -> None:
    """Follow the feed until so many jobs are done: no view is asked while they are."""
    follower, ended = ChangesFollower(database, "0"), set[str]()
    while True:
        page = await follower.next_page()
        follower.done(page)
        ended |= {change.doc_id for change in page.changes if generation(change.rev) >= _GENERATION_OF_AN_END}
        if len(ended) >= count:
            return
        await asyncio.sleep(_PAUSE_S)


async def scale(connection: Connection, name: str, jobs: int) -> dict[str, dict[str, float]]:
    """Return the jobs a second of many children or daemons, as shares of one daemon that runs the functions itself."""
    rates: dict[str, dict[str, float]] = {"processes": {}, "daemons": {}, "busy_processes": {}}
    shares: dict[str, float] = {}
    plans = [("daemons", n, {"daemons": n}, "noop", jobs) for n in (1, 2, 4, 8)]
    plans += [("processes", n, {"processes": n}, "noop", jobs) for n in (1, 2, 4, 8)]
    plans += [("busy_processes", n, {"processes": n}, "busy", min(jobs, _BUSY_JOBS)) for n in (0, 1, 2, 4)]
    for kind, number, given, worker, count in plans:
        db = Prefixer("bench", f"{name}-{kind}-{number}")
        await until_quiet(connection.server)
        rates[kind][str(number)], share = await drain_with(connection, db, count, worker=worker, **given)
        if kind == "daemons":
            shares[str(number)] = round(share, 3)
        for doctype in (connection.settings.jobs_doctype, connection.settings.triggers_doctype):
            await connection.server.delete_database(db.database(doctype))
        await forget_daemons(connection)
    one = {"daemons": rates["daemons"]["1"], "processes": rates["daemons"]["1"]}
    one["busy_processes"] = rates["busy_processes"]["0"]
    ratios = {kind: {n: round(rate / one[kind], 3) for n, rate in found.items()} for kind, found in rates.items()}
    return ratios | {"daemons_cpu": shares}
