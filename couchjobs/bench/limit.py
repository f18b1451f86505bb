"""The database's own limit: each job created, read once, claimed and ended by bare bulk requests, and no engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from couchjobs.couch.bulk import read_batch, write_batch
from couchjobs.couch.database import Database, Document
from couchjobs.jobs.ids import new_id
from couchjobs.timestamps import format_time, now

BATCH = 500
_IN_FLIGHT = 2


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


async def write_all(database: Database, documents: list[Document]) -> None:
    """Write the documents by bulk requests, two at a time, and set their `_rev`."""
    batches: Iterator[list[Document]] = iter([documents[at : at + BATCH] for at in range(0, len(documents), BATCH)])

    async def write() -> None:
        for batch in batches:
            await write_batch(database, batch)

    await asyncio.gather(*(write() for _ in range(_IN_FLIGHT)))


async def read_all(database: Database, count: int) -> list[Document]:
    """Return the first `count` documents of the feed, read in pages."""
    documents: list[Document] = []
    since = "0"
    while len(documents) < count:
        page, since = await read_batch(database, since, 2 * BATCH)
        documents += page
    return documents


async def measure_limit(database: Database, count: int) -> float:
    """Return how many jobs a second the database takes through their life."""
    documents = job_documents(count, "none")
    started = time.perf_counter()
    await write_all(database, documents)
    documents = await read_all(database, count)
    for number, document in enumerate(documents):
        time_now = format_time(now())
        document |= {
            "state": "running",
            "started_at": time_now,
            "exec_count": 1,
            "claim": {"id": f"{number:016x}", "daemon": "bench-1234-abcdef01", "at": time_now},
        }
    await write_all(database, documents)
    for document in documents:
        document |= {"state": "done", "finished_at": format_time(now())}
    await write_all(database, documents)
    return count / (time.perf_counter() - started)
