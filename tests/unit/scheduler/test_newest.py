"""What is new is read beside old rows that come again."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson
from triggering import orders_of
from waiting import eventually

from couchjobs.couch.changes import Change
from couchjobs.couch.connection import Connection
from couchjobs.errors import Unavailable
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.newest import NewestChanges
from couchjobs.scheduler.page_firing import PageFiring
from couchjobs.scheduler.past import Past
from couchjobs.scheduler.seen import Seen


async def test_newest_when_what_is_done_with_them_fails_then_the_same_come_again(
    connection: Connection, db: Prefixer
) -> None:
    """However many came meanwhile."""
    orders = await orders_of(connection, db)
    brought: list[str] = []
    fails = True

    async def fire(changes: list[Change]) -> None:
        if fails:
            raise Unavailable("it is away")
        brought.extend(change.doc_id for change in changes)

    newest = NewestChanges(orders, 1.0, fire)
    newest.begin()
    try:
        await asyncio.sleep(0.2)
        await orders.put({"_id": "first"})
        await eventually(lambda: newest._follower and newest._tasks.failures)
        fails = False
        await orders.put({"_id": "second"})
        await eventually(lambda: {"first", "second"} <= {*brought})
    finally:
        await newest.end()


async def test_page_when_it_brings_older_revisions_of_what_the_newest_brought_then_only_a_winner_is_news(
    connection: Connection, db: Prefixer
) -> None:
    """Copies of a cluster differ for a while; a lower generation may win, too, once the later revision is deleted."""
    orders = await orders_of(connection, db)
    won: dict[str, Any] = {
        "_id": "won",
        "_rev": "4-" + "c" * 32,
        "_revisions": {"start": 4, "ids": [one * 32 for one in "cba9"]},
    }
    body = orjson.dumps({"docs": [won], "new_edits": False})
    await orders.server.request("POST", f"{orders.path}/_bulk_docs", body=body)
    past = Past()
    past.seen = Seen()
    firing = PageFiring(connection, db, "orders", cast("Firing", None), past)
    past.note_brought([Change("x", "3-a", False), Change("won", "6-a", False), Change("gone", "5-a", False)])
    page = [
        Change("x", "2-a", False),
        Change("x", "3-b", False),
        Change("won", won["_rev"], False),
        Change("gone", "4-a", True),
        Change("other", "1-a", False),
    ]
    kept = await firing._less_what_is_behind(page)
    assert [(one.doc_id, one.rev) for one in kept] == [
        ("x", "3-b"),
        ("won", won["_rev"]),
        ("gone", "4-a"),
        ("other", "1-a"),
    ]
    past.forget_brought()
    assert await firing._less_what_is_behind(page) == page
