"""Dropping the schedule state of a tenant, and making it anew from triggers and their jobs.

A daemon that runs meanwhile notices at its next tick that the state was replaced, and reads it again. A tick that it
has fired already makes the same job id again: no tick fires twice.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

from couchjobs.couch.connection import Connection
from couchjobs.couch.settle import settle
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.on_demand import OnDemand

if TYPE_CHECKING:
    from couchjobs.couch.database import Document
    from couchjobs.scheduler.store import TriggerStore

SCHEDULE = "schedule:"
_LOOKED_AT = 50
_AT_A_TIME = 20


def state_id(triggers_database: str, trigger_id: str) -> str:
    """Return the id of the document that holds the schedule state of a trigger."""
    return f"{SCHEDULE}{triggers_database}:{trigger_id}"


async def clean(connection: Connection, db: Prefixer) -> int:
    """Delete the schedule state of all triggers of the tenant; return of how many."""
    triggers_database = db.database(connection.settings.triggers_doctype)
    writer = connection.writer(connection.control.name)
    documents = await connection.control.with_prefix(state_id(triggers_database, ""))
    gone: list[Document] = [{"_id": doc["_id"], "_rev": doc["_rev"], "_deleted": True} for doc in documents]
    await asyncio.gather(*(settle(writer, document) for document in gone))
    return len(gone)


async def rebuild(connection: Connection, db: Prefixer, store: TriggerStore) -> int:
    """Write the schedule state of all triggers of the tenant anew; return of how many.

    The last job of a trigger that no person asked for tells its last tick, which every later tick is counted from. A
    trigger without jobs begins now.
    """
    await clean(connection, db)
    limit = asyncio.Semaphore(_AT_A_TIME)
    writer = connection.writer(connection.control.name)

    async def write(infos_id: str, rules: Document) -> None:
        async with limit:
            last = await _last_tick(JobStore(connection, db), infos_id)
        state: Document = {
            "_id": state_id(store.database.name, infos_id),
            **rules,
            "anchor": format_time(last or now()),
        }
        if last is not None:
            state["last"] = format_time(last)
        await settle(writer, state)

    scheduled = [infos for infos, parsed in await store.parsed() if not isinstance(parsed, EventRules | OnDemand)]
    await asyncio.gather(
        *(write(infos.id, rules_of(infos.type, infos.arguments, infos.timezone)) for infos in scheduled)
    )
    return len(scheduled)


def rules_of(kind: str, arguments: str, timezone: str | None) -> Document:
    """Return what schedule state belongs to: where a trigger says something else, the state is another's."""
    return {"type": kind, "arguments": arguments, "timezone": timezone}


async def _last_tick(store: JobStore, trigger_id: str) -> datetime | None:
    rows = await store.database.view(
        "jobs/by_trigger", [trigger_id, {}], [trigger_id], limit=_LOOKED_AT, descending=True
    )
    for row in rows:
        if not row["value"][1] and row["key"][1]:
            return parse_time(row["key"][1])
    return None
