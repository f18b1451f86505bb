"""The safety nets, each with the wake-up off before which it stands: what nobody tells of is found all the same.

Their intervals are short here, for each test is about one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.broker.feed import JobsFeed
from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler import feeds as feeds_module
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.waits import ChangedIds

Start = Callable[..., Any]


async def hear_nothing(*_: Any) -> None:
    """Follow nothing."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("document", [{"worker": "note", "message": 1}, {"worker": ["note"], "message": 1}])
async def test_jobs_when_the_feed_tells_of_none_then_the_sweep_finds_them(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]
) -> None:
    """Also one whose worker is no text, which is of no type."""
    monkeypatch.setattr(JobsFeed, "follow", hear_nothing)
    await start(note, sweep_interval=1)
    await connection.database(db.database("jobs")).put({"_id": "one", "state": "queued", **document})
    ended = await wait(db, "one", 20)
    assert ended.state is (State.DONE if document["worker"] == "note" else State.ERRORED)


async def test_triggers_when_their_feed_tells_of_none_then_the_sweep_finds_them(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is new, and one that has been disabled."""
    load = TriggerSet._load

    async def load_alone(triggers: TriggerSet) -> None:
        await load(triggers)
        await hear_nothing()

    monkeypatch.setattr(TriggerSet, "_load_and_follow", load_alone)
    triggers = triggers_of(connection, db)
    every = {"_id": "old", "type": "@every", "arguments": "1s", "worker": "note", "message": None}
    rev = await triggers.put(every)
    system = await start(note, sweep_interval=1)
    await eventually(lambda: jobs_of(connection, db, "old"))
    await triggers.put({**every, "_rev": rev, "disabled": True})
    await triggers.put({**every, "_id": "new", "type": "@in", "arguments": "10ms"})
    await eventually(lambda: so_many_jobs_of(connection, db, "new", 1))
    await eventually(lambda: system.scheduler.triggers.scheduled["old"].infos.disabled)


async def test_events_when_nobody_tells_that_there_is_a_trigger_then_sources_are_looked_at_anyhow(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed of its database begins a while later."""
    monkeypatch.setattr(feeds_module, "_SOURCES_S", 1.0)
    orders = await orders_of(connection, db)
    system = await start(note)
    system.scheduler._feeds._changed = ChangedIds()  # which nobody sets
    trigger = {"_id": "t", "type": "@event", "arguments": "orders:CREATED", "worker": "note", "message": None}
    await triggers_of(connection, db).put(trigger)
    await eventually(lambda: "t" in system.scheduler.triggers.events, 30)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 30)
    await orders.put({"_id": "o"})
    await eventually(lambda: so_many_jobs_of(connection, db, "t", 1), 30)
