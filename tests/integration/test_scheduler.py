"""Triggers that the clock or a call fires, and how they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from triggering import jobs_of, note, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import BadDocumentError, ClosedError, MalformedTriggerError, TriggerNotFoundError
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler import rebuild as rebuilding
from couchjobs.scheduler.states import state_id
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.infos import TriggerInfos

Start = Callable[..., Any]


async def test_every_when_daemon_restarts_then_keeps_its_rhythm(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Ticks are at anchor + n periods; those that were missed make one late job."""
    await triggers_of(connection, db).put(
        {"_id": "e", "type": "@every", "arguments": "1s", "worker": "note", "message": None}
    )
    system = await start(note)
    await eventually(lambda: so_many_jobs_of(connection, db, "e", 2))
    await system.shutdown()
    stopped = now()
    await asyncio.sleep(2.2)
    again = now()
    await start(note)
    restarted = len(await jobs_of(connection, db, "e"))
    await eventually(lambda: so_many_jobs_of(connection, db, "e", restarted + 2))
    (state,) = await connection.control.with_prefix("schedule:")
    anchor = parse_time(state["anchor"])
    assert anchor is not None
    jobs = await jobs_of(connection, db, "e")
    ticks = sorted(parse_time(job["queued_at"]) for job in jobs)  # type: ignore[type-var]
    offsets = [(tick - anchor).total_seconds() for tick in ticks if tick is not None]
    assert all(offset == int(offset) >= 1 for offset in offsets), offsets
    assert len(set(offsets)) == len(offsets)
    missed = [tick for tick in ticks if tick is not None and stopped < tick < again]
    first = min(tick for tick in ticks if tick is not None and tick > stopped)
    assert len(missed) <= 1
    gaps = [parse_time(job["tick"]) - parse_time(job["previous_tick"]) for job in jobs if job.get("previous_tick")]
    assert sum(gap >= timedelta(seconds=2) for gap in gaps) == 1, "one job after all those that were missed"
    assert first > again - timedelta(seconds=1), "one job stands for all up to the first look: the newest of them"


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


async def test_client_job_when_a_client_ends_it_then_ended(connection: Connection, db: Prefixer, start: Start) -> None:
    """No daemon runs it; the API and a bare update both end it."""
    from couchjobs.broker.couch import CouchBroker
    from couchjobs.jobs.queries import get_job
    from couchjobs.jobs.request import JobRequest
    from couchjobs.jobs.waiting import wait

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
    """The rhythm stays: the last job tells the last tick. What is dropped begins anew, and may leave out one tick.

    A loaded machine does not miss one each 3 s.
    """
    triggers = triggers_of(connection, db)
    for number in range(20):
        await triggers.put(
            {"_id": f"e{number:02}", "type": "@every", "arguments": "3s", "worker": "note", "message": None}
        )
    systems = [await start(note), await start(note)]
    await eventually(lambda: so_many_jobs_of(connection, db, "e00", 1), 15)
    await systems[0].scheduler.rebuild(db)
    await eventually(lambda: so_many_jobs_of(connection, db, "e00", 2), 15)
    dropped = now()
    await systems[1].scheduler.clean()
    await eventually(lambda: so_many_jobs_of(connection, db, "e00", 4), 20)
    for number in range(20):
        found = [parse_time(job["queued_at"]) for job in await jobs_of(connection, db, f"e{number:02}")]
        ticks = sorted(tick for tick in found if tick is not None)
        gaps = [((later - earlier).total_seconds(), earlier) for earlier, later in pairwise(ticks)]
        assert all(gap >= 2.9 for gap, _ in gaps), "doubled"
        assert all(gap <= (5 if earlier > dropped else 8) for gap, earlier in gaps), "skipped"
        before = [gap for gap, earlier in gaps if earlier + timedelta(seconds=gap) < dropped]
        assert all(gap <= 5 for gap in before), "skipped, and its state was made anew"


async def test_rebuild_when_a_trigger_was_enabled_since_its_last_job_then_what_came_meanwhile_does_not_fire(
    connection: Connection, db: Prefixer
) -> None:
    """Its state says so, as after an edit: jobs of before tell nothing of it."""
    store = TriggerStore(connection, db)
    trigger = {"_id": "t", "type": "@every", "arguments": "1h", "worker": "w", "message": None}
    await store.database.put(trigger)
    tick = format_time(now() - timedelta(days=10))
    made = {"worker": "w", "message": None, "state": "done", "trigger_id": "t", "tick": tick, "queued_at": tick}
    await JobStore(connection, db).database.put({"_id": "00", **made})
    await rebuilding.rebuild(connection, db, store)
    state = await connection.control.get(state_id(store.database.name, "t"))
    enabled = format_time(now() - timedelta(minutes=10))
    await connection.control.put({**state, "last": None, "passed": enabled, "anchor": enabled})
    await rebuilding.rebuild(connection, db, store)
    state = await connection.control.get(state_id(store.database.name, "t"))
    assert (state["passed"], state["anchor"]) == (enabled, enabled)


@pytest.mark.parametrize("by_view", [False, True])
async def test_rebuild_when_a_job_was_tried_again_by_hand_then_its_tick_tells_the_rhythm(
    connection: Connection, db: Prefixer, by_view: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the moment at which somebody wanted it again; also where newer jobs hide it, and the view tells."""
    store = TriggerStore(connection, db)
    trigger = {"_id": "t", "type": "@every", "arguments": "1h", "worker": "w", "message": None}
    await store.database.put(trigger)
    tick, again = now() - timedelta(minutes=40), now() - timedelta(minutes=7)
    made = {"worker": "w", "message": None, "state": "done", "trigger_id": "t"}
    jobs = JobStore(connection, db).database
    times = {"tick": format_time(tick), "first_queued_at": format_time(tick), "queued_at": format_time(again)}
    await jobs.put({"_id": "00", **made, **times})
    await jobs.put({"_id": "01", **made, "queued_at": format_time(tick - timedelta(hours=1))})
    if by_view:
        monkeypatch.setattr(rebuilding, "_NEWEST", 0)
    await rebuilding.rebuild(connection, db, store)
    state = await connection.control.get(state_id(store.database.name, "t"))
    assert parse_time(state["last"]) == parse_time(format_time(tick))


@pytest.mark.parametrize("fields", [{"type": "@in", "arguments": "1s"}, {"type": "@every", "arguments": "1s"}])
async def test_trigger_when_its_message_is_too_large_then_refused_or_bad_and_never_gone(
    connection: Connection, db: Prefixer, start: Start, settings_for: Any, fields: dict[str, Any]
) -> None:
    """No daemon could run its jobs: that is told where it is written, and of a document that somebody else wrote."""
    large = {"worker": "note", "message": "x" * 3000, **fields}
    async with connect(settings_for(max_message_bytes=2000)) as own:
        store = TriggerStore(own, db)
        with pytest.raises(BadDocumentError, match="message is 3"):
            await store.add(TriggerInfos.from_document(large))
        await store.database.put({"_id": "by hand", **large})
        system = await start(note, max_message_bytes=2000)
        assert "message is 3" in await eventually(lambda: system.scheduler.triggers.bad.get("by hand"))
        assert await store.database.find("by hand") is not None
        assert await jobs_of(connection, db, "by hand") == []
