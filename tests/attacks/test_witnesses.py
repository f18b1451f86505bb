"""Rows that vouch for a position, and are unknown for other reasons than that the database is an older copy."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from triggering import jobs_of, note, orders_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Witness
from couchjobs.couch.identity import Known, is_another_than, purges_of
from couchjobs.couch.positions import current_sequence
from couchjobs.errors import CouchError
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.positions import loss_of, read_positions

EVENT = {"type": "@event", "arguments": "orders:CREATED,UPDATED", "worker": "note", "message": None}
DIGEST = "a" * 32


async def put_trimmed(orders: Database, doc_id: str, start: int, *, deleted: bool = False) -> None:
    """A document that has changed so often that only its last revision is known, as `_revs_limit` has it."""
    document: dict[str, Any] = {"_id": doc_id, "_revisions": {"start": start, "ids": ["b" * 32]}}
    document |= {"_deleted": True} if deleted else {}
    body = orjson.dumps({"docs": [document], "new_edits": False})
    await orders.server.request("POST", f"{orders.path}/_bulk_docs", body=body)


async def purge(orders: Database, doc_id: str) -> None:
    """Take a document away as though it had never been there; not every server can."""
    rev = (await orders.get(doc_id))["_rev"]
    try:
        await orders.server.request("POST", f"{orders.path}/_purge", body=orjson.dumps({doc_id: [rev]}))
    except CouchError as error:
        pytest.skip(f"this server purges nothing: {error}")


async def test_database_when_a_witness_is_unknown_then_another_one_only_where_nothing_else_explains_it(
    connection: Connection, db: Prefixer
) -> None:
    """Each row: a witness, and whether it tells of an older copy."""
    orders = await orders_of(connection, db)
    for doc_id in ("new", "plain"):
        await orders.put({"_id": doc_id})
    await put_trimmed(orders, "trimmed", 50)
    await put_trimmed(orders, "trimmed-and-deleted", 50, deleted=True)
    rows = [
        (Witness("never", f"1-{DIGEST}"), True),
        (Witness("new", f"1-{DIGEST}"), True),  # made anew with the same id: it has not seen this one
        (Witness("new", f"7-{DIGEST}"), True),  # it is further back than the witness
        (Witness("trimmed", f"20-{DIGEST}"), False),
        (Witness("trimmed-and-deleted", f"20-{DIGEST}"), False),
        (Witness("trimmed", f"50-{DIGEST}"), True),
        (Witness("trimmed", f"60-{DIGEST}"), True),
    ]
    position = await current_sequence(orders)
    for witness, told in rows:
        assert await is_another_than(orders, Known(position, "", [witness])) is told, witness


async def test_database_when_a_copy_that_is_behind_answers_then_it_is_the_same(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node of a cluster that has been away: it lacks the newest revisions, and counts its changes otherwise."""
    orders = await orders_of(connection, db)
    first = await orders.put({"_id": "one"})
    second = await orders.put({"_id": "one", "_rev": first, "n": 2})
    present = await current_sequence(orders)
    asked, info = orders.missing_revisions, await orders.info()

    async def all_missing(wanted: Any) -> list[Witness]:
        return [*wanted]

    monkeypatch.setattr(orders, "missing_revisions", all_missing)
    for rev in (first, second):
        assert not await is_another_than(orders, Known(present, "", [Witness("one", rev)]))
    assert await is_another_than(orders, Known(present, "", [Witness("one", f"2-{DIGEST}")]))
    monkeypatch.setattr(orders, "missing_revisions", asked)
    for copies, told in ((1, True), (3, False)):

        async def behind(copies: int = copies) -> dict[str, Any]:
            return {**info, "update_seq": "1-x", "cluster": {"n": copies}}

        monkeypatch.setattr(orders, "info", behind)
        assert await is_another_than(orders, Known("2-x")) is told


async def test_database_when_a_witness_was_purged_then_the_same(connection: Connection, db: Prefixer) -> None:
    """A database counts its purges; one that has purged nothing since has lost what it does not know."""
    orders = await orders_of(connection, db)
    rev = await orders.put({"_id": "taken"})
    await orders.put({"_id": "other"})
    position = await current_sequence(orders)
    await purge(orders, "taken")

    async def counted() -> int:  # by each copy of a cluster
        return min([purges_of(await orders.info()) for _ in range(6)])

    purges = await eventually(counted, 60)
    assert purges == 1
    assert not await is_another_than(orders, Known(position, "", [Witness("taken", rev)]))
    assert await is_another_than(orders, Known(position, "", [Witness("taken", rev, purges=purges)]))


@pytest.mark.parametrize("how", ["trimmed", "purged"])
async def test_events_when_what_was_read_last_is_unknown_then_none_of_the_others_is_missed(
    connection: Connection, db: Prefixer, begin: Any, how: str
) -> None:
    """No daemon runs meanwhile; retention that purges jobs does this to a trigger on jobs all day."""
    orders = await orders_of(connection, db)
    await triggers_of(connection, db).put({"_id": "seen", **EVENT})
    system = await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 15)
    await orders.put({"_id": "one"})

    async def fired() -> set[str]:
        return {job["event"]["doc"]["_id"] for job in await jobs_of(connection, db, "seen")}

    async def has_come_to_it() -> bool:
        checkpoint = await connection.control.get(f"checkpoint:{orders.name}")
        return [one["id"] for one in checkpoint.get("last", [])] == ["one"]

    await eventually(has_come_to_it, 15)
    await system.shutdown()
    if how == "purged":
        await purge(orders, "one")
    else:
        await put_trimmed(orders, "one", 2000)
    for number in range(3):
        await orders.put({"_id": f"new-{number}"})
    await begin(note)
    wanted = {"new-0", "new-1", "new-2"}

    async def all_fired() -> bool:
        return wanted <= await fired()

    await eventually(all_fired, 20)
    assert not [one for one in (await read_positions(connection, db)).values() if loss_of(one)]
