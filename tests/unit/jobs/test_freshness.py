"""When views are brought up to date for who looks again and again: without a server, and without waiting for time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database, Update
from couchjobs.couch.design import unindexed
from couchjobs.errors import CouchError, Forbidden, NotFound, Unavailable
from couchjobs.jobs import freshness
from couchjobs.jobs.freshness import Freshness
from couchjobs.settings import load_settings


class World:
    """A clock that stands still, and a database of which changes are not indexed."""

    def __init__(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.pending = 0
        self.takes_s = 0.0
        self.tells = True
        self.freshness = Freshness(connection, connection.settings.tenant)
        monkeypatch.setattr(freshness, "monotonic", lambda: self.now)
        monkeypatch.setattr(freshness, "unindexed", self._unindexed)

    async def _unindexed(self, _database: Database, design_id: str) -> int | None:
        assert design_id == "_design/jobs"
        return self.pending if self.tells else None

    async def _ask(self, *, update: Update) -> str:
        if update == "true":
            self.now += self.takes_s
            self.pending = 0
        return update

    async def is_fresh(self, after_s: float, changes: int) -> bool:
        """Look once, so much later, after so many changes more; return whether that brought the views up to date."""
        self.now += after_s
        self.pending += changes
        found, is_older = await self.freshness.read(self._ask, 0.1)
        assert is_older == (found == "false")
        return found == "true"


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


async def test_read_when_an_update_takes_long_then_the_next_look_asks_again(world: World) -> None:
    """What is pending says all: an index that is there is shown at once, whoever has waited for it before."""
    world.takes_s = 2.0
    assert await world.is_fresh(0, 50_000)
    assert await world.is_fresh(1, 10)


async def test_read_when_the_server_does_not_say_then_the_longer_it_took_the_later(world: World) -> None:
    """As the embedded server does not."""
    world.tells = False
    world.takes_s = 2.0
    assert await world.is_fresh(0, 10)
    world.takes_s = 0.0
    assert [await world.is_fresh(4, 10) for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize("error", [Forbidden("not for you", 403), NotFound("gone", 404), Unavailable("no", 503)])
async def test_read_when_the_server_does_not_say_then_the_views_are_asked(
    world: World, monkeypatch: pytest.MonkeyPatch, error: CouchError
) -> None:
    """They are all that counts, and say themselves what is missing."""

    async def refused(*_: object) -> int:
        raise error

    monkeypatch.setattr(freshness, "unindexed", refused)
    assert await world.is_fresh(0, 5000)


async def test_read_when_the_server_is_silent_then_the_views_are_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the reader's patience."""

    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(freshness, "unindexed", silent)
    assert await world.is_fresh(0, 5000)


async def test_read_when_nothing_is_pending_then_never_said_to_be_older(world: World) -> None:
    """Not where an update was too slow either."""

    async def slow(*, update: Update) -> Update:
        if update == "true":
            raise TimeoutError
        return update

    assert await world.freshness.read(slow, 0.01) == ("false", False)
    world.pending = 1
    assert await world.freshness.read(slow, 0.01) == ("false", True)


@pytest.mark.parametrize("info", [None, {}, {"view_index": None}, {"view_index": {"updates_pending": 7}}, []])
async def test_unindexed_when_the_answer_is_odd_then_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, info: object
) -> None:
    """The embedded server has words in its place."""
    async with connect(load_settings(url="http://nowhere.invalid")) as connection:

        async def request(*_: object) -> object:
            return info

        monkeypatch.setattr(connection.server, "request", request)
        assert await unindexed(connection.database("db"), "_design/jobs") is None
