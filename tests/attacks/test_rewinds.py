"""Feeds that give old rows again, databases that come back as an older copy: what was seen fires nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from copies import delete_surely
from fault_proxy import FaultProxy
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, sequence_number
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.events import EventFollower

EVENT = {"type": "@event", "arguments": "orders", "worker": "note", "message": None}


class Rewinder:
    """Makes the next question for changes of orders one from the beginning."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, path: str) -> str:
        """Return what is asked of the server instead."""
        head, mark, query = path.partition("?")
        if self.times <= 0 or "orders/_changes" not in head.replace("%2F", "/") or "longpoll" not in query:
            return path
        self.times -= 1
        parts = ["since=0" if part.startswith("since=") else part for part in query.split("&")]
        return head + mark + "&".join(parts)


async def old_orders(orders: Database, count: int) -> None:
    """Orders that are older than any trigger, and tombstones of others."""
    docs = [{"_id": f"old-{number}", "status": "paid"} for number in range(count)]
    docs += [{"_id": f"gone-{number}", "_deleted": True} for number in range(count // 2)]
    await orders.server.request("POST", f"{orders.path}/_bulk_docs", body=orjson.dumps({"docs": docs}))


@pytest.mark.parametrize("debounce", [None, "1s"])
async def test_feed_when_it_rewinds_then_only_what_is_new_fires(
    connection: Connection, db: Prefixer, begin: Any, server_url: str, debounce: str | None
) -> None:
    """Older than the trigger, tombstones, and what has fired and whose job has been removed."""
    orders = await orders_of(connection, db)
    await old_orders(orders, 100)
    trigger = EVENT if debounce is None else {**EVENT, "debounce": debounce}
    await triggers_of(connection, db).put({"_id": "seen", **trigger})
    rewinder, jobs = Rewinder(), connection.database(db.database("jobs"))
    async with FaultProxy(server_url) as proxy:
        proxy.path_of = rewinder
        await begin(note, url=proxy.url)
        await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
        await asyncio.sleep(0.3)
        await orders.put({"_id": "new-0"})
        (job,) = await eventually(lambda: so_many_jobs_of(connection, db, "seen", 1), 15)

        async def done() -> bool:
            return (await jobs.get(job["_id"]))["state"] == "done"

        await eventually(done, 15)
        await delete_surely(jobs, job["_id"])
        rewinder.times = 2
        await orders.put({"_id": "new-1"})
        await eventually(lambda: rewinder.times == 0, 15)
        await orders.put({"_id": "new-2"})
        await eventually(lambda: jobs_of(connection, db, "seen"), 15)

        async def all_read() -> bool:
            stored = (await connection.control.get(f"checkpoint:{orders.name}"))["seq"]
            return bool(stored == (await orders.info())["update_seq"]) or rewinder.times == 0

        await eventually(all_read, 15)
        await asyncio.sleep(1.5)
        fired = await jobs_of(connection, db, "seen")
        if debounce is None:
            assert sorted(one["event"]["doc"]["_id"] for one in fired) == ["new-1", "new-2"]
            assert {one["event"]["verb"] for one in fired} == {"CREATED"}
        else:
            assert len(fired) <= 2


async def test_feed_when_it_rewinds_by_pages_then_the_stored_position_stays_where_it_was(
    connection: Connection, db: Prefixer, begin: Any, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that begins there would take what comes after it for new, and fire it once its jobs are removed."""
    orders = await orders_of(connection, db)
    await old_orders(orders, 1700)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    saved: list[int] = []
    save = EventFollower._save

    async def note_and_save(follower: EventFollower, seq: str, *more: Any, **named: Any) -> None:
        saved.append(sequence_number(seq))
        await save(follower, seq, *more, **named)

    monkeypatch.setattr(EventFollower, "_save", note_and_save)
    rewinder = Rewinder()
    async with FaultProxy(server_url) as proxy:
        proxy.path_of = rewinder
        await begin(note, url=proxy.url)
        await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
        rewinder.times = 1
        await asyncio.sleep(0.3)
        await orders.put({"_id": "new-1"})
        await eventually(lambda: rewinder.times == 0, 15)
        await orders.put({"_id": "new-2"})
        await eventually(lambda: so_many_jobs_of(connection, db, "seen", 2), 15)
        await eventually(lambda: len(saved) > 1)
    assert min(saved) == saved[0], saved


async def test_feed_when_it_rewinds_far_then_what_is_new_does_not_wait_for_the_old_rows(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """A million rows take a minute to come by; here, the second page of them never comes, until it is let go."""
    orders = await orders_of(connection, db)
    await old_orders(orders, 1700)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    rewinder, come_on, held = Rewinder(), asyncio.Event(), asyncio.Event()

    async def hold(method: str, path: str, body: bytes) -> None:
        since = path.partition("since=")[2].partition("&")[0]
        if "orders/_changes" in path.replace("%2F", "/") and "longpoll" in path and 900 < sequence_number(since) < 1300:
            held.set()
            await come_on.wait()

    async with FaultProxy(server_url) as proxy:
        proxy.path_of, proxy.before = rewinder, hold
        await begin(note, url=proxy.url)
        await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
        stored = (await connection.control.get(f"checkpoint:{orders.name}"))["seq"]
        rewinder.times = 1
        await asyncio.sleep(0.3)
        await orders.put({"_id": "new-1"})
        await asyncio.wait_for(held.wait(), 15)
        for number in (2, 3):
            await orders.put({"_id": f"new-{number}"})
            await eventually(lambda number=number: so_many_jobs_of(connection, db, "seen", number), 15)
        assert (await connection.control.get(f"checkpoint:{orders.name}"))["seq"] == stored, "not all before it is read"
        come_on.set()

        async def caught_up() -> bool:
            return bool((await connection.control.get(f"checkpoint:{orders.name}"))["seq"] != stored)

        await eventually(caught_up, 15)
        await orders.put({"_id": "new-4"})
        await eventually(lambda: so_many_jobs_of(connection, db, "seen", 4), 15)
    fired = sorted(one["event"]["doc"]["_id"] for one in await jobs_of(connection, db, "seen"))
    assert fired == ["new-1", "new-2", "new-3", "new-4"]


@pytest.mark.parametrize("is_another", [False, True])
async def test_daemon_when_it_begins_again_then_it_reads_what_has_changed_since_and_knows_the_rest(
    connection: Connection, db: Prefixer, begin: Any, server_url: str, is_another: bool
) -> None:
    """A pass over a million rows takes half a minute: it is for a database that is not what was written down."""
    orders = await orders_of(connection, db)
    await old_orders(orders, 100)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    rewinder, jobs, asked = Rewinder(), connection.database(db.database("jobs")), list[str]()
    async with FaultProxy(server_url) as proxy:
        proxy.path_of = rewinder
        proxy.before = lambda method, path, body: asked.append(path.replace("%2F", "/"))
        system = await begin(note, url=proxy.url)
        await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
        for number in (1, 2):  # once the second one fires, the position is behind the first one
            await orders.put({"_id": f"before-{number}"})
            fired = await eventually(lambda number=number: so_many_jobs_of(connection, db, "seen", number), 15)
        await system.shutdown()
        for job in fired:
            await delete_surely(jobs, job["_id"])
        written = await connection.control.get(f"seen:{orders.name}")
        if is_another:
            last = [{**one, "rev": "1-" + "f" * 32} for one in written["last"]]
            await connection.control.put({**written, "last": last})
        await orders.put({"_id": "new-1"})
        asked.clear()
        system = await begin(note, url=proxy.url)
        await eventually(lambda: so_many_jobs_of(connection, db, "seen", 1), 15)
        passes = [path for path in asked if "/orders/_changes" in path and "since=0&" in path]
        assert bool(passes) is is_another
        rewinder.times = 1
        await orders.put({"_id": "new-2"})
        await eventually(lambda: rewinder.times == 0, 15)
        await eventually(lambda: so_many_jobs_of(connection, db, "seen", 2), 15)
        await orders.put({"_id": "new-3"})
        await eventually(lambda: so_many_jobs_of(connection, db, "seen", 3), 15)
        await system.shutdown()
    fired = sorted(one["event"]["doc"]["_id"] for one in await jobs_of(connection, db, "seen"))
    assert fired == ["new-1", "new-2", "new-3"]


@pytest.mark.parametrize("is_removed", [False, True])
async def test_position_when_it_is_set_back_or_removed_then_nothing_fires_again(
    connection: Connection, db: Prefixer, begin: Any, is_removed: bool
) -> None:
    """By hand, or with a control database that is older than the rest; the jobs of before have been removed."""
    orders, jobs = await orders_of(connection, db), connection.database(db.database("jobs"))
    await old_orders(orders, 100)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    system = await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
    await orders.put({"_id": "before"})
    (job,) = await eventually(lambda: so_many_jobs_of(connection, db, "seen", 1), 15)
    await system.shutdown()
    await delete_surely(jobs, job["_id"])
    position = await connection.control.get(f"checkpoint:{orders.name}")
    if is_removed:
        await delete_surely(connection.control, position["_id"])
    else:
        await connection.control.put({**position, "seq": "0"})
        await orders.put({"_id": "new-1"})
    await begin(note)
    if is_removed:  # what comes while nobody follows, and no position is known, is not told from what was there

        async def is_followed() -> bool:
            return await connection.control.find(position["_id"]) is not None

        await eventually(is_followed, 15)
        await orders.put({"_id": "new-1"})
    await eventually(lambda: so_many_jobs_of(connection, db, "seen", 1), 15)
    await orders.put({"_id": "new-2"})
    await eventually(lambda: so_many_jobs_of(connection, db, "seen", 2), 15)
    fired = sorted(one["event"]["doc"]["_id"] for one in await jobs_of(connection, db, "seen"))
    assert fired == ["new-1", "new-2"]


async def test_document_when_it_comes_by_replication_at_a_later_revision_then_created(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """New to this database is CREATED; made again after its deletion too; a branch that loses is nothing."""
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT, "arguments": "orders:CREATED"})
    await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
    await asyncio.sleep(0.3)
    branch = {"_id": "came", "_rev": "3-" + "a" * 32, "_revisions": {"start": 3, "ids": [c * 32 for c in "abc"]}}
    body = orjson.dumps({"docs": [branch], "new_edits": False})
    await connection.server.request("POST", f"{orders.path}/_bulk_docs", body=body)
    await eventually(lambda: so_many_jobs_of(connection, db, "seen", 1), 15)
    losing = {"_id": "came", "_rev": "2-" + "d" * 32, "_revisions": {"start": 2, "ids": ["d" * 32, "c" * 32]}}
    body = orjson.dumps({"docs": [losing], "new_edits": False})
    await connection.server.request("POST", f"{orders.path}/_bulk_docs", body=body)
    rev = await orders.put({"_id": "again"})
    await eventually(lambda: so_many_jobs_of(connection, db, "seen", 2), 15)
    await orders.delete("again", rev)
    await asyncio.sleep(0.5)
    await orders.put({"_id": "again", "n": 2})
    await eventually(lambda: so_many_jobs_of(connection, db, "seen", 3), 15)
    fired = [one["event"]["doc"]["_id"] for one in await jobs_of(connection, db, "seen")]
    assert sorted(fired) == ["again", "again", "came"]


async def test_position_when_the_server_cannot_use_it_then_events_go_on(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Another server's, or garbage: the feed asked a 400 for ever."""
    orders = await orders_of(connection, db)
    await old_orders(orders, 10)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    checkpoint = {"domain": db.domain, "prefix": db.db_prefix, "doctype": "orders", "seq": "garbage"}
    await connection.control.put({"_id": f"checkpoint:{orders.name}", **checkpoint})
    await begin(note)

    async def mended() -> bool:
        return (await connection.control.get(f"checkpoint:{orders.name}"))["seq"] != "garbage"

    await eventually(mended, 20)
    await orders.put({"_id": "new"})
    await eventually(lambda: jobs_of(connection, db, "seen"), 15)
    fired = [one["event"]["doc"]["_id"] for one in await jobs_of(connection, db, "seen")]
    assert fired == ["new"]
