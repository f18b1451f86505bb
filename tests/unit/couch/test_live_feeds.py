"""How many feeds wait at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest

from couchjobs.couch.live_feeds import LiveFeeds
from couchjobs.errors import Unavailable

TOO_MANY = Unavailable("500: No DB shards could be opened.", 500)


def places(live: LiveFeeds) -> int:
    """How many feeds of one shard may wait."""
    count = 0
    with ExitStack() as stack:
        while stack.enter_context(live.place("jobs", 1)):
            count += 1
    return count


def test_feeds_when_they_are_too_many_then_fewer_once_for_many_errors_and_more_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fifty that fail in one second are one error; whoever had the shards open may have gone."""
    at = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: at[0])
    live = LiveFeeds(1000, 500)
    assert places(live) == 100
    for _ in range(50):
        live.note(TOO_MANY)
    assert places(live) == 50
    at[0] += 6
    live.note(TOO_MANY)
    live.note(Unavailable("503: something else", 503))
    assert places(live) == 25
    for _ in range(100):
        at[0] += 70
        places(live)
    assert places(live) == 100


def test_places_when_some_databases_come_first_then_others_have_none() -> None:
    """However many are free: who was there first would keep all of them."""
    live = LiveFeeds(3, 500)
    with live.place("others", 1) as waits:
        assert waits
        live.prefer({"a", "b"})
        with live.place("others", 1) as waits_too, live.place("a", 1) as comes_first:
            assert (waits_too, comes_first) == (False, True)


async def test_feed_when_its_database_comes_first_from_then_on_then_it_asks_for_a_place_now() -> None:
    """It waits to be told of a change otherwise, for a minute."""
    live = LiveFeeds(3, 500)
    live.are_told = True
    live.prefer({"b"})
    waiting = asyncio.create_task(live.changed("a"))
    await asyncio.sleep(0)
    live.prefer({"a", "b"})
    assert await asyncio.wait_for(waiting, 5)
