"""What does not come with an empty database: finished jobs in front of which a daemon starts, bursts, many tenants."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from couchjobs.bench.cpu import family_cpu_s, server_cpu_s
from couchjobs.bench.daemons import daemons, environment_of, forget_daemons, memory_mb, until_there
from couchjobs.bench.engine import until_quiet
from couchjobs.bench.figures import latencies
from couchjobs.bench.limit import job_documents, measure_limit, write_all, write_finished
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document
from couchjobs.installation import install
from couchjobs.jobs.job import ENDED, Job
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

_LEVELS = (0, 10_000, 100_000)
_FULL = (*_LEVELS, 1_000_000)
_DRAINED = 5000
_QUEUED = 100_000
_SINGLE = 200
_SINGLE_PAUSE_S = 0.02
_LOOK_S = 0.25
_LONGEST_S = 600.0
_AFTER_BURST_S = 120.0
_AFTER_BURST_JOBS_PER_S = 100
_TENANT_JOBS = 400
_TENANT_JOBS_PER_S = 10
_CALM_CPU = 0.3
_IDLE_S = 30.0
_READ_TOGETHER = 1000
_PRODUCERS = 16


async def measure_growth(connection: Connection, name: str, *, full: bool) -> list[dict[str, Any]]:
    """Return, for each number of finished jobs, how a daemon starts and drains jobs, and how long single ones wait.

    The last entry is of a daemon that starts with 100,000 jobs in the queue.
    """
    db = Prefixer("bench", f"{name}-growth")
    await install(connection, db)
    database = connection.database(db.database(connection.settings.jobs_doctype))
    found: list[dict[str, Any]] = []
    finished = 0
    for level in _FULL if full else _LEVELS:
        await write_finished(database, level - finished)
        finished = level + _DRAINED + _SINGLE
        await until_quiet(connection.server)
        found.append({"finished": level} | await _level(connection, db, database, _DRAINED))
    await until_quiet(connection.server)
    found.append({"finished": finished, "queued": _QUEUED} | await _level(connection, db, database, _QUEUED))
    return found


async def _level(connection: Connection, db: Prefixer, database: Database, count: int) -> dict[str, Any]:
    queued = job_documents(count, "noop")
    await write_all(database, queued)
    began = time.time()
    async with daemons(connection, db) as [daemon]:
        jobs = await _ended(database, [document["_id"] for document in queued], daemon)
        first = min(_at(job.started_at) for job in jobs)
        last = max(_at(job.finished_at) for job in jobs)
        waits = await _single_jobs(database, daemon)
        memory = memory_mb(daemon)
    await forget_daemons(connection)
    return {
        "drain_jobs_per_s": round(count / (last - first), 1),
        "latency_ms": latencies(waits),
        "start_s": round(first - began, 2),
        "memory_mb": memory,
    }


def _at(moment: Any) -> float:
    return float(moment.timestamp())


async def _single_jobs(database: Database, daemon: Process) -> list[float]:
    """Write jobs one by one, and return how long each waited, in seconds."""
    written: list[str] = []
    for document in job_documents(_SINGLE, "noop"):
        document["queued_at"] = format_time(now())
        await database.put(document)
        written.append(document["_id"])
        await asyncio.sleep(_SINGLE_PAUSE_S)
    return _waits(await _ended(database, written, daemon))


def _waits(jobs: Iterable[Job]) -> list[float]:
    return [_at(job.started_at) - _at(job.queued_at) for job in jobs]


async def _ended(database: Database, ids: Iterable[str], daemon: Process) -> list[Job]:
    """Return these jobs once all have ended."""
    waiting, ended = [*ids], list[Job]()
    deadline = time.monotonic() + _LONGEST_S
    while waiting:
        if daemon.returncode is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{len(waiting)} jobs do not end")
        part, rest = waiting[:_READ_TOGETHER], waiting[_READ_TOGETHER:]
        found = [Job.read(one) for one in await _documents(database, part)]
        ended += [job for job in found if job.state in ENDED]
        left = [job.id for job in found if job.state not in ENDED]
        waiting = left + rest
        if left:
            await asyncio.sleep(_LOOK_S)
    return ended


async def _documents(database: Database, ids: list[str]) -> list[Document]:
    return [one.document for one in await database.read(ids) if one.document is not None]


async def measure_burst(connection: Connection, name: str, jobs: int) -> dict[str, Any]:
    """Return how long jobs wait that are written, 100 a second, in the two minutes after so many were drained."""
    db = Prefixer("bench", f"{name}-burst")
    await install(connection, db)
    database = connection.database(db.database(connection.settings.jobs_doctype))
    writer = connection.writer(database.name)
    async with daemons(connection, db) as [daemon]:
        await until_there(connection, 1)
        burst = job_documents(jobs, "noop")
        await write_all(database, burst)
        await _ended(database, [document["_id"] for document in burst], daemon)
        documents = job_documents(int(_AFTER_BURST_S * _AFTER_BURST_JOBS_PER_S), "noop")
        started = time.perf_counter()
        for number, document in enumerate(documents):
            ahead = started + number / _AFTER_BURST_JOBS_PER_S - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            document["queued_at"] = format_time(now())
            writer.submit(document)
        waits = _waits(await _ended(database, [document["_id"] for document in documents], daemon))
    await forget_daemons(connection)
    return {"jobs": jobs, "latency_ms": latencies(waits)}


async def measure_one_by_one(connection: Connection, name: str, jobs: int) -> dict[str, Any]:
    """Return how many jobs a second go from programs that push one after another through a daemon, of its limit.

    The limit is that of batches of as many jobs as there are programs: what one process with so many coroutines writes
    at once, which is measured, too; and what the programs write, a request a job, where no daemon runs beside them.
    """
    bare = Prefixer("bench", f"{name}-bare")
    await install(connection, bare)
    limit, _ = await measure_limit(
        connection.database(bare.database(connection.settings.jobs_doctype)), jobs, batch=_PRODUCERS
    )
    apart = await _pushed_and_done(connection, Prefixer("bench", f"{name}-programs"), jobs, programs=_PRODUCERS)
    together = await _pushed_and_done(connection, Prefixer("bench", f"{name}-coroutines"), jobs, programs=1)
    alone = await _pushed_alone(connection, Prefixer("bench", f"{name}-alone"), jobs)
    return {
        "producers": _PRODUCERS,
        "jobs_per_s": round(apart, 1),
        "limit_jobs_per_s": round(limit, 1),
        "ratio": round(apart / limit, 3),
        "pushed_alone_jobs_per_s": round(alone, 1),
        "ratio_of_pushed_alone": round(apart / alone, 3),
        "one_process_jobs_per_s": round(together, 1),
        "one_process_ratio": round(together / limit, 3),
    }


async def _pushed_and_done(connection: Connection, db: Prefixer, jobs: int, programs: int) -> float:
    """Return the jobs a second, from the first that was pushed to the last that has ended."""
    await install(connection, db)
    await until_quiet(connection.server)
    database = connection.database(db.database(connection.settings.jobs_doctype))
    async with daemons(connection, db) as [daemon]:
        await until_there(connection, 1)
        await _push_from(programs, connection, db, jobs)
        ended = await _ended(database, [job_id async for job_id in _all_ids(database)], daemon)
    await forget_daemons(connection)
    return len(ended) / (max(_at(job.finished_at) for job in ended) - min(_at(job.queued_at) for job in ended))


async def _pushed_alone(connection: Connection, db: Prefixer, jobs: int) -> float:
    """Return the jobs a second that programs push where nobody does the jobs."""
    await install(connection, db)
    await until_quiet(connection.server)
    return jobs / await _push_from(_PRODUCERS, connection, db, jobs)


async def _push_from(count: int, connection: Connection, db: Prefixer, jobs: int) -> float:
    """Push so many jobs from so many programs that begin at once, when all of them are ready; return the seconds."""
    environment = environment_of(connection, db)
    programs: list[Process] = []
    try:
        for number in range(count):
            share = jobs // count + (number < jobs % count)
            command = [sys.executable, "-m", "couchjobs.bench.programs", str(_PRODUCERS // count), str(share)]
            programs.append(await asyncio.create_subprocess_exec(*command, env=environment, stdin=PIPE, stdout=PIPE))
        for program in programs:
            if program.stdout is None or not await program.stdout.readline():
                raise RuntimeError("a program that pushes jobs has failed")
        began = time.perf_counter()
        await asyncio.gather(*(program.communicate(b"\n") for program in programs))
        seconds = time.perf_counter() - began
        if any(program.returncode for program in programs):
            raise RuntimeError("programs that push jobs have failed")
        return seconds
    finally:
        for program in programs:
            if program.returncode is None:
                program.kill()
                await program.wait()


async def _all_ids(database: Database) -> AsyncIterator[str]:
    async for revisions in database.revisions_with_prefix(""):
        for doc_id in revisions:
            if not doc_id.startswith("_design/"):
                yield doc_id


async def measure_tenants(connection: Connection, name: str, count: int) -> dict[str, Any]:
    """Return how long a job of any of so many tenants waits, and what their daemon costs at rest."""
    tenants = [Prefixer("", f"{name}-tenant-{number:05}") for number in range(count)]
    databases = [connection.database(db.database(connection.settings.jobs_doctype)) for db in tenants]
    for database in databases:
        await connection.server.create_database(database.name, connection.settings.shards)
    with tempfile.TemporaryDirectory(prefix="couchjobs-bench-") as folder:
        listed = Path(folder) / "tenants"
        listed.write_text("".join(f"{db.prefix}\n" for db in tenants))
        began = time.monotonic()
        async with daemons(connection, tenants[0], "--tenants", str(listed)) as [daemon]:
            await _until_calm(daemon)
            start_s = time.monotonic() - began
            waits = await _jobs_of_any(databases, daemon)
            await _until_calm(daemon)
            idle, server = await _idle_cpu(connection, daemon)
            memory = memory_mb(daemon)
    await forget_daemons(connection)
    return {
        "n": count,
        "start_s": round(start_s, 1),
        "latency_ms": latencies(waits),
        "idle_cpu_percent": idle,
        "server_idle_cpu_percent": server,
        "memory_mb": memory,
    }


async def _jobs_of_any(databases: list[Database], daemon: Process) -> list[float]:
    written: list[tuple[Database, str]] = []
    for document in job_documents(_TENANT_JOBS, "noop"):
        database = random.choice(databases)  # noqa: S311  any
        document["queued_at"] = format_time(now())
        await database.put(document)
        written.append((database, document["_id"]))
        await asyncio.sleep(1 / _TENANT_JOBS_PER_S)
    return [wait for database, job_id in written for wait in _waits(await _ended(database, [job_id], daemon))]


async def _until_calm(daemon: Process) -> None:
    """Return once a daemon takes hardly any CPU."""
    while True:
        before = family_cpu_s(daemon.pid)
        await asyncio.sleep(5)
        if family_cpu_s(daemon.pid) - before < _CALM_CPU:
            return


async def _idle_cpu(connection: Connection, daemon: Process) -> tuple[float, float | None]:
    """Return the percent of a core that a daemon takes where there is nothing to do, and that the server does."""
    await until_quiet(connection.server)
    before, server_before = family_cpu_s(daemon.pid), server_cpu_s(connection.server.url)
    await asyncio.sleep(_IDLE_S)
    own = round(100 * (family_cpu_s(daemon.pid) - before) / _IDLE_S, 2)
    server = server_cpu_s(connection.server.url)
    if server is None or server_before is None:
        return own, None
    return own, round(100 * (server - server_before) / _IDLE_S, 2)
