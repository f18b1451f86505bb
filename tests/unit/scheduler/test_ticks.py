"""When ticks fire, by a clock that the test moves: at their time, late, or for a daemon that does not fire them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import eventually

from couchjobs.couch.connection import connect
from couchjobs.errors import Unavailable
from couchjobs.scheduler import ticker as ticker_module
from couchjobs.scheduler.attention import Attention
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.ticker import Ticker
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.settings import load_settings
from couchjobs.timestamps import now
from couchjobs.triggers.life import Plan, State

EVERY = {"_id": "t", "_rev": "1-a", "type": "@every", "arguments": "1m", "worker": "w", "message": None}


class InMemory:
    """States of schedules, and whether they can be had."""

    def __init__(self) -> None:
        self.known: dict[str, State] = {}
        self.is_away = False

    async def read(self, ids: Iterable[str]) -> dict[str, State | None]:
        """Return those of these triggers."""
        if self.is_away:
            raise Unavailable("503")
        return {one: self.known.get(one) for one in ids}

    async def write(self, infos: Any, state: State) -> bool:
        """Keep one."""
        if self.is_away:
            raise Unavailable("503")
        self.known[infos.id] = replace(state, rev=infos.rev)
        return True

    async def all(self) -> AsyncIterator[str]:
        """Yield all that are known."""
        for trigger_id in self.known:
            yield trigger_id

    def has(self, trigger_id: str) -> bool:
        """Return whether there is one."""
        return trigger_id in self.known


class World:
    """A ticker, its clock, and what it has fired."""

    def __init__(self, connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.present = now()
        self.rank = 0
        self.fired: list[datetime] = []
        self.states = InMemory()
        monkeypatch.setattr(ticker_module, "now", lambda: self.present)
        store = TriggerStore(connection, connection.settings.tenant)
        daemon: Any = SimpleNamespace(
            listen=asyncio.Event, rank_for=lambda key: self.rank, others_read_zones_differently=lambda: False
        )
        firing: Any = None
        self.triggers = TriggerSet(store, 1.0)
        self.ticker: Any = Ticker(connection, self.triggers, store, daemon, firing, Attention())
        self.ticker._states = self.states
        self.ticker._carrier = SimpleNamespace(carry_out=self.carry_out)
        self.triggers.loaded.set()

    async def carry_out(self, trigger: Any, life: Any, plan: Plan) -> bool:
        """Take note of what is fired, and keep what comes of it."""
        await self.states.write(trigger.infos, plan.then)
        life.state = self.states.known[trigger.infos.id]
        if plan.tick is not None:
            self.fired.append(plan.tick)
        return True

    async def move(self, seconds: float) -> None:
        """Let time go by, and the ticker do what it then does."""
        self.present += timedelta(seconds=seconds)
        self.ticker._news.set()
        await asyncio.sleep(0)
        await eventually(lambda: self.ticker.is_quiet and not self.ticker._news.is_set())


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """One trigger of a minute that is known, and a ticker that runs."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        world = World(connection, monkeypatch)
        running = asyncio.create_task(world.ticker.run())
        try:
            yield world
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def begin(world: World) -> datetime:
    """Have the trigger seen for the first time; return its first tick."""
    world.triggers.take_in([dict(EVERY)])
    world.triggers._notify()
    await eventually(lambda: world.ticker._timers.get("t") is not None)
    return world.present + timedelta(minutes=1)


async def test_tick_when_its_time_comes_then_fired_once_and_not_before(world: World) -> None:
    """And each further one at its own."""
    first = await begin(world)
    await world.move(59.9)
    assert world.fired == []
    await world.move(0.2)
    await eventually(lambda: world.fired == [first])
    await world.move(30)
    assert world.fired == [first]
    await world.move(31)
    await eventually(lambda: world.fired == [first, first + timedelta(minutes=1)])


async def test_ticks_when_nobody_watched_the_clock_then_one_late_job_for_all(world: World) -> None:
    """As `misfire` says it by default: the newest of them, and the rhythm stays."""
    first = await begin(world)
    await world.move(5 * 60 + 1)
    newest = first + timedelta(minutes=4)
    await eventually(lambda: world.fired == [newest])
    await world.move(60)
    await eventually(lambda: world.fired == [newest, newest + timedelta(minutes=1)])


async def test_tick_when_couchdb_takes_it_later_then_fired_once_it_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again each second."""
    first = await begin(world)
    world.states.is_away = True
    await world.move(60.1)
    assert world.fired == []
    world.states.is_away = False
    await world.move(10)
    await eventually(lambda: world.fired == [first])


async def test_tick_when_it_is_anothers_then_taken_over_only_where_it_does_not_come(world: World) -> None:
    """Ten seconds after its time, by what the other one has stored."""
    world.rank = 1
    first = await begin(world)
    state = world.ticker._timers["t"].life.state
    world.states.known["t"] = replace(state, rev="1-a")
    await world.move(62)
    assert world.fired == []
    world.states.known["t"] = replace(state, rev="1-a", passed=first, fired=first)  # the other one has fired it
    await world.move(60)
    assert world.fired == []
    second = first + timedelta(minutes=1)
    for _ in range(8):  # the other one has gone
        await world.move(10)
    await eventually(lambda: world.fired and world.fired[0] >= second)
