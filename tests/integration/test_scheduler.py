"""Triggers by document, fired by the clock and by changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import ClosedError, MalformedTriggerError, TriggerNotFoundError
from couchjobs.jobs.queries import get_jobs
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


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


async def test_event_when_documents_match_then_a_job_each_with_the_event(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """orders:CREATED,UPDATED:paid:status fires for those and no other."""
    orders = await orders_of(connection, db)
    system = await start(note)
    trigger = {
        "_id": "paid",
        "type": "@event",
        "arguments": "orders:CREATED,UPDATED:paid:status",
        "worker": "note",
        "message": {"m": 1},
    }
    await triggers_of(connection, db).put(trigger)
    await eventually(lambda: "paid" in system.scheduler.triggers.events, 1)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "a", "status": "paid", "total": 3})
    rev = await orders.put({"_id": "b", "status": "open"})
    await orders.put({"_id": "_design/x", "status": "paid"})
    jobs = await eventually(lambda: jobs_of(connection, db, "paid"))
    rev = await orders.put({"_id": "b", "_rev": rev, "status": "paid"})
    await eventually(lambda: _count(connection, db, "paid", 2))
    await orders.delete("b", rev)
    await orders.put({"_id": "c", "status": "paid"})
    jobs = await eventually(lambda: _count(connection, db, "paid", 3))
    by_doc = {job["event"]["doc"]["_id"]: job for job in jobs}
    assert by_doc.keys() == {"a", "b", "c"}
    assert by_doc["a"]["event"]["verb"] == "CREATED"
    assert by_doc["a"]["event"]["doc"]["total"] == 3
    assert by_doc["b"]["event"]["verb"] == "UPDATED"
    assert by_doc["b"]["event"]["old"]["status"] == "open"
    assert "_revisions" not in by_doc["b"]["event"]["doc"]
    assert by_doc["a"]["message"] == {"m": 1}
    assert by_doc["a"]["event"]["domain"] == "test.example"
    assert len(await get_jobs(db, "paid")) == 3


async def _count(connection: Connection, db: Prefixer, trigger_id: str, count: int) -> Any:
    jobs = await jobs_of(connection, db, trigger_id)
    return jobs if len(jobs) >= count else None


async def test_event_when_value_changed_or_document_deleted_then_fires_with_the_old_one(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """`!=` looks at the parent revision; a deletion carries the document that was."""
    orders = await orders_of(connection, db)
    await start(note)
    await triggers_of(connection, db).put(
        {
            "_id": "changed",
            "type": "@event",
            "arguments": "orders:UPDATED:!=:status orders:DELETED:paid:status",
            "worker": "note",
            "message": None,
        }
    )
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    rev = await orders.put({"_id": "a", "status": "open"})
    rev = await orders.put({"_id": "a", "_rev": rev, "status": "open", "total": 1})
    await asyncio.sleep(0)
    rev = await orders.put({"_id": "a", "_rev": rev, "status": "paid"})
    jobs = await eventually(lambda: jobs_of(connection, db, "changed"))
    assert [(job["event"]["verb"], job["event"]["old"]["status"]) for job in jobs] == [("UPDATED", "open")]
    await orders.delete("a", rev)
    jobs = await eventually(lambda: _count(connection, db, "changed", 2))
    deleted = next(job for job in jobs if job["event"]["verb"] == "DELETED")
    assert deleted["event"]["old"]["status"] == "paid"


async def test_event_when_no_daemon_ran_then_all_fire_once(connection: Connection, db: Prefixer, start: Start) -> None:
    """Stop, write 500 documents, start: 500 jobs, none twice."""
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put(
        {"_id": "t", "type": "@event", "arguments": "orders:CREATED", "worker": "note", "message": None}
    )
    system = await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await system.shutdown()
    writer = connection.writer(orders.name)
    await asyncio.gather(*(writer.write({"_id": f"order-{n:03}", "n": n}) for n in range(500)))
    systems = [await start(note), await start(note)]

    async def all_done() -> bool:
        jobs = await jobs_of(connection, db, "t")
        return len(jobs) >= 500 and all(job["state"] == "done" for job in jobs)

    await eventually(all_done, 30)
    jobs = await jobs_of(connection, db, "t")
    assert len({job["event"]["doc"]["_id"] for job in jobs}) == len(jobs) == 500
    for system in systems:
        await system.shutdown()


async def test_event_when_feed_is_replayed_from_zero_then_nothing_fires_twice(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Ids make a rewound feed harmless."""
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put(
        {"_id": "t", "type": "@event", "arguments": "orders", "worker": "note", "message": None}
    )
    system = await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    for number in range(20):
        await orders.put({"_id": f"order-{number}"})
    before = await eventually(lambda: _count(connection, db, "t", 20))
    await system.shutdown()
    checkpoint = (await connection.control.with_prefix("checkpoint:"))[0]
    await connection.control.put({**checkpoint, "seq": "0"})
    await start(note)

    async def caught_up() -> bool:
        return (await connection.control.with_prefix("checkpoint:"))[0]["seq"] != "0"

    await eventually(caught_up)
    after = await jobs_of(connection, db, "t")
    assert {job["_id"] for job in after} == {job["_id"] for job in before}
    assert all(job["exec_count"] == 1 for job in after if job["state"] == "done")


async def test_event_when_database_does_not_exist_then_waited_for(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """All documents of a database that came after the trigger fire."""
    await triggers_of(connection, db).put(
        {"_id": "t", "type": "@event", "arguments": "orders", "worker": "note", "message": None}
    )
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    orders = await orders_of(connection, db)
    await orders.put({"_id": "first"})
    await eventually(lambda: jobs_of(connection, db, "t"))


async def test_event_when_documents_arrive_by_replication_then_fires(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A replicated document is a change like any other."""
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put(
        {"_id": "t", "type": "@event", "arguments": "orders", "worker": "note", "message": None}
    )
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    import orjson

    body = orjson.dumps(
        {
            "docs": [{"_id": "far", "_rev": "2-abc", "_revisions": {"start": 2, "ids": ["abc", "def"]}}],
            "new_edits": False,
        }
    )
    await connection.server.request("POST", f"{orders.path}/_bulk_docs", body=body)
    (job,) = await eventually(lambda: jobs_of(connection, db, "t"))
    assert job["event"]["verb"] == "UPDATED"


async def test_event_when_trigger_is_disabled_changed_or_deleted_then_noticed(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """What happens while a trigger is disabled does not fire later."""
    orders = await orders_of(connection, db)
    system = await start(note)
    known = system.scheduler.triggers.events
    triggers = triggers_of(connection, db)
    trigger = {"_id": "t", "type": "@event", "arguments": "orders:CREATED:one", "worker": "note", "message": None}
    rev = await triggers.put(trigger)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    rev = await triggers.put({**trigger, "_rev": rev, "disabled": True})
    await eventually(lambda: "t" not in known, 1)
    await eventually(lambda: _no_checkpoint(connection))
    await orders.put({"_id": "one"})
    rev = await triggers.put({**trigger, "_rev": rev, "arguments": "orders:CREATED:one,two"})
    await eventually(lambda: "t" in known, 1)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "two"})
    (job,) = await eventually(lambda: jobs_of(connection, db, "t"))
    assert job["event"]["doc"]["_id"] == "two"
    await triggers.delete("t", rev)
    await eventually(lambda: "t" not in known, 1)


async def _no_checkpoint(connection: Connection) -> bool:
    return not await connection.control.with_prefix("checkpoint:")


async def test_every_when_daemon_restarts_then_keeps_its_rhythm(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Ticks are at anchor + n periods; those that were missed make one late job."""
    await triggers_of(connection, db).put(
        {"_id": "e", "type": "@every", "arguments": "1s", "worker": "note", "message": None}
    )
    system = await start(note)
    await eventually(lambda: _count(connection, db, "e", 2))
    await system.shutdown()
    stopped = now()
    await asyncio.sleep(2.2)
    await start(note)
    restarted = len(await jobs_of(connection, db, "e"))
    await eventually(lambda: _count(connection, db, "e", restarted + 2))
    (state,) = await connection.control.with_prefix("schedule:")
    anchor = parse_time(state["anchor"])
    assert anchor is not None
    ticks = sorted(parse_time(job["queued_at"]) for job in await jobs_of(connection, db, "e"))  # type: ignore[type-var]
    offsets = [(tick - anchor).total_seconds() for tick in ticks if tick is not None]
    assert all(offset == int(offset) >= 1 for offset in offsets), offsets
    assert len(set(offsets)) == len(offsets)
    late = [tick for tick in ticks if tick is not None and stopped < tick < stopped + timedelta(seconds=2)]
    assert len(late) <= 2


@pytest.mark.parametrize("two", [False, True])
async def test_at_and_in_when_their_time_has_come_then_fire_once_and_are_gone(
    connection: Connection, db: Prefixer, start: Start, two: bool
) -> None:
    """One daemon or two; an @at that is late by less than a day still fires, an older one does not."""
    triggers = triggers_of(connection, db)
    for trigger_id, kind, arguments in (
        ("soon", "@at", format_time(now() + timedelta(seconds=0.5))),
        ("in", "@in", "300ms"),
        ("late", "@at", format_time(now() - timedelta(hours=23))),
        ("too late", "@at", format_time(now() - timedelta(hours=25))),
    ):
        await triggers.put({"_id": trigger_id, "type": kind, "arguments": arguments, "worker": "note", "message": None})
    await start(note)
    if two:
        await start(note)

    async def gone() -> bool:
        return (await triggers.get_many(["soon", "in", "late", "too late"])).keys() == {"too late"}

    await eventually(gone)
    for trigger_id in ("soon", "in", "late"):
        assert len(await jobs_of(connection, db, trigger_id)) == 1
    assert not await jobs_of(connection, db, "too late")

    async def no_state() -> bool:
        return {state["_id"].split(":")[-1] for state in await connection.control.with_prefix("schedule:")} == {
            "too late"
        }

    await eventually(no_state)


async def test_skip_when_ticks_were_missed_then_no_late_job(connection: Connection, db: Prefixer, start: Start) -> None:
    """misfire: skip."""
    await connection.control.put(
        {
            "_id": f"schedule:{db.database('triggers')}:e",
            "type": "@every",
            "arguments": "1h",
            "anchor": format_time(now() - timedelta(minutes=90)),
        }
    )
    trigger = {"_id": "e", "type": "@every", "arguments": "1h", "worker": "note", "message": None, "misfire": "skip"}
    await triggers_of(connection, db).put(trigger)
    await start(note)

    async def noted() -> bool:
        return "last" in (await connection.control.with_prefix("schedule:"))[0]

    await eventually(noted)
    assert not await jobs_of(connection, db, "e")


async def test_api_when_used_then_adds_gets_lists_and_deletes(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The Scheduler protocol."""
    system = await start(note)
    scheduler = system.scheduler
    infos = await scheduler.add_trigger(db, TriggerInfos(type="@every", arguments="1h", worker="note", message=1))
    assert (await scheduler.get_trigger(db, infos.id)).arguments == "1h"
    assert [found.id for found in await scheduler.get_all_triggers(db)] == [infos.id]
    await scheduler.poll_scheduler(now())
    await scheduler.delete_trigger(db, infos.id)
    with pytest.raises(TriggerNotFoundError):
        await scheduler.get_trigger(db, infos.id)
    with pytest.raises(TriggerNotFoundError):
        await scheduler.delete_trigger(db, infos.id)
    with pytest.raises(MalformedTriggerError):
        await scheduler.add_trigger(db, TriggerInfos(type="@every", arguments="soon", worker="note"))
    with pytest.raises(ClosedError):
        await scheduler.start_scheduler(system.broker)
    await system.shutdown()
    with pytest.raises(ClosedError):
        await scheduler.poll_scheduler(now())


async def test_webhook_when_fired_then_a_job_with_the_payload(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Only a @webhook that is enabled; nobody is told why not."""
    system = await start(note)
    triggers = triggers_of(connection, db)
    await triggers.put({"_id": "hook", "type": "@webhook", "arguments": "", "worker": "note", "message": None})
    await triggers.put({"_id": "off", "type": "@webhook", "worker": "note", "message": None, "disabled": True})
    await triggers.put({"_id": "every", "type": "@every", "arguments": "1h", "worker": "note", "message": None})
    job = await system.scheduler.fire_webhook("hook", {"a": 1}, manual=True)
    assert (job.payload, job.trigger_id, job.manual_execution) == ({"a": 1}, "hook", True)
    for trigger_id in ("off", "every", "nothing", "_design/x", ""):
        with pytest.raises(TriggerNotFoundError, match="no webhook with that id"):
            await system.scheduler.fire_webhook(trigger_id, None)


async def test_debounce_when_200_payloads_come_in_a_window_then_one_job_with_all(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """From four writers on two daemons; the next one after the job was claimed opens another window."""
    systems = [await start(note), await start(note)]
    triggers = triggers_of(connection, db)
    await triggers.put({"_id": "hook", "type": "@webhook", "worker": "note", "message": None, "debounce": "5s"})

    async def write(writer: int) -> set[str]:
        scheduler = systems[writer % 2].scheduler
        jobs = await asyncio.gather(*(scheduler.fire_webhook("hook", [writer, number]) for number in range(50)))
        return {job.id for job in jobs}

    ids = set().union(*await asyncio.gather(*(write(writer) for writer in range(4))))
    assert len(ids) == 1
    (job,) = await jobs_of(connection, db, "hook")
    assert job["debounced"] is True
    assert sorted(job["payload"]["payloads"]) == [[writer, number] for writer in range(4) for number in range(50)]

    async def done() -> bool:
        return all(job["state"] == "done" for job in await jobs_of(connection, db, "hook"))

    await eventually(done)
    other = await systems[0].scheduler.fire_webhook("hook", "later")
    assert other.id not in ids


async def test_debounce_when_events_come_in_a_window_then_one_job_without_event_data(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The window is fixed, not pushed back by later events."""
    orders = await orders_of(connection, db)
    trigger = {"_id": "t", "type": "@event", "arguments": "orders", "worker": "note", "message": 1, "debounce": "5s"}
    await triggers_of(connection, db).put(trigger)
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    for number in range(30):
        await orders.put({"_id": f"order-{number}"})
    (job,) = await eventually(lambda: jobs_of(connection, db, "t"))
    assert "event" not in job
    assert job["message"] == 1

    async def done() -> bool:
        return all(job["state"] == "done" for job in await jobs_of(connection, db, "t"))

    await eventually(done)
    assert len(await jobs_of(connection, db, "t")) <= 2
    await orders.put({"_id": "later"})
    await eventually(lambda: _count(connection, db, "t", 2))


async def test_client_job_when_a_client_ends_it_then_ended(connection: Connection, db: Prefixer, start: Start) -> None:
    """No daemon runs it; the API and a bare update both end it."""
    from couchjobs.broker.couch import CouchBroker
    from couchjobs.jobs.queries import get_job, wait
    from couchjobs.jobs.request import JobRequest
    from couchjobs.jobs.store import JobStore

    await start(note)
    broker, store = CouchBroker(connection), JobStore(connection, db)
    one = await broker.push_job(db, JobRequest(worker_type="client", message=1))
    other = await broker.push_job(db, JobRequest(worker_type="client", message=2))
    assert one is not None
    assert other is not None
    assert await store.ack(await get_job(db, one.id))
    document = await store.database.get(other.id)
    await store.database.put({**document, "state": "errored", "error": "not today"})
    assert (await wait(db, one.id, 5)).state == "done"
    assert (await wait(db, other.id, 5)).error == "not today"


async def test_rebuild_when_two_daemons_run_then_no_tick_is_doubled_and_none_skipped(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The rhythm stays: the last job tells the last tick."""
    triggers = triggers_of(connection, db)
    for number in range(20):
        await triggers.put(
            {"_id": f"e{number:02}", "type": "@every", "arguments": "1s", "worker": "note", "message": None}
        )
    systems = [await start(note), await start(note)]
    await eventually(lambda: _count(connection, db, "e00", 2))
    await systems[0].scheduler.rebuild(db)
    await eventually(lambda: _count(connection, db, "e00", 4))
    await systems[1].scheduler.clean()
    await eventually(lambda: _count(connection, db, "e00", 7))
    for number in range(20):
        found = [parse_time(job["queued_at"]) for job in await jobs_of(connection, db, f"e{number:02}")]
        ticks = sorted(tick for tick in found if tick is not None)
        gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(ticks)]
        assert all(gap >= 0.9 for gap in gaps), "doubled"
        assert all(gap <= 2.1 for gap in gaps), "skipped"


async def test_debounce_when_shorter_than_a_round_trip_then_still_a_job(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A window that is over before its job is made has its job all the same."""
    system = await start(note)
    await triggers_of(connection, db).put({"_id": "hook", "type": "@webhook", "worker": "note", "debounce": "1us"})
    job = await asyncio.wait_for(system.scheduler.fire_webhook("hook", 1), 5)
    assert job.payload == {"payloads": [1]}
