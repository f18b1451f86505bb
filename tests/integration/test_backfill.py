"""`triggers backfill`: a trigger fires for documents that were there before it, each once."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from copies import put_on_all
from triggering import jobs_of, note, orders_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, Refused
from couchjobs.jobs.job import Job, State
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.backfill import Backfill
from couchjobs.scheduler.store import TriggerStore

PAID = {"type": "@event", "arguments": "orders:CREATED:paid:status", "worker": "note", "message": None}


async def fill(connection: Connection, db: Prefixer, trigger: dict[str, Any], trigger_id: str = "paid") -> Backfill:
    """The backfill of a trigger that has just been stored."""
    await triggers_of(connection, db).put({"_id": trigger_id, **trigger})
    return Backfill(connection, await TriggerStore(connection, db).get(trigger_id))


async def test_backfill_when_run_twice_and_beside_a_daemon_then_each_document_fires_once(
    connection: Connection, db: Prefixer, start: Any
) -> None:
    """By parts; what the feed has fired is among those that are there already."""
    orders = await orders_of(connection, db)
    docs = [{"_id": f"o-{number:04}", "status": "paid" if number % 2 else "open"} for number in range(1200)]
    docs += [{"_id": "gone", "status": "paid", "_deleted": True}, {"_id": "_design/none", "status": "paid"}]
    await connection.server.request("POST", f"{orders.path}/_bulk_docs", body=orjson.dumps({"docs": docs}))
    backfill = await fill(connection, db, PAID)
    await start(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
    await orders.put({"_id": "o-9999", "status": "paid"})
    await eventually(lambda: jobs_of(connection, db, "paid"), 15)
    counted = await backfill.count()
    assert (counted.matching, counted.there) == (601, 1)
    first = await backfill.run(limit=10)
    assert (first.fired, first.there) == (10, 0)
    rest = await backfill.run()
    assert (rest.matching, rest.fired, rest.there, rest.refused) == (601, 590, 11, 0)
    assert (await backfill.run()).fired == 0
    jobs = await jobs_of(connection, db, "paid")
    assert len(jobs) == 601
    assert {(job["event"]["verb"], job["event"]["doc"]["status"]) for job in jobs} == {("CREATED", "paid")}

    async def all_done() -> bool:
        return all(job["state"] == State.DONE for job in await jobs_of(connection, db, "paid"))

    await eventually(all_done, 30)


async def test_backfill_when_couchdb_never_takes_one_job_then_the_others_fire_and_it_says_why(
    connection: Connection, db: Prefixer
) -> None:
    """It would end there each time it is run, and what comes behind would never fire."""
    orders = await orders_of(connection, db)
    for name in ("a", "bad", "c"):
        await orders.put({"_id": name, "status": "paid"})
    backfill = await fill(connection, db, PAID)
    store = backfill._broker.pusher.store

    async def refuse(job: Job) -> Any:
        if "bad" in str(job.event):
            raise Refused("a validation function of somebody's")
        return await store(job)

    backfill._broker.pusher.store = refuse  # type: ignore[method-assign]
    done = await backfill.run()
    assert (done.matching, done.fired, done.refused) == (3, 2, 1)
    found = await connection.database(db.database("jobs")).with_prefix("")
    states = sorted(job["state"] for job in found if "state" in job)
    assert states == ["errored", "queued", "queued"]


async def test_backfill_when_a_document_has_changed_since_it_fired_then_it_has_fired(
    connection: Connection, db: Prefixer
) -> None:
    """One receipt an order, at whatever revision."""
    orders = await orders_of(connection, db)
    rev = await orders.put({"_id": "o:1", "status": "paid"})
    backfill = await fill(connection, db, PAID)
    assert (await backfill.run()).fired == 1
    await orders.put({"_id": "o:1", "_rev": rev, "status": "paid", "note": "edited"})
    await orders.put({"_id": "o:2", "status": "paid"})
    done = await backfill.run()
    assert (done.matching, done.fired, done.there) == (2, 1, 1)


@pytest.mark.parametrize(
    ("trigger", "jobs"),
    [
        ({**PAID, "arguments": "orders:UPDATED:!=:status"}, 3),
        ({**PAID, "arguments": "orders:DELETED"}, 0),
        ({**PAID, "arguments": "orders:ALL:o-1,o-2 orders:CREATED"}, 3),
        ({**PAID, "arguments": "nothing:CREATED"}, 0),
        ({**PAID, "debounce": "1s"}, 1),
    ],
)
async def test_backfill_when_rules_are_of_other_kinds_then_as_the_feed_would(
    connection: Connection, db: Prefixer, trigger: dict[str, Any], jobs: int
) -> None:
    """A document that is there is created, or else updated; a window makes one job."""
    orders = await orders_of(connection, db)
    for number in range(3):
        await put_on_all(orders, {"_id": f"o-{number}", "status": "paid"})
    done = await (await fill(connection, db, trigger)).run()
    assert done.fired == jobs

    async def all_there() -> bool:  # on the copy that lists them, too
        return len(await jobs_of(connection, db, "paid")) == jobs

    await eventually(all_there)


async def test_backfill_when_the_trigger_fires_otherwise_or_may_not_then_refused(
    connection: Connection, db: Prefixer
) -> None:
    """And says why."""
    with pytest.raises(ConfigurationError, match="only an @event"):
        await fill(connection, db, {**PAID, "type": "@every", "arguments": "1h"})
    with pytest.raises(ConfigurationError, match="disabled"):
        await fill(connection, db, {**PAID, "disabled": True}, "other")
    backfill = await fill(connection, db, {**PAID, "arguments": "triggers:ALL"}, "third")
    with pytest.raises(ConfigurationError, match="couchjobs"):
        await backfill.run()
