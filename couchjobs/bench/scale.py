"""More than one process: how fast a queue drains with child processes, and with several daemons."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from couchjobs.bench.limit import job_documents, write_all
from couchjobs.couch.changes import ChangesFollower
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, generation
from couchjobs.installation import install
from couchjobs.prefixer import Prefixer

_LOOK_S = 0.05
_SETTLE_S = 3.0
_PAUSE_S = 0.25
_GENERATION_OF_AN_END = 3


async def drain_with(
    connection: Connection, db: Prefixer, count: int, *, daemons: int = 1, processes: int = 0, worker: str = "noop"
) -> float:
    """Return the jobs a second of so many daemons as processes, each with so many children, that run already.

    The clock starts when the first jobs are written, which takes little of the time, and stops when the last has ended.
    """
    await install(connection, db)
    database = connection.database(db.database(connection.settings.jobs_doctype))
    environment = {
        **os.environ,
        "COUCHJOBS_URL": connection.settings.url,
        "COUCHJOBS_DOMAIN": db.domain,
        "COUCHJOBS_PREFIX": db.db_prefix,
        "COUCHJOBS_CONTROL_DB": connection.settings.control_db,
    }
    command = [sys.executable, "-m", "couchjobs", "run", "couchjobs.bench.noop", "--processes", str(processes)]
    command += ["--log-level", "error"]
    running = [await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(daemons)]
    try:
        await _until_running(connection, daemons)
        started = time.perf_counter()
        await write_all(database, job_documents(count, worker))
        await _until_done(database, count)
        return count / (time.perf_counter() - started)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            await process.wait()


async def _until_running(connection: Connection, daemons: int) -> None:
    while True:
        if len(await connection.control.with_prefix("daemon:")) >= daemons:
            break
        await asyncio.sleep(_LOOK_S)
    await asyncio.sleep(_SETTLE_S)


async def _until_done(database: Database, count: int) -> None:
    """Follow the feed until so many jobs are done: no view is asked while they are."""
    follower, ended = ChangesFollower(database, "0"), set[str]()
    while len(ended) < count:
        page = await follower.next_page()
        ended |= {change.doc_id for change in page.changes if generation(change.rev) >= _GENERATION_OF_AN_END}
        await asyncio.sleep(_PAUSE_S)


async def scale(connection: Connection, name: str, jobs: int) -> dict[str, dict[str, float]]:
    """Return the jobs a second with 1, 2, 4 and 8 children, and with as many daemons, as shares of one process."""
    control = connection.control
    rates: dict[str, dict[str, float]] = {"processes": {}, "daemons": {}, "busy_processes": {}}
    plans = [("daemons", n, {"daemons": n}, "noop", jobs) for n in (1, 2, 4, 8)]
    plans += [("processes", n, {"processes": n}, "noop", jobs) for n in (1, 2, 4, 8)]
    plans += [("busy_processes", n, {"processes": n}, "busy", min(jobs, 500)) for n in (1, 2, 4)]
    for kind, number, given, worker, count in plans:
        db = Prefixer("bench", f"{name}-{kind}-{number}")
        rates[kind][str(number)] = await drain_with(connection, db, count, worker=worker, **given)
        for doctype in (connection.settings.jobs_doctype, connection.settings.triggers_doctype):
            await connection.server.delete_database(db.database(doctype))
        for daemon in await control.with_prefix("daemon:"):
            await control.delete(daemon["_id"], daemon["_rev"])
    one = rates["daemons"]["1"]
    shares = {kind: {n: round(rate / one, 3) for n, rate in rates[kind].items()} for kind in ("daemons", "processes")}
    busy = rates["busy_processes"]
    return shares | {"busy_processes": {n: round(rate / busy["1"], 3) for n, rate in busy.items()}}
