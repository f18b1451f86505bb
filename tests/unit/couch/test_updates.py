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
        self.refusal: CouchError | None = None
        self.refuses_positions = False
        self.since: list[str] = []
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.seqs: dict[str, object] = {"a/jobs": 1, "b/jobs": 1}
        self.asked = 0

    async def request(self, _method: str, _path: str, *, params: dict[str, Any], **_: Any) -> Any:
        """Tell of the next database that changes."""
        self.since.append(params["since"])
        if self.error is not None:
            raise self.error
        if self.refuses_positions and params["since"] != "now":
            raise BadRequest("malformed sequence")
        if params["since"] == "now":
            return {"last_seq": "0", "results": []}
        return {"last_seq": str(params["since"]) + "+", "results": [{"db_name": await self.told.get()}]}

    async def sequences(self, names: list[str]) -> dict[str, object]:
        """Tell how far each is."""
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
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
    server.told.put_nowait("a/jobs")
    await eventually(lambda: found.are_told and {"a/jobs"} in told)


async def test_updates_when_the_server_is_away_for_a_while_then_it_goes_on_where_it_was(
    heard: tuple[Server, list[set[str]], DatabaseUpdates],
) -> None:
    """What changed meanwhile it tells of then; the databases are asked until it does, at once where that fails."""
    server, told, found = heard
    server.told.put_nowait("a/jobs")
    await eventually(lambda: {"a/jobs"} in told)
    assert found.are_told
    server.error = server.refusal = Unavailable("no answer in time")
    server.told.put_nowait("b/jobs")
    await eventually(lambda: server.asked > 2)
    assert not found.are_told
    server.error = server.refusal = None
    count = len(told)
    server.told.put_nowait("a/jobs")
    await eventually(lambda: found.are_told and {"a/jobs"} in told[count:])
    assert server.since[-1].startswith("0+"), "it was not begun anew"


async def test_updates_when_every_position_is_refused_then_the_databases_are_asked(
    heard: tuple[Server, list[set[str]], DatabaseUpdates],
) -> None:
    """A server that says where it is, and never what comes after: to begin again and again would wake everybody."""
    server, _, found = heard
    server.refuses_positions = True
    server.told.put_nowait("a/jobs")
    await eventually(lambda: server.asked > 1)
    assert not found.are_told
    assert server.since.count("now") <= 2 * server.asked + 2


async def test_updates_when_the_position_is_refused_then_begun_anew(
    heard: tuple[Server, list[set[str]], DatabaseUpdates],
) -> None:
    """The database that tells was made anew: nobody says what came before."""
    server, told, found = heard
    server.told.put_nowait("a/jobs")
    await eventually(lambda: {"a/jobs"} in told)
    server.error = BadRequest("malformed sequence")
    server.told.put_nowait("b/jobs")
    await eventually(lambda: server.since.count("now") > 1)
    server.error = None
    count = len(told)
    await eventually(lambda: {*server.seqs} in told[count:] and found.are_told)
