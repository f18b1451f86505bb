"""Which databases have changed, where the server says so and where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from waiting import eventually

from couchjobs.couch import updates
from couchjobs.couch.updates import DatabaseUpdates
from couchjobs.errors import BadRequest, CouchError, Forbidden, NotCouchDB, NotFound, Unavailable


class Server:
    """One that says which databases change, or what is wrong instead."""

    def __init__(self) -> None:
        self.error: CouchError | None = None
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.seqs: dict[str, object] = {"a/jobs": 1, "b/jobs": 1}
        self.asked = 0

    async def request(self, _method: str, _path: str, *, params: dict[str, Any], **_: Any) -> Any:
        """Tell of the next database that changes."""
        if self.error is not None:
            raise self.error
        if params["since"] == "now":
            return {"last_seq": "0", "results": []}
        return {"last_seq": str(params["since"]) + "+", "results": [{"db_name": await self.told.get()}]}

    async def sequences(self, names: list[str]) -> dict[str, object]:
        """Tell how far each is."""
        self.asked += 1
        return {name: self.seqs[name] for name in names}


@pytest.fixture
async def heard(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Server, list[set[str]], DatabaseUpdates]]:
    """A server, and what was heard of it so far, at a pace that no test waits for."""
    for name in ("_UNTOLD_S", "_LEAST_PAUSE_S", "_ASK_AGAIN_S"):
        monkeypatch.setattr(updates, name, 0.05)
    monkeypatch.setattr(updates, "LONGEST_OUTAGE_PAUSE_S", 0.01)
    server, told = Server(), list[set[str]]()
    found = DatabaseUpdates(server, lambda: server.seqs)  # type: ignore[arg-type]

    async def follow() -> None:
        async for names in found.follow():
            told.append(names)

    task = asyncio.create_task(follow())
    yield server, told, found
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "error",
    [
        NotCouchDB("<html>403</html>"),
        Unavailable("500", 500),
        Forbidden("no"),
        NotFound("no"),
        BadRequest("no such feed"),
    ],
)
async def test_updates_when_the_server_does_not_tell_then_the_databases_are_asked(
    heard: tuple[Server, list[set[str]], DatabaseUpdates], error: CouchError
) -> None:
    """Whatever it says instead: what tells is a hint, and never the only one; and it is asked again later."""
    server, told, found = heard
    server.error = error
    await eventually(lambda: server.asked > 1)
    assert not found.are_told
    server.seqs["b/jobs"] = 2
    await eventually(lambda: {"b/jobs"} in told)
    server.error = None
    await eventually(lambda: found.are_told)
    server.told.put_nowait("a/jobs")
    await eventually(lambda: {"a/jobs"} in told)


async def test_updates_when_the_server_is_away_for_a_moment_then_all_are_told_of_once_it_is_back(
    heard: tuple[Server, list[set[str]], DatabaseUpdates],
) -> None:
    """Nobody has said what changed meanwhile."""
    server, told, found = heard
    server.told.put_nowait("a/jobs")
    await eventually(lambda: {"a/jobs"} in told)
    assert found.are_told
    server.error = Unavailable("503")
    server.told.put_nowait("b/jobs")
    await eventually(lambda: server.asked > 0)
    count = len(told)
    server.error = None
    await eventually(lambda: {*server.seqs} in told[count:])
