"""Which queued job is claimed when: slots, priorities, backlogs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from fault_proxy import FaultProxy
from waiting import eventually

from couchjobs.cluster.pauses import set_paused
from couchjobs.couch.answers import Found
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_queued_jobs
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


@worker("echo")
async def echo(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    return message


async def test_scheduled_job_when_time_has_not_come_then_waits(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A job is not claimed before `scheduled_at`."""
    from datetime import timedelta

    from couchjobs.timestamps import now

    system = await start(echo)
    at = now() + timedelta(seconds=0.6)
    job = await system.broker.push_job(db, JobRequest(worker_type="echo", scheduled_at=at))
    ended = await wait(db, job.id, 10)
    assert ended.started_at is not None
    assert ended.started_at >= at


async def test_concurrency_when_many_jobs_then_never_more_than_allowed(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Neither coroutines nor threads exceed the worker's number."""
    running: dict[str, int] = {"loop": 0, "thread": 0}
    most: dict[str, int] = {"loop": 0, "thread": 0}

    def enter(kind: str) -> None:
        running[kind] += 1
        most[kind] = max(most[kind], running[kind])

    @worker("loop", concurrency=3)
    async def loop(ctx: WorkerContext) -> None:
        enter("loop")
        await asyncio.sleep(0.02)
        running["loop"] -= 1

    @worker("thread", concurrency=2)
    def thread(ctx: WorkerContext) -> None:
        enter("thread")
        time.sleep(0.02)
        running["thread"] -= 1

    system = await start(loop, thread)
    jobs = await asyncio.gather(
        *(system.broker.push_job(db, JobRequest(worker_type=kind)) for kind in ("loop", "thread") * 15)
    )
    for job in jobs:
        assert (await wait(db, job.id, 10)).state is State.DONE
    assert most == {"loop": 3, "thread": 2}


async def test_priority_when_slots_are_scarce_then_higher_first_and_the_oldest_every_third(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Two of three claims go to higher priority, one of three to the oldest."""
    order: list[str] = []

    @worker("one", concurrency=1)
    async def one(ctx: WorkerContext, message: str) -> None:
        order.append(message)

    store = JobStore(connection, db)
    documents = [
        {
            "_id": f"low-{n}",
            "worker": "one",
            "message": f"low-{n}",
            "state": "queued",
            "queued_at": f"2026-01-01T00:00:0{n}Z",
        }
        for n in range(6)
    ]
    documents += [
        {
            "_id": f"high-{n}",
            "worker": "one",
            "message": f"high-{n}",
            "state": "queued",
            "priority": 5,
            "queued_at": f"2026-01-02T00:00:0{n}Z",
        }
        for n in range(6)
    ]
    await asyncio.gather(*(store.writer.write(document) for document in documents))
    await set_paused(connection, db, "one", is_paused=True)  # until all of them are known: pages may show some first
    system = await start(one)
    [lane] = system.broker._lanes
    await eventually(lambda: lane.backlog.known("one") == 12)
    await set_paused(connection, db, "one", is_paused=False)
    await eventually(lambda: len(order) == 12)
    assert order[:6] == ["high-0", "high-1", "low-0", "high-2", "high-3", "low-1"]


async def test_queue_len_when_jobs_wait_then_counts_them(connection: Connection, db: Prefixer, start: Start) -> None:
    """Queued jobs, those that wait for their time included."""
    system = await start(echo)
    for number in range(3):
        document = {"worker": "echo", "message": None, "state": "queued", "scheduled_at": "2099-01-01T00:00:00Z"}
        await system.broker.store_of("").database.put({"_id": f"later-{number}", **document})

    async def counted() -> bool:
        return await system.broker.worker_queue_len("echo") == 3

    await eventually(counted)


async def test_backlog_when_larger_than_the_look_ahead_then_all_done(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Candidates that are left out come back by the view, without waiting for the next sweep."""
    store = JobStore(connection, db)
    documents = [{"_id": f"job-{n:04}", "worker": "echo", "message": n, "state": "queued"} for n in range(300)]
    await asyncio.gather(*(store.writer.write(document) for document in documents))
    await start(echo, max_candidates=20, sweep_interval=3600)

    async def all_done() -> bool:
        found = await store.database.get_many(document["_id"] for document in documents)
        return all(document["state"] == "done" for document in found.values())

    await eventually(all_done, 60)


async def test_idle_type_when_a_backlog_of_another_lies_before_its_job_then_not_held_up(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The feed is read past jobs that wait for slots; nor is a request to cancel held up by them."""
    started = asyncio.Event()

    @worker("stuck", concurrency=1, timeout=None)
    async def stuck(ctx: WorkerContext) -> None:
        started.set()
        await asyncio.Event().wait()

    store = JobStore(connection, db)
    backlog = [{"_id": f"job-{n:04}", "worker": "stuck", "message": None, "state": "queued"} for n in range(4000)]
    await asyncio.gather(*(store.writer.write(document) for document in backlog))
    await start(stuck, echo, max_candidates=20, sweep_interval=3600)
    await started.wait()
    await store.database.put({"_id": "late", "worker": "echo", "message": 1, "state": "queued"})
    assert (await wait(db, "late", 5)).state is State.DONE
    (running,) = [job for job in await get_queued_jobs(db, "stuck") if job.state is State.RUNNING]
    await store.update(running, cancel_requested=True)
    assert (await wait(db, running.id, 5)).error == "cancelled"


async def test_job_when_edited_between_offer_and_claim_then_still_run(
    connection: Connection, db: Prefixer, start: Start, server_url: str
) -> None:
    """The row of the edit comes while the claim is under way, and must not be forgotten."""
    store, edits = JobStore(connection, db), 0

    async def edit_before_the_claim(method: str, path: str, body: bytes) -> None:
        nonlocal edits
        if path.endswith("/_bulk_docs") and b'"claim"' in body and b'"message":1' in body:
            document = await store.database.get("job")
            await store.database.put({**document, "message": 1 if edits < 5 else 2})
            edits += 1
            await asyncio.sleep(0.5)  # longer than the feed goes without a page: it shows the edit meanwhile

    async with FaultProxy(server_url) as proxy:
        proxy.before = edit_before_the_claim
        await start(echo, url=proxy.url, sweep_interval=3600)
        await store.database.put({"_id": "job", "worker": "echo", "message": 1, "state": "queued"})
        assert (await wait(db, "job", 15)).result == 2
    assert edits == 6


async def test_worker_type_when_paused_then_nothing_is_claimed_until_it_is_resumed(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """By daemons that run, and by those that start meanwhile; other types go on, and what runs ends."""
    ran: list[str] = []

    @worker("first", concurrency=2)
    async def first(ctx: WorkerContext) -> None:
        ran.append(ctx.id)

    @worker("second", concurrency=2)
    async def second(ctx: WorkerContext) -> None:
        ran.append(ctx.id)

    before = await start(first, second)
    assert await set_paused(connection, db, "first", is_paused=True)
    assert not await set_paused(connection, db, "first", is_paused=True)
    later = await start(first, second)
    await eventually(lambda: all(one.broker.daemon.paused == {"first"} for one in (before, later)))
    database = JobStore(connection, db).database
    for name in ("first", "second"):
        await database.put({"_id": f"of-{name}", "worker": name, "message": None, "state": "queued"})
    await eventually(lambda: ran == ["of-second"])
    await database.put({"_id": "another", "worker": "second", "message": None, "state": "queued"})
    await eventually(lambda: ran == ["of-second", "another"])
    assert await set_paused(connection, db, "first", is_paused=False)
    await eventually(lambda: ran == ["of-second", "another", "of-first"])
    await connection.control.put({"_id": "paused:elsewhere", "workers": 5})
    pauses, document = before.broker.daemon.presence.pauses, {"_id": f"paused:{db.key}", "_rev": "9-a"}
    pauses.note([{**document, "workers": {"first": {}}}])
    pauses.note([{**document, "_rev": "8-a", "workers": {}}])
    assert before.broker.daemon.paused, "a copy that is behind is not believed"
    pauses.note([], gone=[document["_id"]])
    pauses.note([{**document, "_rev": "1-a", "workers": {"first": {}}}])
    assert before.broker.daemon.paused, "of a database that was made anew"
    pauses.replace([])
    assert not before.broker.daemon.paused


async def test_worker_type_when_the_copy_that_is_asked_is_behind_its_pause_then_paused_soon(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of the feed comes once."""
    presence = (await start(echo)).broker.daemon.presence
    asked: list[str] = []

    read = Database.read

    async def behind(database: Database, ids: Any) -> list[Found]:
        wanted = [*ids]
        if asked or not any(one.startswith("paused:") for one in wanted):
            return await read(database, wanted)
        asked.extend(wanted)
        return [Found(one, None, None, absent=True) for one in wanted]

    looked = presence._look_at_pauses

    async def look(ids: Any) -> None:
        monkeypatch.setattr(Database, "read", behind)
        await looked(ids)

    monkeypatch.setattr(presence, "_look_at_pauses", look)
    assert await set_paused(connection, db, "echo", is_paused=True)
    await eventually(lambda: f"paused:{db.key}" in asked)
    await eventually(lambda: presence.pauses.of(db.key) == {"echo"}, 10)
