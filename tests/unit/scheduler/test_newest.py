"""What is new is read beside old rows that come again."""

from __future__ import annotations

import asyncio

from triggering import orders_of
from waiting import eventually

from couchjobs.couch.changes import Change, Page
from couchjobs.couch.connection import Connection
from couchjobs.errors import Unavailable
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.newest import NewestChanges


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
        old = Page([Change("first", "0-0", False), Change("first", "1-a", False), Change("other", "1-b", False)], "1")
        assert [one.rev for one in newest.less_what_is_older(old)] == ["1-a", "1-b"]
    finally:
        await newest.end()
    assert len(newest.less_what_is_older(old)) == 3
