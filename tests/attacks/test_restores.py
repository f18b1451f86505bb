"""Databases that come back as an older copy of themselves, while daemons run or while none does."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from copies import delete_surely
from fault_proxy import Answer, FaultProxy, Refusal
from triggering import jobs_of, note, orders_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.doctor.examine import examine
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.positions import loss_of, read_positions

EVENT = {"type": "@event", "arguments": "orders", "worker": "note", "message": None}


async def fired(connection: Connection, db: Prefixer) -> list[str]:
    """The orders that have fired, each as often as it has."""
    return sorted(job["event"]["doc"]["_id"] for job in await jobs_of(connection, db, "seen"))


async def older_copy(connection: Connection, orders: Database, without: str) -> Database:
    """A database that holds what orders holds, as a copy of its files would, without those whose ids begin so."""
    await connection.server.create_database(f"{orders.name}-copy")
    copy = connection.database(f"{orders.name}-copy")
    async for page in orders.all_docs():
        kept = [document for document in page if not document["_id"].startswith(without)]
        body = orjson.dumps({"docs": kept, "new_edits": False})
        await connection.server.request("POST", f"{copy.path}/_bulk_docs", body=body)
    return copy


async def losses_of(connection: Connection, db: Prefixer) -> dict[str, str]:
    """What is told of positions that mean nothing any more, by doctype."""
    positions = await read_positions(connection, db)
    return {doctype: loss for doctype, one in positions.items() if (loss := loss_of(one))}


async def test_source_when_an_older_copy_comes_back_under_a_running_daemon_then_all_that_is_new_fires(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """Also where it has seen more changes by then than the position counts; old orders do not fire again."""
    orders = await orders_of(connection, db)
    for number in range(10):
        await orders.put({"_id": f"old-{number}"})
    instance = str((await orders.info()).get("instance_start_time", ""))
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    restored = cut = False

    async def before(method: str, path: str, body: bytes) -> None:
        while cut and "orders/" in path.replace("%2F", "/"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def after(answer: Answer) -> None:
        if "orders" in answer.path and b"instance_start_time" in answer.body:
            answer.json = {**answer.json, "instance_start_time": instance}
        answer.lose = cut and "orders/_changes" in answer.path.replace("%2F", "/")

    async with FaultProxy(server_url) as proxy:
        proxy.before, proxy.after = before, after
        proxy.path_of = lambda path: path.replace("%2Forders", "%2Forders-copy", 1) if restored else path
        await begin(note, url=proxy.url)
        await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
        await asyncio.sleep(0.3)
        for number in range(5):
            await orders.put({"_id": f"lost-{number}"})

        async def lost_ones_fired() -> bool:
            return len(await fired(connection, db)) == 5

        await eventually(lost_ones_fired, 15)
        cut = True
        copy = await older_copy(connection, orders, "lost-")
        for number in range(40):
            await copy.put({"_id": f"new-{number}"})
        await orders.put({"_id": "wakes-the-feed"})
        await asyncio.sleep(0.5)
        restored, cut = True, False

        async def new_ones_fired() -> bool:
            return len([one for one in await fired(connection, db) if one.startswith("new-")]) >= 40

        await eventually(new_ones_fired, 40)
        await asyncio.sleep(0.5)
    expected = [f"new-{number}" for number in range(40)] + [f"lost-{number}" for number in range(5)]
    assert [one for one in await fired(connection, db) if one != "wakes-the-feed"] == sorted(expected)


async def test_position_when_it_was_lost_while_no_daemon_ran_then_said_until_somebody_has_seen_it(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """In the list of triggers and by the doctor; what comes later fires."""
    orders = await orders_of(connection, db)
    rev = await orders.put({"_id": "old"})
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    checkpoint = {"domain": db.domain, "prefix": db.db_prefix, "doctype": "orders"}
    seq = (await orders.info())["update_seq"]
    last = [{"id": "old", "rev": rev}, {"id": "written-after-the-copy", "rev": "1-" + "a" * 32}]
    await connection.control.put({"_id": f"checkpoint:{orders.name}", **checkpoint, "seq": seq, "last": last})
    found = [one.what for one in await examine(connection, db) if one.kind == "checkpoint"]
    assert "older copy" in found[0]
    await begin(note)
    losses = await eventually(lambda: losses_of(connection, db), 20)
    assert "older copy" in losses["orders"]
    assert "backfill" in losses["orders"]
    await asyncio.sleep(0.3)
    await orders.put({"_id": "new"})
    assert await eventually(lambda: fired(connection, db), 15) == ["new"]
    assert await losses_of(connection, db) == losses
    (told,) = [one for one in await examine(connection, db, repair=True) if one.kind == "checkpoint"]
    assert told.done == "seen: not told again"
    await orders.put({"_id": "newer"})

    async def both_fired() -> bool:
        return await fired(connection, db) == ["new", "newer"]

    await eventually(both_fired, 15)
    assert await losses_of(connection, db) == {}


@pytest.mark.parametrize("part", [None, 2, 0])
async def test_source_when_made_anew_from_a_copy_while_no_daemon_runs_then_only_what_is_new_fires(
    connection: Connection, db: Prefixer, begin: Any, part: int | None
) -> None:
    """As after a move of the server, or with other shards; `part`: a daemon sees so many come back, then another.

    Retention has removed the jobs meanwhile: their ids guard nothing.
    """
    orders = await orders_of(connection, db)
    jobs = connection.database(db.database("jobs"))
    for number in range(3):
        await orders.put({"_id": f"old-{number}"})
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    system = await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
    await orders.put({"_id": "first"})
    await eventually(lambda: jobs_of(connection, db, "seen"), 15)
    await eventually(lambda: so_far(connection, orders), 15)
    await system.shutdown(timeout=1)
    for job in await jobs_of(connection, db, "seen"):
        await delete_surely(jobs, job["_id"])
    kept = [document async for page in orders.all_docs() for document in page]
    instance = (await orders.info()).get("instance_start_time")
    await connection.server.delete_database(orders.name)

    async def made_anew() -> bool:  # at a later second
        await connection.server.create_database(orders.name)
        if (await orders.info()).get("instance_start_time") != instance:
            return True
        await connection.server.delete_database(orders.name)
        return False

    await eventually(made_anew, 20)

    async def come_back(documents: list[dict[str, Any]]) -> None:
        body = orjson.dumps({"docs": documents, "new_edits": False})
        await connection.server.request("POST", f"{orders.path}/_bulk_docs", body=body)

    await come_back(kept[:part])
    system = await begin(note)
    if part is not None:
        await eventually(lambda: so_far(connection, orders), 15)
        await system.shutdown(timeout=1)
        await come_back(kept)
        await begin(note)
    await orders.put({"_id": "last"})

    async def the_last_has_fired() -> bool:
        return "last" in await fired(connection, db)

    await eventually(the_last_has_fired, 20)
    assert await fired(connection, db) == ["last"]
    assert await losses_of(connection, db) == {}


async def so_far(connection: Connection, orders: Database) -> bool:
    """Whether a daemon has dealt with all that there is."""
    checkpoint = await connection.control.get(f"checkpoint:{orders.name}")
    feed = await orders.server.request("GET", f"{orders.path}/_changes", params={"since": checkpoint["seq"]})
    return not feed["results"]


async def test_source_when_it_cannot_be_opened_as_its_trigger_comes_then_old_documents_do_not_fire(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """CouchDB says `not_found` in `_dbs_info` whatever is wrong with a database; it does not say 404 for it."""
    orders = await orders_of(connection, db)
    for number in range(3):
        await orders.put({"_id": f"old-{number}"})
    refused = 0

    async def before(method: str, path: str, body: bytes) -> None:
        nonlocal refused
        if refused < 8 and "orders" in path.replace("%2F", "/"):
            refused += 1
            raise Refusal(500, {"error": "internal_server_error", "reason": "No DB shards could be opened."})

    def after(answer: Answer) -> None:
        if refused < 8 and "_dbs_info" in answer.path:
            answer.json = [{"key": one["key"], "error": "not_found"} for one in answer.json]

    async with FaultProxy(server_url) as proxy:
        proxy.before, proxy.after = before, after
        await triggers_of(connection, db).put({"_id": "seen", **EVENT})
        system = await begin(note, url=proxy.url)
        checkpoint = await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 30)
        assert refused == 8
        assert checkpoint["seq"] != "0"
        await orders.put({"_id": "new"})
        assert await eventually(lambda: fired(connection, db), 30) == ["new"]
        await system.shutdown(timeout=0)
