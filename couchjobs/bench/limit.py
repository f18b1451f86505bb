"""The database's own limit: each job created, read once, claimed and ended by bare requests, and no engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta

from couchjobs.couch.bulk import read_batch, wait_for_batch, write_batch
from couchjobs.couch.database import Database, Document
from couchjobs.couch.positions import current_sequence
from couchjobs.jobs.ids import new_id
from couchjobs.timestamps import format_time, now

BATCH = 500
_IN_FLIGHT = 2
_WAITS_AFTER_S = 0.03
"""Seconds after which a request for changes waits at the server."""
_NOT_LONG = timedelta()
_TOGETHER = 10_000
"""Documents that are in memory at once."""


def job_documents(count: int, worker: str) -> list[Document]:
    """Return so many queued job documents, as a producer without the library would write them."""
    return [
        {
            "_id": new_id(),
            "worker": worker,
            "message": {"order": number, "customer": "c-1024", "mail": "someone@example.org"},
            "state": "queued",
            "queued_at": format_time(now()),
        }
        for number in range(count)
    ]


async def write_all(database: Database, documents: list[Document], batch: int = BATCH) -> None:
    """Write the documents by bulk requests, two at a time, and set their `_rev`."""
    batches: Iterator[list[Document]] = iter([documents[at : at + batch] for at in range(0, len(documents), batch)])

    async def write() -> None:
        for some in batches:
            await write_batch(database, some)

    await asyncio.gather(*(write() for _ in range(_IN_FLIGHT)))


async def read_all(database: Database, count: int) -> list[Document]:
    """Return the first `count` documents of the feed, read in pages."""
    documents: list[Document] = []
    since = "0"
    while len(documents) < count:
        page, since = await read_batch(database, since, 2 * BATCH)
        documents += page
    return documents


async def measure_limit(database: Database, count: int, batch: int = BATCH) -> tuple[float, float]:
    """Return how many jobs a second the database takes through their life, and through that after their creation.

    `batch`: how many documents a request writes.
    """
    documents = job_documents(count, "none")
    started = time.perf_counter()
    await write_all(database, documents, batch)
    created = time.perf_counter()
    await _claim_and_end(database, await read_all(database, count), batch)
    ended = time.perf_counter()
    return count / (ended - started), count / (ended - created)


async def measure_limit_in_turns(database: Database, count: int, slots: int) -> float:
    """Return how many jobs a second the database claims and ends for so many slots, once they are created.

    In turns: each request ends the jobs of all slots, and claims the next ones for them.
    """
    documents = job_documents(count, "none")
    await write_all(database, documents)
    started = time.perf_counter()
    documents = (await read_all(database, count))[:count]
    ended: list[Document] = []
    for at in range(0, count + slots, slots):
        claimed = documents[at : at + slots]
        _claim(claimed)
        _end(ended)
        await write_batch(database, ended + claimed)
        ended = claimed
    return count / (time.perf_counter() - started)


async def measure_latency_limit(database: Database, count: int) -> list[float]:
    """Return the latencies in s of so many jobs, one after another: written, shown by a feed that waits, claimed."""
    latencies: list[float] = []
    since = await current_sequence(database)
    for document in job_documents(count, "none"):
        shown = asyncio.create_task(wait_for_batch(database, since))
        await asyncio.sleep(_WAITS_AFTER_S)
        sent = time.perf_counter()
        await database.put(document)
        documents, since = await shown
        _claim(documents)
        await write_batch(database, documents)
        latencies.append(time.perf_counter() - sent)
        _end(documents)
        await write_batch(database, documents)
        _, since = await read_batch(database, since, len(documents))
    return latencies


async def _claim_and_end(database: Database, documents: list[Document], batch: int) -> None:
    _claim(documents)
    await write_all(database, documents, batch)
    _end(documents)
    await write_all(database, documents, batch)


def _claim(documents: list[Document]) -> None:
    for number, document in enumerate(documents):
        time_now = format_time(now())
        document |= {
            "state": "running",
            "started_at": time_now,
            "exec_count": 1,
            "claim": {"id": f"{number:016x}", "daemon": "bench-1234-abcdef01", "at": time_now},
        }


def _end(documents: list[Document]) -> None:
    for document in documents:
        document |= {"state": "done", "finished_at": format_time(now())}


async def write_finished(database: Database, count: int, ended_ago: timedelta = _NOT_LONG) -> list[str]:
    """Write so many jobs that have ended that long ago, as a daemon leaves them; return their ids."""
    ids: list[str] = []
    for start in range(0, count, _TOGETHER):
        documents = job_documents(min(_TOGETHER, count - start), "noop")
        for number, document in enumerate(documents):
            at = document["queued_at"] = format_time(now() - ended_ago)
            claim = {"id": f"{number:016x}", "daemon": "bench-1234-abcdef01", "at": at}
            ended = {"state": "done", "started_at": at, "finished_at": at, "exec_count": 1, "seconds": 0.001}
            document |= {**ended, "claim": claim}
        await write_all(database, documents)
        ids += [document["_id"] for document in documents]
    return ids
