"""Finished jobs that are kept no longer: removed bit by bit, by purge where that is for good, and never run again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import pytest
from copies import put_on_all
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import SOON_SWEPT, eventually

from couchjobs.couch import purge as purging
from couchjobs.couch.connection import Connection
from couchjobs.doctor import documents
from couchjobs.doctor.examine import examine
from couchjobs.errors import NotFound
from couchjobs.jobs import removal
from couchjobs.jobs.removal import Remover
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.retention import document_id, read_rules, store_rules
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.conflicts import conflicted
from couchjobs.timestamps import format_time, now
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


async def _ended(connection: Connection, db: Prefixer, count: int, worker: str = "w", **more: Any) -> None:
    """So many jobs, the last of which ended now, each a day before the next."""
    store = JobStore(connection, db)
    for number in range(count):
        at = format_time(now() - timedelta(days=count - 1 - number))
        times = {"queued_at": at, "finished_at": at}
        document = {"worker": worker, "message": None, "state": "done", **times, **more}
        await put_on_all(store.database, {"_id": f"{worker}-{number}", **document})


async def _left(connection: Connection, db: Prefixer) -> set[str]:
    database = JobStore(connection, db).database
    return {one["_id"] async for page in database.all_docs() for one in page if not one["_id"].startswith("_")}


async def _is_left(connection: Connection, db: Prefixer, wanted: set[str]) -> bool:
    return await _left(connection, db) == wanted


@pytest.mark.parametrize("single", [True, False])
async def test_remover_when_rules_keep_some_then_the_others_go(
    connection: Connection, db: Prefixer, single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By age since their end, by number, by worker and state; what has not ended stays, whatever its age."""
    if not single:

        async def is_single_node(server: Any) -> bool:
            return False

        monkeypatch.setattr("couchjobs.jobs.removal.is_single_node", is_single_node)
    await _ended(connection, db, 6)
    await _ended(connection, db, 6, "import")
    await _ended(connection, db, 4, "kept")
    database = JobStore(connection, db).database
    old = format_time(now() - timedelta(days=90))
    times = {"queued_at": old, "finished_at": format_time(now())}
    await put_on_all(database, {"_id": "late", "worker": "w", "state": "done", **times})
    await put_on_all(database, {"_id": "queued", "worker": "w", "message": None, "state": "queued", "queued_at": old})
    rules = read_rules([{"worker": "w", "keep": "84h"}, {"worker": "import", "state": "done", "at_most": 2}])
    wanted = {f"w-{n}" for n in (2, 3, 4, 5)} | {"import-4", "import-5", "late", "queued"}
    wanted |= {f"kept-{n}" for n in range(4)}
    remover = Remover(JobStore(connection, db))
    assert sum([count async for count in remover.steps(rules, now(), dry=True)]) == 6
    assert len(await _left(connection, db)) == 18
    assert sum([count async for count in remover.steps(rules, now())]) == 6
    await eventually(lambda: _is_left(connection, db, wanted))
    assert sum([count async for count in remover.steps(rules, now())]) == 0


async def test_remover_when_times_are_written_oddly_then_the_newest_are_those_of_the_view(
    connection: Connection, db: Prefixer
) -> None:
    """Numbers, small letters: CouchDB orders them in its own way, and no job that it has for one of the newest goes."""
    store = JobStore(connection, db)
    ended = {"worker": "w", "message": None, "state": "errored", "error": "e", "finished_at": format_time(now())}
    for number in range(6):
        await put_on_all(store.database, {"_id": f"odd-{number}", **ended, "queued_at": 9})
        await put_on_all(
            store.database, {"_id": f"small-{number}", **ended, "queued_at": f"2026-11-28t00:00:0{number}z"}
        )
        await put_on_all(store.database, {"_id": f"new-{number}", **ended, "queued_at": f"2026-11-29T00:00:0{number}Z"})
    rules = read_rules([{"worker": "w", "at_most": 8}])
    assert sum([count async for count in Remover(store).steps(rules, now())]) == 10
    wanted = {f"new-{number}" for number in range(6)} | {"small-4", "small-5"}
    await eventually(lambda: _is_left(connection, db, wanted))


async def test_remover_when_names_of_workers_look_alike_then_each_by_its_own_rule(
    connection: Connection, db: Prefixer
) -> None:
    """CouchDB orders by what people read: `e` with an accent, in one character or in two, is the same key to it."""
    one, two = "caf\u00e9", "cafe\u0301"
    for worker_type in (one, two):
        await _ended(connection, db, 6, worker_type)
    remover = Remover(JobStore(connection, db))
    for_all = remover.steps(read_rules([{"worker": "*", "keep": "108h"}]), now(), dry=True)
    assert sum([count async for count in for_all]) == 2, "one of each"
    for old in (one, two):
        rules = read_rules([{"worker": old, "keep": "84h"}, {"worker": "*", "keep": "100000d"}])
        assert sum([count async for count in remover.steps(rules, now())]) == 2
    await eventually(partial(_is_left, connection, db, {f"{name}-{n}" for name in (one, two) for n in (2, 3, 4, 5)}))
    assert [count async for count in remover.steps(read_rules([{"worker": one, "at_most": 3}]), now())] == [1]
    wanted = {f"{one}-{n}" for n in (3, 4, 5)} | {f"{two}-{n}" for n in (2, 3, 4, 5)}
    await eventually(partial(_is_left, connection, db, wanted))


async def test_remover_when_the_end_is_gos_zero_time_then_the_job_counts_from_when_it_was_queued(
    connection: Connection, db: Prefixer
) -> None:
    """That is no time; one that nobody can read keeps its job."""
    times = {"zero": "0001-01-01T00:00:00Z", "none": None, "odd": "yesterday"}
    for name, ended in times.items():
        document = {
            "worker": "w",
            "message": None,
            "state": "done",
            "queued_at": format_time(now() - timedelta(days=9)),
        }
        await put_on_all(JobStore(connection, db).database, {"_id": name, **document, "finished_at": ended})
    steps = Remover(JobStore(connection, db)).steps(read_rules([{"worker": "w", "keep": "1d"}]), now())
    assert sum([count async for count in steps]) == 2
    await eventually(partial(_is_left, connection, db, {"odd"}))


async def test_remover_when_both_age_and_number_count_then_each_job_goes_once(
    connection: Connection, db: Prefixer
) -> None:
    """Those that are too old, and of the others those that are too many."""
    await _ended(connection, db, 8)
    remover = Remover(JobStore(connection, db))
    rules = read_rules([{"worker": "w", "keep": "132h", "at_most": 4}])
    removed = 0

    async def would_go() -> bool:  # once the view of whichever copy knows them all
        return sum([count async for count in remover.steps(rules, now(), dry=True)]) == 4

    async def are_gone() -> bool:
        nonlocal removed
        removed += sum([count async for count in remover.steps(rules, now())])
        return await _is_left(connection, db, {f"w-{number}" for number in range(4, 8)})

    await eventually(would_go)
    await eventually(are_gone)
    assert removed == 4


async def test_remover_when_others_remove_meanwhile_then_the_newest_stay(connection: Connection, db: Prefixer) -> None:
    """However many are left by then: what was one too many at the beginning, and nothing newer."""
    await _ended(connection, db, 250)
    store = JobStore(connection, db)
    rules = read_rules([{"worker": "w", "at_most": 100}])
    steps = Remover(store).steps(rules, now())
    assert await anext(steps) == 100
    for number in range(100, 130):
        document = await store.database.get(f"w-{number}")
        await store.database.delete(document["_id"], document["_rev"])
    assert sum([count async for count in steps]) == 20
    await eventually(lambda: _is_left(connection, db, {f"w-{number}" for number in range(150, 250)}))


async def test_remover_when_a_job_ran_again_meanwhile_then_it_is_one_of_the_newest(
    connection: Connection, db: Prefixer
) -> None:
    """The view is older than that."""
    await _ended(connection, db, 250)
    store = JobStore(connection, db)
    steps = Remover(store).steps(read_rules([{"worker": "w", "at_most": 100}]), now())
    assert await anext(steps) == 100
    times = dict.fromkeys(("queued_at", "finished_at"), format_time(now()))
    await store.database.put({**await store.database.get("w-120"), **times})
    assert sum([count async for count in steps]) == 49
    await eventually(lambda: _is_left(connection, db, {"w-120"} | {f"w-{number}" for number in range(150, 250)}))


async def test_remover_when_this_hosts_clock_is_ahead_then_the_servers_counts(
    connection: Connection, db: Prefixer
) -> None:
    """A year ahead, everything would be old."""
    await _ended(connection, db, 3)
    ahead = now() + timedelta(days=365)
    steps = Remover(JobStore(connection, db)).steps(read_rules([{"keep": "36h"}]), ahead)
    assert sum([count async for count in steps]) == 1
    await eventually(lambda: _is_left(connection, db, {"w-1", "w-2"}))


async def test_remover_when_a_job_is_in_conflict_then_left_until_that_is_settled(
    connection: Connection, db: Prefixer
) -> None:
    """Its other leaf would be the job then, and run."""
    store, old = JobStore(connection, db), format_time(now() - timedelta(days=9))
    fields = {"_id": "job", "worker": "w", "message": None, "queued_at": old}
    leaves = [({"state": "done", "finished_at": old}, "f"), ({"state": "queued"}, "a")]
    docs = [
        {**fields, **leaf, "_rev": f"2-{name * 32}", "_revisions": {"start": 2, "ids": [name * 32, "1" * 32]}}
        for leaf, name in leaves
    ]
    body = orjson.dumps({"docs": docs, "new_edits": False})
    await connection.server.request("POST", f"{store.database.path}/_bulk_docs", params={"w": 3}, body=body)
    await eventually(lambda: conflicted(store))
    rules = read_rules([{"keep": "1d"}])

    async def is_looked_at() -> bool:  # by whichever copy of the view
        return [count async for count in Remover(store).steps(rules, now())] == [0]

    await eventually(is_looked_at)
    assert (await store.get("job")).state == "done"


@pytest.mark.parametrize("state", ["queued", "running", "done", "errored", None])
async def test_remover_when_the_job_that_pushed_it_has_not_ended_then_a_job_stays(
    connection: Connection, db: Prefixer, state: str | None
) -> None:
    """A further try would push it again, and it would run again; it goes once that job has ended, or has gone."""
    await _ended(connection, db, 3, pushed_by={"id": "maker", "worker": "maker"})
    await _ended(connection, db, 3, worker="odd", pushed_by={"id": 7})
    if state is not None:
        maker = {"_id": "maker", "worker": "maker", "message": None, "state": state, "queued_at": format_time(now())}
        await put_on_all(JobStore(connection, db).database, maker)
    rules = read_rules([{"worker": "w", "keep": "1s"}, {"worker": "odd", "at_most": 1}])

    async def removed() -> int:
        return sum([count async for count in Remover(JobStore(connection, db)).steps(rules, now())])

    wanted = 5 if state in ("done", "errored", None) else 2
    total = 0

    async def is_removed() -> bool:  # by whichever copy of the view
        nonlocal total
        total += await removed()
        return total >= wanted

    await eventually(is_removed)
    assert await removed() == 0
    assert total == wanted


async def test_remover_when_a_job_is_tried_again_then_what_it_has_pushed_is_still_there(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """So it is pushed once, however soon the rules would have it go."""
    ran: list[str] = []
    tried = asyncio.Event()

    @worker("maker", retry_delay=0.05)
    async def maker(ctx: Any) -> None:
        await ctx.push("made")
        await tried.wait()
        if ctx.exec_count == 1:
            raise RuntimeError("once more")

    @worker("made")
    async def made(ctx: Any) -> None:
        ran.append(ctx.id)

    system = await start(maker, made)
    await system.broker.push_job(db, JobRequest(worker_type="maker"))
    store, rules = JobStore(connection, db), read_rules([{"worker": "made", "keep": "0s"}])
    await eventually(lambda: ran)
    made_job = await store.get(ran[0])
    assert made_job.document()["pushed_by"]["worker"] == "maker"
    for _ in range(3):
        assert sum([count async for count in Remover(store).steps(rules, now())]) == 0
    tried.set()
    await eventually(lambda: _no_longer(store, rules, ran[0]))
    assert len(ran) == 1


async def _no_longer(store: JobStore, rules: Any, job_id: str) -> bool:
    async for _ in Remover(store).steps(rules, now()):
        pass
    return await store.database.find(job_id) is None


async def test_remover_when_a_job_does_not_say_when_it_ended_then_since_it_was_queued(
    connection: Connection, db: Prefixer
) -> None:
    """Clients end jobs, too, and may say less."""
    database, old = JobStore(connection, db).database, format_time(now() - timedelta(days=9))
    for job_id, at in (("old", old), ("new", format_time(now()))):
        await database.put({"_id": job_id, "worker": "client", "message": None, "state": "done", "queued_at": at})
    rules = read_rules([{"keep": "1d"}])
    assert sum([count async for count in Remover(JobStore(connection, db)).steps(rules, now())]) == 1
    await eventually(lambda: _is_left(connection, db, {"new"}))


async def test_purge_when_the_server_has_it_then_nothing_of_a_document_stays(
    connection: Connection, db: Prefixer
) -> None:
    """The embedded server has no `_purge`; a cluster has one, which a node that is away may undo."""
    database = JobStore(connection, db).database
    rev = await put_on_all(database, {"_id": "gone", "worker": "w", "state": "done"})
    try:
        assert await purging.purge(database, {"gone": rev, "never": rev}) == {"gone"}
    except NotFound:
        assert not (await connection.server.welcome())["vendor"]["name"].startswith("The Apache")
    else:

        async def is_gone() -> bool:  # from each copy
            return await database.leaves("gone") == []

        await eventually(is_gone, 60)  # a copy that was busy hears of it when the copies agree


async def test_daemon_when_there_are_rules_then_it_removes_and_nothing_fires_again(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the feed is read from its beginning after that."""
    monkeypatch.setattr(removal, "_LEAST_REPLAY_S", 0.0)  # jobs of triggers would stay for two minutes
    monkeypatch.setattr(removal, "_REPLAYED_FOR", 0.0)
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put(
        {"_id": "t", "type": "@event", "arguments": "orders:CREATED", "worker": "note", "message": None}
    )
    system = await start(note, **SOON_SWEPT)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    for number in range(5):
        await orders.put({"_id": f"order-{number}"})
    await eventually(lambda: so_many_jobs_of(connection, db, "t", 5))
    await store_rules(connection, db, [{"worker": "note", "keep": "0s"}])

    async def removed() -> bool:
        return await jobs_of(connection, db, "t") == []

    await eventually(removed)
    await system.shutdown()
    (checkpoint,) = await connection.control.with_prefix("checkpoint:")
    await connection.control.delete(checkpoint["_id"], checkpoint["_rev"])
    await store_rules(connection, db, None)
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "new"})
    (job,) = await eventually(lambda: so_many_jobs_of(connection, db, "t", 1))
    assert job["event"]["doc"]["_id"] == "new"


async def test_doctor_when_nothing_is_ever_removed_or_rules_are_none_then_said(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there are many."""
    monkeypatch.setattr(documents, "_MANY_FINISHED", 3)
    await _ended(connection, db, 4)

    async def told() -> list[str]:
        return [one.what for one in await examine(connection, db) if one.kind == "retention"]

    assert "4 finished jobs are kept for ever" in (await told())[0]
    await store_rules(connection, db, [{"keep": "30d"}])
    assert await told() == []
    document = await connection.control.get(document_id(connection, db))
    await connection.control.put({**document, "rules": [{"kep": "30d"}]})
    assert "cannot be understood" in (await told())[0]
