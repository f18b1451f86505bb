"""Triggers that documents fire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.jobs.queries import get_jobs
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler import events

Start = Callable[..., Any]


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
    await eventually(lambda: "paid" in system.scheduler.triggers.events)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "a", "status": "paid", "total": 3})
    rev = await orders.put({"_id": "b", "status": "open"})
    await orders.put({"_id": "_design/x", "status": "paid"})
    jobs = await eventually(lambda: jobs_of(connection, db, "paid"))
    follower = system.scheduler._feeds._followed["orders"].follower
    await eventually(lambda: follower.past.seen.knows("b"))  # else both changes are one row, of a document that is new
    rev = await orders.put({"_id": "b", "_rev": rev, "status": "paid"})
    await eventually(lambda: so_many_jobs_of(connection, db, "paid", 2))
    await orders.delete("b", rev)
    await orders.put({"_id": "c", "status": "paid"})
    jobs = await eventually(lambda: so_many_jobs_of(connection, db, "paid", 3))
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
    rev = await orders.put({"_id": "a", "_rev": rev, "status": "paid"})
    jobs = await eventually(lambda: jobs_of(connection, db, "changed"))
    assert [(job["event"]["verb"], job["event"]["old"]["status"]) for job in jobs] == [("UPDATED", "open")]
    await orders.delete("a", rev)
    jobs = await eventually(lambda: so_many_jobs_of(connection, db, "changed", 2))
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
    before = await eventually(lambda: so_many_jobs_of(connection, db, "t", 20))
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
    system = await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await eventually(lambda: system.scheduler._feeds._followed["orders"].follower.past.seen is not None)
    import orjson

    body = orjson.dumps(
        {
            "docs": [{"_id": "far", "_rev": "2-abc", "_revisions": {"start": 2, "ids": ["abc", "def"]}}],
            "new_edits": False,
        }
    )
    await connection.server.request("POST", f"{orders.path}/_bulk_docs", body=body)
    (job,) = await eventually(lambda: jobs_of(connection, db, "t"))
    assert job["event"]["verb"] == "CREATED", "it is new to this database"


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"type": "@cron", "arguments": "often"},
        {"type": "@event", "arguments": "customers:CREATED:a:b:c:d:e"},
        {"type": "@event", "arguments": "orders:NEVER", "disabled": True},
    ],
)
async def test_event_when_trigger_is_disabled_changed_or_deleted_then_noticed(
    connection: Connection, db: Prefixer, start: Start, bad: dict[str, Any]
) -> None:
    """What happens while a trigger is disabled does not fire later, whatever other triggers cannot be understood."""
    orders = await orders_of(connection, db)
    system = await start(note)
    known = system.scheduler.triggers.events
    triggers = triggers_of(connection, db)
    if bad:
        await triggers.put({"_id": "bad", "worker": "note", "message": None, **bad})
        await eventually(lambda: system.scheduler.triggers.bad)
    trigger = {"_id": "t", "type": "@event", "arguments": "orders:CREATED:one", "worker": "note", "message": None}
    rev = await triggers.put(trigger)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    rev = await triggers.put({**trigger, "_rev": rev, "disabled": True})
    await eventually(lambda: "t" not in known)
    await eventually(lambda: _no_checkpoint(connection))
    await orders.put({"_id": "one"})
    rev = await triggers.put({**trigger, "_rev": rev, "arguments": "orders:CREATED:one,two"})
    await eventually(lambda: "t" in known)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "two"})
    (job,) = await eventually(lambda: jobs_of(connection, db, "t"))
    assert job["event"]["doc"]["_id"] == "two"
    await triggers.delete("t", rev)
    await eventually(lambda: "t" not in known)


async def test_event_when_its_trigger_cannot_be_understood_for_a_while_then_it_goes_on_where_it_was(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """What happened meanwhile fires once it is mended, however it was broken."""
    orders = await orders_of(connection, db)
    system = await start(note)
    triggers = triggers_of(connection, db)
    trigger = {"_id": "t", "type": "@event", "arguments": "orders:CREATED", "worker": "note", "message": None}
    rev = await triggers.put(trigger)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    rev = await triggers.put({**trigger, "_rev": rev, "type": "@evnt", "arguments": 7})
    await eventually(lambda: system.scheduler.triggers.bad)
    await orders.put({"_id": "meanwhile"})
    rev = await triggers.put({**trigger, "_rev": rev, "arguments": ""})
    await eventually(lambda: "@event needs" in system.scheduler.triggers.bad.get("t", ""))
    await triggers.put({**trigger, "_rev": rev})
    (job,) = await eventually(lambda: jobs_of(connection, db, "t"))
    assert job["event"]["doc"]["_id"] == "meanwhile"


async def _no_checkpoint(connection: Connection) -> bool:
    return not await connection.control.with_prefix("checkpoint:")


async def test_seen_when_most_of_it_was_purged_then_forgotten_and_nothing_fires_twice(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a database whose documents come and are purged: memory holds what is there, and not what ever was."""
    monkeypatch.setattr(events, "_MOST_GONE", 3)
    monkeypatch.setattr(events, "_REMEMBERED_EACH_S", 0.0)
    monkeypatch.setattr(events, "_FEW", 0)
    monkeypatch.setattr(events, "_SHARE", 1)
    monkeypatch.setattr(events, "rows_of", lambda _info: 0)
    orders = await orders_of(connection, db)
    system = await start(note)
    trigger = {"_id": "new", "type": "@event", "arguments": "orders:CREATED", "worker": "note", "message": None}
    await triggers_of(connection, db).put(trigger)
    feeds = system.scheduler._feeds
    await eventually(lambda: feeds._followed and feeds._followed["orders"].follower.past.seen is not None)
    past = feeds._followed["orders"].follower.past
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    purged = [f"purged{number}" for number in range(20)]
    for doc_id in purged:
        past.seen.add(doc_id, "1-a", deleted=False)
    assert len(past.seen) >= 20
    for number in range(3):
        await orders.put({"_id": f"o{number}"})
        await eventually(lambda count=number + 1: so_many_jobs_of(connection, db, "new", count))
    await eventually(lambda: not any(map(past.seen.knows, purged)))
    assert past.seen.knows("o0")
    await orders.put({"_id": "o0", "_rev": (await orders.get("o0"))["_rev"], "changed": True})
    await orders.put({"_id": "last"})
    await eventually(lambda: so_many_jobs_of(connection, db, "new", 4))
    await eventually(lambda: past.seen.knows("last"))
    fired = await jobs_of(connection, db, "new")
    assert sorted(job["event"]["doc"]["_id"] for job in fired) == ["last", "o0", "o1", "o2"]
