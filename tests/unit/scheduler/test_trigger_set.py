"""Which triggers are known, and what those may mean that cannot be understood."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import eventually

from couchjobs.couch.answers import Found
from couchjobs.couch.changes import Change, Page
from couchjobs.couch.connection import connect
from couchjobs.scheduler import trigger_set
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.settings import load_settings


@pytest.fixture
async def triggers() -> AsyncIterator[TriggerSet]:
    """No triggers yet."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        yield TriggerSet(TriggerStore(connection, connection.settings.tenant), 1.0)


async def test_unreadable_when_it_can_be_read_or_is_gone_then_all_is_known_again(triggers: TriggerSet) -> None:
    """Until then it may name any database, and no position is dropped."""
    document = {"_id": "t", "_rev": "2-b", "type": "@cron", "arguments": "often", "worker": "w", "message": None}
    for later in ([Found("t", None, document)], [Found("t", None, None, absent=True)], None):
        triggers._take_in_answers([Found("t", None, None, unreadable=True, reason="too deep")])
        assert not triggers.is_complete
        if later is None:
            triggers._forget_all()
        else:
            triggers._take_in_answers(later)
        assert triggers.is_complete


async def test_meant_when_a_trigger_cannot_be_understood_then_what_it_names_or_named(triggers: TriggerSet) -> None:
    """Its type may be what is wrong; a type of the clock names no database, and neither does a disabled one."""
    base = {"_id": "t", "worker": "w", "message": None}
    for fields, meant in (
        ({"type": "@event", "arguments": "orders:CREATED"}, set()),
        ({"type": "@evnt", "arguments": "customers:CREATED other"}, {"orders", "customers", "other"}),
        ({"type": ["@event"], "rules": [{"doctype": "invoices"}, 7]}, {"orders", "customers", "other", "invoices"}),
        ({"type": "@event", "arguments": "orders:CREATED"}, set()),
        ({"type": "@cron", "arguments": "* * often"}, {"orders"}),
    ):
        triggers.take_in([{**base, "_rev": "1-a", **fields}])
        assert triggers.meant == meant, fields
    triggers._take_in_answers([Found("t", None, None, absent=True)])
    triggers.take_in([{**base, "_rev": "3-a", "type": "@event", "arguments": "orders:NEVER", "disabled": True}])
    assert triggers.meant == set()


async def test_row_when_the_copies_that_are_read_are_behind_then_read_again_until_they_are_not(
    triggers: TriggerSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of the feed comes once: what it tells of would be unknown until the next sweep, five minutes later."""
    monkeypatch.setattr(trigger_set, "_LOOK_AGAIN_S", 0.0)
    old = {"_id": "t", "_rev": "1-a", "type": "@every", "arguments": "1h", "worker": "w", "message": None}
    new = {**old, "_rev": "2-b", "arguments": "2h"}
    triggers._take_in_answers([Found("t", None, old)])
    answers = [
        [Found("t", None, old), Found("new", None, None, absent=True), Found("gone", None, {**old, "_id": "gone"})],
        [Found("t", None, old), Found("new", None, None, absent=True), Found("gone", None, None, absent=True)],
        [Found("t", None, new), Found("new", None, {**old, "_id": "new"})],
    ]

    async def read(ids: Iterable[str]) -> list[Found]:
        return [one for one in answers.pop(0) if one.doc_id in {*ids}]

    triggers._database.read = read  # type: ignore[method-assign]
    triggers._take_in_answers([Found("gone", None, {**old, "_id": "gone"})])
    rows = [Change("t", "2-b", False), Change("new", "1-a", False), Change("gone", "2-c", True)]
    pages = iter([Page(rows, "3")])

    async def next_page() -> Page:
        for page in pages:
            return page
        return await asyncio.Future[Page]()

    follower: Any = SimpleNamespace(next_page=next_page, done=lambda page: None)
    triggers._follower = follower
    triggers.loaded.set()
    tasks = [asyncio.create_task(run) for run in (triggers.follow(), triggers.sweep_for_ever(3600))]
    try:
        await eventually(lambda: not answers)
        await eventually(lambda: triggers.is_complete)
        assert {*triggers.scheduled} == {"t", "new"}
        assert triggers.scheduled["t"].infos.rev == "2-b"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_row_when_its_document_was_purged_then_not_asked_for_for_ever(triggers: TriggerSet) -> None:
    """The feed has shown it, and nobody has it any more."""
    triggers._unknown = {"t": trigger_set._Awaited(Change("t", "1-a", False))}

    async def read(ids: Iterable[str]) -> list[Found]:
        return [Found(one, None, None, absent=True) for one in ids]

    triggers._database.read = read  # type: ignore[method-assign]
    for _ in range(trigger_set._LOOKS):
        await triggers._read_unknown(triggers._unknown)
        assert not triggers.is_complete
    await triggers._read_unknown(triggers._unknown)
    assert triggers.is_complete


async def test_row_when_couchdb_says_nothing_of_it_first_then_what_it_told_still_counts(triggers: TriggerSet) -> None:
    """A node that comes back is in maintenance first, and behind then: an older answer is no newer one for that."""
    triggers._unknown = {"t": trigger_set._Awaited(Change("t", "2-b", False))}
    old = {"_id": "t", "_rev": "1-a", "type": "@every", "arguments": "1h", "worker": "w", "message": None}
    for answer in (
        Found("t", None, None, reason="maintenance_mode"),
        Found("t", None, None, absent=True),
        Found("t", None, old),
    ):

        async def read(_: Iterable[str], answer: Found = answer) -> list[Found]:
            return [answer]

        triggers._database.read = read  # type: ignore[method-assign]
        await triggers._read_unknown(triggers._unknown)
        assert not triggers.is_complete
        assert "t" not in triggers.scheduled


async def test_unknown_when_the_look_again_was_cut_off_then_made_anew(triggers: TriggerSet) -> None:
    """A tenant that tries to sleep cuts it off, and goes on because of what is unknown."""
    triggers._unknown = {"t": trigger_set._Awaited()}
    read = asyncio.Event()

    async def note(_: Iterable[str]) -> list[Found]:
        read.set()
        return [Found("t", None, None, absent=True)]

    triggers._database.read = note  # type: ignore[method-assign]
    triggers.loaded.set()
    for wait_s in (0.1, 30):
        sweeping = asyncio.create_task(triggers.sweep_for_ever(3600))
        await asyncio.wait([asyncio.create_task(read.wait())], timeout=wait_s)
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
    assert triggers.is_complete


async def test_sweep_when_a_trigger_is_asked_for_again_and_again_then_in_time_all_the_same(
    triggers: TriggerSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of which CouchDB does not say what it is must not keep the others from being compared."""
    monkeypatch.setattr(trigger_set, "_LOOK_AGAIN_S", 0.001)
    swept = asyncio.Event()

    async def read(ids: Iterable[str]) -> list[Found]:
        await asyncio.sleep(0)
        return [Found(one, None, None) for one in ids]

    async def all_revisions() -> dict[str, str]:
        swept.set()
        return {}

    triggers._database.read = read  # type: ignore[method-assign]
    triggers._database.all_revisions = all_revisions  # type: ignore[method-assign]
    triggers.loaded.set()
    triggers._take_in_answers([Found("t", None, None)])
    sweeping = asyncio.create_task(triggers.sweep_for_ever(0.1))
    async with asyncio.timeout(10):
        await swept.wait()
        swept.clear()
        await swept.wait()
    assert "t" in triggers._unknown, "it is still asked for"
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
