"""Who begins: few at once, and nobody waits for one that takes long."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from waiting import eventually

from couchjobs.tenants.places import Places


async def test_places_when_holders_take_long_then_others_have_theirs_until_many_do() -> None:
    """Once a slow one has left, another one takes its place."""
    freed = asyncio.Event()
    places = Places(2, 3, 0.01, freed.set)
    with ExitStack() as kept:
        leaving = ExitStack()
        leaving.enter_context(places.taken())
        kept.enter_context(places.taken())
        assert places.free == 0
        await asyncio.wait_for(freed.wait(), 5)
        await eventually(lambda: places.free == 2)
        assert places.many_are_slow
        for _ in range(2):
            kept.enter_context(places.taken())
        await eventually(lambda: places.free == 1)
        leaving.close()
        await eventually(lambda: places.free == 2)
    assert places.free == 2
    assert not places.many_are_slow
