"""A job that is pushed again with the id of one that was removed is a new one, and so is what it pushes."""

from __future__ import annotations

from typing import Any

from copies import delete_surely, put_on_all
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.prefixer import Prefixer
from couchjobs.testing import TestSystem
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker


@worker("ship")
async def ship(ctx: WorkerContext, message: Any) -> Any:
    """Do it."""
    return message


@worker("charge", max_exec_count=2, retry_delay=0.1)
async def charge(ctx: WorkerContext, message: Any) -> None:
    """Have it shipped; the first try fails after that."""
    await ctx.push("ship", message)
    if ctx.exec_count == 1:
        raise OSError("the line is cut")


async def is_shipped(database: Database, *messages: Any) -> bool:
    """Whether that was, and nothing else."""
    return sorted(one["message"] for one in await database.with_prefix("order:")) == [*messages]


async def test_job_when_its_id_is_used_again_then_what_it_pushes_is_new_and_else_it_is_not(
    connection: Connection, db: Prefixer, start: Any
) -> None:
    """Neither a further try nor a retry by hand begins another life; whoever queued it, and by whatever client."""
    await start(charge, ship)
    client, database = Couchjobs.over(connection), connection.database(db.database("jobs"))
    await client.push("charge", 1, id="order")
    assert (await client.wait("order", 20)).exec_count == 2
    await eventually(lambda: is_shipped(database, 1))
    for _ in range(2):
        await client.retry("order", again=True)
        await client.wait("order", 20)
    assert await is_shipped(database, 1)
    await delete_surely(database, "order")
    await put_on_all(database, {"_id": "order", "worker": "charge", "message": 2, "state": "queued"})
    assert (await client.wait("order", 20)).exec_count == 2
    await eventually(lambda: is_shipped(database, 1, 2))


async def test_memory_when_an_id_is_used_again_then_the_same() -> None:
    """As with CouchDB."""
    async with TestSystem(charge, ship) as system:
        for message in (1, 2):
            await system.push("charge", message, id="order")
            await system.advance("1m")
            system.assert_pushed("ship", message, times=1)
            del system.broker.jobs["order"]
        system.assert_pushed("ship", times=2)
