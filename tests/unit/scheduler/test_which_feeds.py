"""Which databases are looked for, where the server does not tell of many at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from couchjobs.errors import NotFound
from couchjobs.scheduler.feeds import Feeds


class Databases:
    """A server of which every third database exists."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def database(self, name: str) -> Any:
        """Return one."""

        async def info() -> None:
            self.asked.append(name)
            if int(name) % 3:
                raise NotFound(name)

        return SimpleNamespace(info=info)

    async def welcome(self) -> None:
        """Say that it is CouchDB."""


async def test_databases_when_they_are_asked_for_one_by_one_then_all_unknown_ones_at_once_and_some_of_the_others() -> (
    None
):
    """A tenant that sleeps soon has all of its databases followed until then; others in turn."""
    server = Databases()
    connection = SimpleNamespace(database=server.database, server=server)
    feeds: Any = SimpleNamespace(_absent={}, _connection=connection)
    feeds._is_there = lambda name: Feeds._is_there(feeds, name)
    names = {f"{number}": f"d{number}" for number in range(60)}
    present, absent = await Feeds._present_one_by_one(feeds, names)
    assert present == {f"d{number}" for number in range(0, 60, 3)}
    assert present | absent == {*names.values()}
    feeds._absent = dict.fromkeys(sorted(absent, key=lambda one: int(one[1:])))
    server.asked.clear()
    rest = {name: doctype for name, doctype in names.items() if doctype in absent}
    assert await Feeds._present_one_by_one(feeds, {**rest, "63": "new"}) == ({"new"}, {*[*feeds._absent][:10]})
    assert len(server.asked) == 11
