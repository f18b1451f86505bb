"""Databases that are deleted and made again under load."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from copies import remake
from triggering import jobs_of, note, orders_of, triggers_of
from waiting import eventually

from couchjobs.broker.sweeper import Sweeper
from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

EVENT = {"type": "@event", "arguments": "orders", "worker": "note", "message": None}
EVERY = {"type": "@every", "arguments": "1s", "worker": "note", "message": None}


async def test_triggers_when_their_database_is_wiped_then_new_ones_fire_and_old_ones_do_not(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Within seconds, without a restart."""
    triggers = triggers_of(connection, db)
    await triggers.put({"_id": "old", **EVERY})
    system = await begin(note)
    await eventually(lambda: jobs_of(connection, db, "old"), 15)
    await connection.server.delete_database(triggers.name)
    await eventually(lambda: "old" not in system.scheduler.triggers.scheduled, 30)
    await remake(connection, triggers.name)
    await triggers.put({"_id": "new", **EVERY})
    await eventually(lambda: jobs_of(connection, db, "new"), 30)


async def test_source_when_wiped_under_load_then_what_comes_after_fires_once(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Also where it is made again at once, with the same first documents."""
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
    await asyncio.sleep(0.3)
    for number in range(20):
        await orders.put({"_id": f"order-{number}"})
    await eventually(lambda: jobs_of(connection, db, "seen"), 15)
    await remake(connection, orders.name)
    for number in range(20, 40):
        await orders.put({"_id": f"order-{number}"})

    async def all_fired() -> bool:
        ids = [job["event"]["doc"]["_id"] for job in await jobs_of(connection, db, "seen")]
        assert len(ids) == len(set(ids))
        return {f"order-{number}" for number in range(20, 40)} <= set(ids)

    await eventually(all_fired, 30)


async def test_jobs_when_wiped_while_one_runs_then_new_ones_run(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """What ran is lost with its database; the daemon's memory of it is too."""
    jobs = connection.database(db.database("jobs"))
    await begin(note)
    for number in range(20):
        await jobs.put({"_id": f"job-{number}", "worker": "note", "message": None, "state": "queued"})
    await remake(connection, jobs.name)
    await eventually(lambda: jobs.find("_design/queue"), 30)
    await jobs.put({"_id": "again", "worker": "note", "message": None, "state": "queued"})
    assert (await wait(db, "again", 30)).state is State.DONE


async def test_views_when_a_job_is_gone_as_it_ends_then_looked_at(
    connection: Connection, db: Prefixer, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the database was made anew between two requests, and no answer has told: a sweep is a minute away."""
    monkeypatch.setattr(Sweeper, "note_views", lambda *_: None)
    runs, goes_on = asyncio.Event(), asyncio.Event()

    @worker("waits")
    async def waits(ctx: WorkerContext) -> None:
        runs.set()
        await goes_on.wait()

    jobs = connection.database(db.database("jobs"))
    await begin(waits)
    await jobs.put({"_id": "job", "worker": "waits", "message": None, "state": "queued"})
    await asyncio.wait_for(runs.wait(), 15)
    for doc_id in ("job", "_design/jobs"):
        await jobs.delete(doc_id, (await jobs.get(doc_id))["_rev"])
    goes_on.set()
    await eventually(lambda: jobs.find("_design/jobs"), 10)


async def test_everything_when_compacted_while_it_runs_then_nothing_is_lost(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Jobs, triggers, control and sources."""
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
    await asyncio.sleep(0.3)
    names = [orders.name, connection.control.name, db.database("jobs"), db.database("triggers")]
    for number in range(30):
        rev = await orders.put({"_id": f"order-{number}"})
        await orders.put({"_id": f"order-{number}", "_rev": rev, "n": 1})
        if number % 10 == 0:
            for name in names:
                await connection.server.request("POST", f"{connection.database(name).path}/_compact", body=b"{}")

    async def all_fired() -> bool:
        ids = {job["event"]["doc"]["_id"] for job in await jobs_of(connection, db, "seen")}
        return len(ids) == 30

    await eventually(all_fired, 30)
