"""Triggers that wait for more of the same."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from fault_proxy import FaultProxy, Refusal
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import BadDocumentError, Unavailable
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.settings import Settings

Start = Callable[..., Any]


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


async def test_debounce_when_some_payloads_are_bad_then_the_others_arrive_each_once(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """What is wrong with one refuses no other; who gives up while he waits turns up in no later window."""
    count = int(os.environ.get("COUCHJOBS_TEST_PAYLOADS", "200"))
    system = await start(note)
    trigger = {"type": "@webhook", "worker": "note", "message": None, "debounce": "1s"}
    await triggers_of(connection, db).put({"_id": "hook", **trigger})
    bad = {"nan": float("nan")}, "\ud800", {"set": {1}}, "x" * 2_000_000
    payloads = [bad[number // 50 % 4] if number % 50 == 7 else number for number in range(count)]
    hurried = asyncio.create_task(system.scheduler.fire_webhook("hook", "hurried"))
    fired = [asyncio.create_task(system.scheduler.fire_webhook("hook", payload)) for payload in payloads]
    gives_up = asyncio.create_task(system.scheduler.fire_webhook("hook", "given up"))
    await asyncio.sleep(0)
    gives_up.cancel()
    answers = await asyncio.gather(*fired, return_exceptions=True)
    await hurried
    refused = [answer for answer in answers if isinstance(answer, BadDocumentError)]
    assert len(refused) == count // 50
    assert sum(isinstance(answer, BaseException) for answer in answers) == len(refused)
    await asyncio.sleep(1.2)
    await system.scheduler.fire_webhook("hook", "last")
    arrived = [one for job in await jobs_of(connection, db, "hook") for one in job["payload"]["payloads"]]
    good = [payload for payload in payloads if isinstance(payload, int)]
    assert sorted(one for one in arrived if isinstance(one, int)) == good
    assert "given up" not in arrived or arrived.count("given up") == 1


async def test_debounce_when_events_come_in_a_window_then_one_job_without_event_data(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The window is fixed, not pushed back by later events."""
    orders = await orders_of(connection, db)
    trigger = {"_id": "t", "type": "@event", "arguments": "orders", "worker": "note", "message": 1, "debounce": "5s"}
    await triggers_of(connection, db).put(trigger)
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "order-0"})
    (first,) = await eventually(lambda: jobs_of(connection, db, "t"))
    for number in range(1, 30):
        await orders.put({"_id": f"order-{number}"})
    (job,) = await eventually(lambda: jobs_of(connection, db, "t"))
    assert job["scheduled_at"] == first["scheduled_at"] > job["queued_at"]
    assert "event" not in job
    assert job["message"] == 1

    async def done() -> bool:
        return all(job["state"] == "done" for job in await jobs_of(connection, db, "t"))

    await eventually(done)
    (job,) = await jobs_of(connection, db, "t")
    assert job["started_at"] >= job["scheduled_at"] == first["scheduled_at"]
    await orders.put({"_id": "later"})
    await eventually(lambda: so_many_jobs_of(connection, db, "t", 2))


async def test_debounce_when_shorter_than_a_round_trip_then_still_a_job(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A window that is over before its job is made has its job all the same."""
    system = await start(note)
    await triggers_of(connection, db).put({"_id": "hook", "type": "@webhook", "worker": "note", "debounce": "1us"})
    job = await asyncio.wait_for(system.scheduler.fire_webhook("hook", 1), 5)
    assert job.payload == {"payloads": [1]}


async def test_debounce_when_the_trigger_is_edited_meanwhile_then_what_comes_later_is_another_job(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A payload must not go to a worker that the trigger no longer names; nor with a message of before."""
    system = await start(note)
    triggers = triggers_of(connection, db)
    hook = {"_id": "hook", "type": "@webhook", "worker": "nobody", "message": "before", "debounce": "60s"}
    rev = await triggers.put(hook)
    first = await system.scheduler.fire_webhook("hook", 1)
    await triggers.put({**hook, "_rev": rev, "disabled": False})
    again = await system.scheduler.fire_webhook("hook", 2)
    assert again.id == first.id
    await triggers.delete("hook", (await triggers.get("hook"))["_rev"])
    await triggers.put({**hook, "worker": "note", "message": "after", "debounce": "1s"})
    other = await system.scheduler.fire_webhook("hook", 3)
    assert other.id != first.id
    assert (other.worker, other.message, other.payload) == ("note", "after", {"payloads": [3]})
    stored = {job["_id"]: job["payload"]["payloads"] for job in await jobs_of(connection, db, "hook")}
    assert stored == {first.id: [1, 2], other.id: [3]}


async def test_debounce_when_writes_are_refused_then_whoever_fires_is_told_in_time(
    connection: Connection, db: Prefixer, settings_for: Callable[..., Settings], server_url: str
) -> None:
    """A disk that is full, say: those who deliver would wait for ever, and what they sent be held."""
    await triggers_of(connection, db).put(
        {"_id": "hook", "type": "@webhook", "worker": "note", "message": None, "debounce": "5s"}
    )

    def is_full(method: str, path: str, _: bytes) -> None:
        if method in ("PUT", "POST") and path.endswith("_bulk_docs"):
            raise Refusal(507, {"error": "insufficient_storage", "reason": "the disk is full"})

    async with FaultProxy(server_url) as proxy:
        proxy.before = is_full
        async with connect(settings_for(url=proxy.url, push_timeout=0.5)) as own:
            with pytest.raises(Unavailable):
                await asyncio.wait_for(CouchScheduler(own).fire_webhook("hook", 1), 30)
