"""Whether a tenant may fall asleep while it looks what to follow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from couchjobs.scheduler.feeds import Feeds
from couchjobs.waits import ChangedIds


async def test_quiet_when_what_to_follow_is_being_looked_for_then_not_nor_once_that_was_cut_off() -> None:
    """A source that is not known wakes nobody: what came of it would fire nothing, or a quarter of an hour later."""
    feeds = Feeds.__new__(Feeds)
    feeds._changed, feeds._daemons_changed, feeds._ended = ChangedIds(), asyncio.Event(), asyncio.Event()
    feeds._is_looking, feeds._paused, feeds._doubted = False, {}, set()
    feeds._sources_at, feeds._seldom = 0.0, 1
    may_go_on = asyncio.Event()

    async def wait() -> None:
        await may_go_on.wait()

    async def nothing() -> None:
        pass

    some: Any = feeds
    some._find_wanted, some._keep_positions, some._arrange = wait, nothing, nothing
    feeds._changed.note(["trigger"])
    looking = asyncio.create_task(feeds._look())
    await asyncio.sleep(0)
    assert not feeds._changed.is_set()
    assert not feeds.is_quiet
    assert not feeds._changed.take(), "each is remembered once"
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert not feeds.is_quiet
    may_go_on.set()
    await feeds._look()
    assert feeds.is_quiet
