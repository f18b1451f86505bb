"""What is known while the view of due jobs is being read, and after that was cut off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from producing import World

from couchjobs.broker.sweeper import Sweeper


async def test_sweeper_when_it_is_cut_off_as_it_reads_for_more_then_there_may_still_be_more(world: World) -> None:
    """What a note alone stood for would be looked for by nobody: a tenant that falls asleep in between."""
    lane = world.lane
    sweeper = Sweeper(world.connection, lane, world.producer)
    reads = asyncio.Event()

    async def read_for_ever(*_: object) -> None:
        reads.set()
        await asyncio.sleep(3600)

    some: Any = sweeper
    some._sweep_type = read_for_ever
    (worker_type,) = lane.workers.names()
    lane.backlog.note_overflow(worker_type, 0.0)
    sweeper._swept_at = 0.0
    running = asyncio.create_task(sweeper.run())
    await reads.wait()
    assert not lane.is_quiet
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert lane.backlog.has_overflow
    assert not lane.is_quiet


async def test_sweeper_when_it_waits_then_the_lane_may_be_quiet(world: World) -> None:
    """And not before the first look."""
    lane = world.lane
    sweeper = Sweeper(world.connection, lane, world.producer)

    async def find_nothing(*_: object) -> None:
        await asyncio.sleep(0)

    some: Any = sweeper
    some._sweep_type = find_nothing
    assert not lane.is_quiet
    running = asyncio.create_task(sweeper.run())
    await world.until(lambda: lane.is_quiet)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert lane.is_quiet
