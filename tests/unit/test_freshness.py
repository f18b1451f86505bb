"""When views are brought up to date for who looks again and again: without a server, and without waiting for time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database, Update
from couchjobs.errors import Forbidden, NotFound
from couchjobs.jobs import freshness
from couchjobs.jobs.freshness import Freshness
from couchjobs.settings import load_settings


class World:
    """A clock that stands still, and a database of which changes are not indexed."""

    def __init__(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.pending = 0
        self.takes_s = 0.0
        self._freshness = Freshness(connection, connection.settings.tenant)
        monkeypatch.setattr(freshness, "monotonic", lambda: self.now)
        monkeypatch.setattr(freshness, "unindexed", self._unindexed)

    async def _unindexed(self, _database: Database, design_id: str) -> int:
        assert design_id == "_design/jobs"
        return self.pending

    async def _ask(self, *, update: Update) -> str:
        if update == "true":
            self.now += self.takes_s
            self.pending = 0
        return update

    async def is_fresh(self, after_s: float, changes: int) -> bool:
        """Look once, so much later, after so many changes more; return whether that brought the views up to date."""
        self.now += after_s
        self.pending += changes
        found, is_older = await self._freshness.read(self._ask, 1.0)
        assert found == ("false" if is_older else "true")
        return not is_older


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A new one."""
    async with connect(load_settings(url="http://nowhere.invalid")) as connection:
        yield World(connection, monkeypatch)


async def test_read_when_few_changes_then_up_to_date_each_time(world: World) -> None:
    """Whatever the rate: the index of a few is next to nothing."""
    assert [await world.is_fresh(0.5, 400) for _ in range(5)] == [True] * 5


async def test_read_when_many_changes_come_then_as_the_views_are_until_there_is_calm(world: World) -> None:
    """The first look brings them up to date, for nobody knows yet."""
    assert await world.is_fresh(0, 5000)
    assert [await world.is_fresh(1, 3000) for _ in range(20)] == [False] * 20
    assert await world.is_fresh(1, 10)
    assert await world.is_fresh(1, 10)


async def test_read_when_there_is_no_calm_then_two_minutes_old_at_most(world: World) -> None:
    """And not again at once."""
    await world.is_fresh(0, 5000)
    looks = [await world.is_fresh(1, 3000) for _ in range(250)]
    assert [number for number, fresh in enumerate(looks) if fresh] == [120, 241]


async def test_read_when_an_update_took_long_then_the_next_comes_later(world: World) -> None:
    """Twenty times as long."""
    world.takes_s = 2.0
    assert await world.is_fresh(0, 10)
    world.takes_s = 0.0
    assert [await world.is_fresh(10, 10) for _ in range(5)] == [False, False, False, True, True]


async def test_read_when_an_index_that_took_long_is_there_then_up_to_date_at_once(world: World) -> None:
    """Whoever has timed out before."""
    world.takes_s = 2.0
    assert await world.is_fresh(0, 50_000)
    assert not await world.is_fresh(1, 40_000)
    world.pending = 0
    assert await world.is_fresh(1, 10)


async def test_read_when_the_server_does_not_say_then_the_views_are_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all that counts."""

    async def refused(*_: object) -> int:
        raise Forbidden("not for you", 403)

    monkeypatch.setattr(freshness, "unindexed", refused)
    assert await world.is_fresh(0, 5000)


async def test_read_when_there_are_no_views_then_said_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the views themselves would."""

    async def missing(*_: object) -> int:
        raise NotFound("no design document", 404)

    monkeypatch.setattr(freshness, "unindexed", missing)
    with pytest.raises(NotFound):
        await world.is_fresh(0, 0)
