"""The engine: draining a queue, working while jobs come in, and the latency of a job at rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from couchjobs.bench.limit import job_documents, write_all
from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import Connection
from couchjobs.prefixer import Prefixer
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.context import WorkerContext

_SLOTS = 1000
_SINGLE_JOBS = 200


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
async def _daemon(connection: Connection, db: Prefixer, counter: Counter) -> AsyncIterator[CouchBroker]:
    broker = CouchBroker(connection, db)
    await broker.start_workers(
        WorkersList([WorkerConfig(worker_type="noop", worker_func=counter.work, concurrency=_SLOTS)])
    )
    try:
        yield broker
    finally:
        await broker.shutdown_workers()


async def measure_drain(connection: Connection, db: Prefixer, count: int) -> float:
    """Return the jobs a second of a daemon that starts with `count` jobs in the queue."""
    database = connection.database(db.database(connection.settings.jobs_doctype))
    await write_all(database, job_documents(count, "noop"))
    counter = Counter()
    started = time.perf_counter()
    async with _daemon(connection, db, counter) as broker:
        await counter.wait(broker, count)
        return count / (time.perf_counter() - started)


async def measure_end_to_end(connection: Connection, db: Prefixer, count: int) -> tuple[float, list[float]]:
    """Return the jobs a second of a daemon that waits while `count` jobs are pushed, and the latencies at rest in s."""
    database = connection.database(db.database(connection.settings.jobs_doctype))
    counter = Counter()
    async with _daemon(connection, db, counter) as broker:
        latencies: list[float] = []
        for document in job_documents(_SINGLE_JOBS, "noop"):
            sent = time.perf_counter()
            await database.put(document)
            latencies.append(await counter.wait_for(document["_id"]) - sent)
        await counter.wait(broker, _SINGLE_JOBS)
        documents = job_documents(count, "noop")
        started = time.perf_counter()
        await write_all(database, documents)
        await counter.wait(broker, _SINGLE_JOBS + count)
        return count / (time.perf_counter() - started), latencies
