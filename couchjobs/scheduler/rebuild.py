"""Dropping the schedule state of a tenant, and making it anew from triggers and their jobs.

A daemon that runs meanwhile notices at its next tick that the state was replaced, and reads it again. A tick that it
has fired already makes the same job id again: no tick fires twice.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document, Update
from couchjobs.couch.surely import write_or_raise, write_surely
from couchjobs.couch.writer import GroupWriter
from couchjobs.jobs.ids import latest_id
from couchjobs.jobs.lives import FIRST_QUEUED_AT
from couchjobs.jobs.places import HIGHEST
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.states import document_of, state_id, state_of
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import now, parse_time
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.life import begun
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.schedule import BEGINNING

_LOOKED_AT = 50
"""Jobs of a trigger that are looked at for its last tick: others, and retries by hand, lie between."""
_NEWEST = 2000
"""Jobs that are read where the view is not up to date: those of the last minutes, on a busy server."""
_AHEAD = timedelta(minutes=1)


async def clean(connection: Connection, db: Prefixer) -> int:
    """Delete the schedule state of all triggers of the tenant; return of how many."""
    triggers_database = db.database(connection.settings.triggers_doctype)
    writer = connection.writer(connection.control.name)
    documents = await connection.control.with_prefix(state_id(triggers_database, ""))
    gone: list[Document] = [{"_id": doc["_id"], "_rev": doc["_rev"], "_deleted": True} for doc in documents]
    await asyncio.gather(*(write_surely(writer, document) for document in gone))
    return len(gone)


async def rebuild(connection: Connection, db: Prefixer, store: TriggerStore) -> int:
    """Write the schedule state of all triggers of the tenant anew; return of how many.

    The last job of a trigger that no person asked for tells its last tick, which every later tick is counted from, or
    the state before, where that is later: its jobs may have been removed. A trigger of which neither tells begins now.
    States are replaced one by one, not dropped first: a daemon that fires meanwhile always finds one.
    """
    scheduled = {
        infos.id: (infos, parsed)
        for infos, parsed in await store.parsed()
        if not isinstance(parsed, EventRules | OnDemand)
    }
    last_ticks: dict[str, datetime] = {}
    for lane in connection.settings.all_lanes:
        of_lane = {
            trigger_id
            for trigger_id, (infos, _) in scheduled.items()
            if connection.settings.lane_of(infos.worker) == lane
        }
        last_ticks |= await _last_ticks(JobStore(connection, db, lane), of_lane)
    old = {state["_id"]: state for state in await connection.control.with_prefix(state_id(store.database.name, ""))}
    writer = connection.writer(connection.control.name)
    states: list[Document] = []
    for trigger_id, (infos, schedule) in scheduled.items():
        state = begun(schedule, infos, now())
        if (before := state_of(old.get(state_id(store.database.name, trigger_id)))) is not None:
            state = replace(state, seed=before.seed or state.seed, anchor=min(state.anchor, before.anchor))
            if schedule.once:
                state = replace(state, passed=before.passed)
        last = last_ticks.get(trigger_id)
        if last is not None:
            state = replace(state, anchor=last, last=last, fired=last, passed=last, slot=schedule.slot(last))
        if (
            before is not None
            and before.meaning == state.meaning
            and (last or BEGINNING) < (before.last or BEGINNING) <= now()
        ):  # the jobs that tell of it have been removed
            state = replace(before, rev=state.rev)
        elif before is not None and before.meaning == state.meaning and state.passed < before.passed <= now():
            state = replace(state, passed=before.passed, anchor=before.anchor)  # it was enabled since, or edited
        states.append({"_id": state_id(store.database.name, trigger_id), **document_of(state, infos)})
    gone = old.keys() - {state["_id"] for state in states}
    await asyncio.gather(
        *(_replace(writer, state, old.get(state["_id"])) for state in states),
        *(write_surely(writer, {"_id": one, "_rev": old[one]["_rev"], "_deleted": True}) for one in gone),
    )
    return len(states)


async def _replace(writer: GroupWriter, state: Document, old: Document | None) -> None:
    """Write the state over the present one, which a daemon that fires may change meanwhile."""
    while True:
        answer = await write_or_raise(writer, {**state, "_rev": old["_rev"]} if old is not None else state)
        if answer.stored:
            return
        old = await writer.database.find(state["_id"])


async def _last_ticks(store: JobStore, trigger_ids: set[str]) -> dict[str, datetime]:
    """Return the last tick of each trigger that has one: from the newest jobs, whose ids come by time, or by the view.

    The view is brought up to date once, and then read as it is.
    """
    found: dict[str, datetime] = {}
    async for documents in store.database.newest(latest_id(now() + _AHEAD), _NEWEST):
        for document in documents:
            trigger_id, tick = document.get("trigger_id"), _tick_of(document)
            if trigger_id in trigger_ids and tick is not None:
                found[trigger_id] = max(tick, found.get(trigger_id, tick))
    update: Update = "true"
    for trigger_id in trigger_ids - found.keys():
        low = [trigger_id]
        rows = await store.database.view(
            "jobs/by_trigger", [trigger_id, HIGHEST], low, limit=_LOOKED_AT, descending=True, update=update
        )
        update = "false"
        made = await store.database.get_many(row["id"] for row in rows)
        if ticks := [tick for document in made.values() if (tick := _tick_of(document)) is not None]:
            found[trigger_id] = max(ticks)
    return found


def _tick_of(document: Document) -> datetime | None:
    """Return at which tick a trigger has made the job: a retry by hand has it queued later; None where nobody can say.

    Jobs of older versions tell no tick: they were queued at it.
    """
    if document.get("manual_execution"):
        return None
    for name in ("tick", FIRST_QUEUED_AT, "queued_at"):
        with suppress(ValueError):
            if isinstance(told := document.get(name), str) and (at := parse_time(told)) is not None:
                return at
    return None
