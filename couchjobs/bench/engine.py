"""The engine: draining a queue, working while jobs come in, and the latency of a job at rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from couchjobs.bench.limit import job_documents, write_all
from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.bulk import compact
from couchjobs.couch.client import CouchServer
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.jobs.request import JobRequest
from couchjobs.prefixer import Prefixer
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.context import WorkerContext

_SLOTS = 1000
FEW_SLOTS = 100
"""What many users have: each commit waits for the one before."""
SINGLE_JOBS = 200
"""For the latency at rest, one after another."""
_PUSHERS = 16
_HALF_LOAD_S = 5.0
_LONGEST_COMPACTION = 60
_QUIET_S = 1.5
_LONGEST_WAIT_S = 30.0


async def until_quiet(server: CouchServer) -> None:
    """Wait until the server compacts and indexes nothing: one measurement must not pay for what another one left."""
    loop = asyncio.get_running_loop()
    begun = busy_at = loop.time()
    while loop.time() - busy_at < _QUIET_S and loop.time() - begun < _LONGEST_WAIT_S:
        await asyncio.sleep(0.1)
        if await server.active_tasks():
            busy_at = loop.time()


class Counter:
    """Counts the jobs that have run, and notes when each began."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self._waiting = asyncio.Event()

    async def work(self, ctx: WorkerContext) -> None:
        """Do nothing."""
        self.begun[ctx.id] = time.perf_counter()
        self._waiting.set()

    async def wait(self, broker: CouchBroker, count: int) -> None:
        """Return when so many jobs have run and their ends are stored."""
        while len(self.begun) < count:
            self._waiting.clear()
            await self._waiting.wait()
        await broker.idle()

    async def wait_for(self, job_id: str) -> float:
        """Return when the job began."""
        while job_id not in self.begun:
            self._waiting.clear()
            await self._waiting.wait()
        return self.begun[job_id]


@asynccontextmanager
async def _daemon(
    connection: Connection, db: Prefixer, counter: Counter, slots: int = _SLOTS
) -> AsyncIterator[CouchBroker]:
    broker = CouchBroker(connection, db)
    await broker.start_workers(
        WorkersList([WorkerConfig(worker_type="noop", worker_func=counter.work, concurrency=slots)])
    )
    try:
        yield broker
    finally:
        await broker.shutdown_workers()


async def measure_drain(connection: Connection, db: Prefixer, count: int, slots: int = _SLOTS) -> float:
    """Return the jobs a second of a daemon that starts with `count` jobs in the queue."""
    database = connection.database(db.database(connection.settings.jobs_doctype))
    await write_all(database, job_documents(count, "noop"))
    counter = Counter()
    started = time.perf_counter()
    async with _daemon(connection, db, counter, slots) as broker:
        await counter.wait(broker, count)
        return count / (time.perf_counter() - started)


async def measure_end_to_end(connection: Connection, db: Prefixer, count: int) -> tuple[float, list[float]]:
    """Return the jobs a second of a daemon that waits while `count` jobs are pushed, and the latencies at rest in s."""
    database = connection.database(db.database(connection.settings.jobs_doctype))
    counter = Counter()
    async with _daemon(connection, db, counter) as broker:
        latencies: list[float] = []
        for number, document in enumerate(job_documents(SINGLE_JOBS, "noop"), 1):
            sent = time.perf_counter()
            await database.put(document)
            latencies.append(await counter.wait_for(document["_id"]) - sent)
            await counter.wait(broker, number)  # at rest: the end of the one before is stored
        documents = job_documents(count, "noop")
        started = time.perf_counter()
        await write_all(database, documents)
        await counter.wait(broker, SINGLE_JOBS + count)
        return count / (time.perf_counter() - started), latencies


async def measure_enqueue(connection: Connection, db: Prefixer, count: int) -> tuple[float, float]:
    """Return the jobs a second of `push_jobs`, and of 16 programs that push one job after another."""
    broker = CouchBroker(connection, db)
    started = time.perf_counter()
    await broker.push_jobs(db, (JobRequest(worker_type="none", message=number) for number in range(count)))
    bulk = count / (time.perf_counter() - started)

    async def push() -> None:
        for number in range(count // _PUSHERS // 4):
            await broker.push_job(db, JobRequest(worker_type="none", message=number))

    started = time.perf_counter()
    await asyncio.gather(*(push() for _ in range(_PUSHERS)))
    return bulk, _PUSHERS * (count // _PUSHERS // 4) / (time.perf_counter() - started)


async def measure_half_load(connection: Connection, db: Prefixer, jobs_per_s: float) -> list[float]:
    """Return the latencies in s, from the request to the start, while so many jobs a second are written for 5 s.

    The database should hold some thousand ended jobs: CouchDB compacts the small file of an empty one all the time.
    """
    database = connection.database(db.database(connection.settings.jobs_doctype))
    writer = connection.writer(database.name)
    counter = Counter()
    sent: dict[str, float] = {}
    async with _daemon(connection, db, counter) as broker:
        [first] = job_documents(1, "noop")
        await database.put(first)
        await counter.wait_for(first["_id"])  # the daemon has read what was there before
        documents = job_documents(int(jobs_per_s * _HALF_LOAD_S), "noop")
        started = time.perf_counter()
        for number, document in enumerate(documents):
            ahead = started + number / jobs_per_s - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            sent[document["_id"]] = time.perf_counter()
            writer.submit(document)
        await counter.wait(broker, 1 + len(documents))
    return [counter.begun[job_id] - at for job_id, at in sent.items()]


async def measure_bytes(database: Database) -> float:
    """Return the bytes on disk of one document of the database, after compaction; 0 where the server does not say."""
    await compact(database)
    for _ in range(_LONGEST_COMPACTION):
        info = await database.info()
        if not info.get("compact_running"):
            return float(info.get("sizes", {}).get("file", 0)) / max(1, int(info["doc_count"]))
        await asyncio.sleep(1)
    return 0.0
