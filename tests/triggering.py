"""What tests of triggers share."""

from __future__ import annotations

from typing import Any

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker


@worker("note", concurrency=50)
async def note(ctx: WorkerContext) -> None:
    """Do nothing."""


def triggers_of(connection: Connection, db: Prefixer) -> Database:
    """The database of triggers."""
    return connection.database(db.database("triggers"))


async def jobs_of(connection: Connection, db: Prefixer, trigger_id: str) -> list[dict[str, Any]]:
    """All jobs of a trigger, read from the documents."""
    found: list[dict[str, Any]] = []
    async for page in connection.database(db.database("jobs")).all_docs():
        found += [document for document in page if document.get("trigger_id") == trigger_id]
    return found


async def orders_of(connection: Connection, db: Prefixer) -> Database:
    """A source database."""
    await connection.server.create_database(db.database("orders"))
    return connection.database(db.database("orders"))


async def so_many_jobs_of(connection: Connection, db: Prefixer, trigger_id: str, count: int) -> Any:
    """All jobs of a trigger once there are so many, None before."""
    jobs = await jobs_of(connection, db, trigger_id)
    return jobs if len(jobs) >= count else None
