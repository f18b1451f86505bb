"""What tests of the broker share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from producing import World

from couchjobs.couch.connection import connect
from couchjobs.settings import load_settings


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A producer that runs, of one worker type with two slots, and two lanes."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        world = World(connection)
        running = asyncio.create_task(world.producer.run())
        yield world
        running.cancel()
        for event in world.executor.running.values():
            event.set()
        await asyncio.gather(running, return_exceptions=True)
        await world.producer.idle()
