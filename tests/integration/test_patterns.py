"""Events from databases that are named by a pattern: those of users, say, that come and go."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.client import CouchServer
from couchjobs.couch.connection import Connection
from couchjobs.doctor.examine import examine
from couchjobs.errors import MalformedTriggerError
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler import feeds
from couchjobs.scheduler.sources import write_list
from couchjobs.scheduler.store import TriggerStore
from couchjobs.triggers.event import name_pattern, parse_event
from couchjobs.triggers.infos import TriggerInfos

Start = Callable[..., Any]
TRIGGER = {"type": "@event", "arguments": "userdb-*:CREATED", "worker": "note", "message": None}


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """For databases that are made while a daemon runs: each half second, and not each ten."""
    monkeypatch.setattr(feeds, "_SOURCES_S", 0.5)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("userdb-*", "userdb-6a61", True),
        ("userdb-*", "userdb-", True),
        ("userdb-*", "userdb", False),
        ("userdb-*", "userdb-a/b", False),
        ("u*-*s", "users-and-orders", True),
        ("a+b*", "a+bc", True),
        ("a+b*", "aab", False),
        ("orders", "orders", True),
        ("orders", "orders-2", False),
    ],
)
def test_name_pattern_when_it_holds_a_star_then_any_text_but_a_slash(pattern: str, name: str, matches: bool) -> None:
    """A rule names what its pattern matches, and nothing else."""
    assert name_pattern(pattern)(name) is matches
    assert parse_event(pattern).names(name) is matches


def test_name_pattern_when_it_holds_many_stars_then_it_is_compared_at_once() -> None:
    """Backtracking, twenty of them would take longer than a daemon lives, and no turn of its event loop would come."""
    matches = name_pattern("userdb-" + "a*" * 20 + "b")
    assert not matches("userdb-" + "a" * 200)
    assert matches("userdb-" + "a" * 200 + "b")
    assert not matches("userdb-" + "a" * 10 + "/" + "a" * 10 + "b")


@given(st.text("ab*/", max_size=10), st.text("ab/", max_size=12))
def test_name_pattern_when_compared_with_backtracking_then_the_same(pattern: str, name: str) -> None:
    """What is found first of each part is kept, and that loses nothing."""
    plain = "[^/]*".join(re.escape(part) for part in re.split(r"\*+", pattern))
    assert name_pattern(pattern)(name) is (re.fullmatch(plain, name) is not None)


def test_parse_when_the_pattern_could_be_anything_then_refused() -> None:
    """It begins with a letter, as a database does."""
    with pytest.raises(MalformedTriggerError, match="beginning with a letter"):
        parse_event("*:CREATED")
    with pytest.raises(MalformedTriggerError, match="have - for a dot"):
        parse_event("user.db-*:CREATED")


async def _database(connection: Connection, db: Prefixer, doctype: str, *ids: str) -> None:
    name = db.database(doctype)
    await connection.server.create_database(name)
    for doc_id in ids:
        await connection.database(name).put({"_id": doc_id})


async def test_pattern_when_databases_come_then_what_is_newer_than_the_trigger_fires(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Not what was there before; all of a database that was made since, though no daemon ran."""
    await _database(connection, db, "userdb-a", "old")
    await _database(connection, db, "other", "x")
    await triggers_of(connection, db).put({"_id": "t", **TRIGGER})
    system = await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await connection.database(db.database("userdb-a")).put({"_id": "new"})
    (job,) = await eventually(lambda: so_many_jobs_of(connection, db, "t", 1))
    assert (job["event"]["doc"]["_id"], job["event"]["doctype"]) == ("new", "userdb-a")
    await _database(connection, db, "userdb-b", "first", "second")
    await eventually(lambda: so_many_jobs_of(connection, db, "t", 3))
    await system.shutdown()
    await _database(connection, db, "userdb-c", "third")
    await connection.database(db.database("userdb-b")).put({"_id": "fourth"})
    await start(note)
    jobs = await eventually(lambda: so_many_jobs_of(connection, db, "t", 5))
    fired = {(job["event"]["doctype"], job["event"]["doc"]["_id"]) for job in jobs}
    assert fired == {
        ("userdb-a", "new"),
        ("userdb-b", "first"),
        ("userdb-b", "second"),
        ("userdb-b", "fourth"),
        ("userdb-c", "third"),
    }


async def test_pattern_when_it_finds_more_than_may_be_followed_then_the_first_are_and_named_ones_come_before(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """One database more stops nothing; `triggers ls` and doctor say so."""
    for name in ("userdb-a", "userdb-b", "userdb-c"):
        await _database(connection, db, name)
    orders = await orders_of(connection, db)
    triggers = triggers_of(connection, db)
    await triggers.put({"_id": "a", **TRIGGER})
    await triggers.put({"_id": "z", **TRIGGER, "arguments": "orders:CREATED"})
    await start(note, max_source_databases=3)

    async def followed() -> bool:
        return len(await connection.control.with_prefix("checkpoint:")) == 3

    await eventually(followed)
    for name in ("userdb-a", "userdb-b", "userdb-c"):
        await connection.database(db.database(name)).put({"_id": name})
    await orders.put({"_id": "order"})
    await eventually(lambda: so_many_jobs_of(connection, db, "z", 1))
    jobs = await eventually(lambda: so_many_jobs_of(connection, db, "a", 2))
    assert {job["event"]["doctype"] for job in jobs} == {"userdb-a", "userdb-b"}
    connection.settings = connection.settings.model_copy(update={"max_source_databases": 3})
    told = [one.what for one in await examine(connection, db) if one.where == "a"]
    assert "finds more databases than are followed: 3" in told[0]


async def test_pattern_when_it_is_refused_then_what_it_would_find_counts_as_known(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """An exact trigger that is added later fires for nothing that is older."""
    await write_list(connection, db, ["orders", "userdb-x"])
    await triggers_of(connection, db).put({"_id": "p", **TRIGGER})
    system = await start(note)
    await eventually(lambda: "p" in system.scheduler._feeds._refused)
    await _database(connection, db, "userdb-x", "old")
    await triggers_of(connection, db).put({"_id": "x", **TRIGGER, "arguments": "userdb-x:CREATED"})
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    followed = system.scheduler._feeds._followed
    await eventually(lambda: "userdb-x" in followed and followed["userdb-x"].follower.past.seen is not None)
    await connection.database(db.database("userdb-x")).put({"_id": "new"})
    (job,) = await eventually(lambda: so_many_jobs_of(connection, db, "x", 1))
    assert job["event"]["doc"]["_id"] == "new"


async def test_pattern_when_its_trigger_is_removed_then_nothing_of_it_stays(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A later one begins anew."""
    await _database(connection, db, "userdb-a")
    triggers = triggers_of(connection, db)
    rev = await triggers.put({"_id": "t", **TRIGGER})
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await eventually(lambda: connection.control.with_prefix("pattern:"))
    await triggers.delete("t", rev)

    async def gone() -> bool:
        left = [await connection.control.with_prefix(prefix) for prefix in ("checkpoint:", "pattern:")]
        return left == [[], []]

    await eventually(gone)
    assert await jobs_of(connection, db, "t") == []


async def test_pattern_when_the_list_of_sources_does_not_cover_it_then_refused(
    connection: Connection, db: Prefixer
) -> None:
    """Where it is written; the list may name the same pattern, or a wider one."""
    store, infos = TriggerStore(connection, db), TriggerInfos.from_document({"_id": "t", **TRIGGER})
    await write_list(connection, db, ["orders"])
    with pytest.raises(MalformedTriggerError, match=r"--watch 'orders,userdb-\*'"):
        await store.add(infos)
    await write_list(connection, db, ["orders", "user*"])
    assert (await store.add(infos)).id == "t"


async def test_pattern_when_the_first_list_of_databases_is_a_lie_then_old_documents_fire_nothing(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something between answers 200 and an empty list: what it left out would seem to be new afterwards."""
    await _database(connection, db, "userdb-a", "old")
    await triggers_of(connection, db).put({"_id": "t", **TRIGGER})
    lies = [0, 3]
    truth = CouchServer.request

    async def request(self: CouchServer, method: str, path: str, **given: Any) -> Any:
        if path == "_all_dbs" and lies[0] < lies[1]:
            lies[0] += 1
            return []
        return await truth(self, method, path, **given)

    monkeypatch.setattr(CouchServer, "request", request)
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    assert lies[0] == lies[1]
    await connection.database(db.database("userdb-a")).put({"_id": "new"})
    (job,) = await eventually(lambda: so_many_jobs_of(connection, db, "t", 1))
    assert job["event"]["doc"]["_id"] == "new"
