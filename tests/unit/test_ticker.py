"""When triggers fire: what is to be looked at again."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.couch.connection import connect
from couchjobs.errors import Unavailable
from couchjobs.scheduler.states import States
from couchjobs.scheduler.ticker import Ticker
from couchjobs.settings import load_settings
from couchjobs.timestamps import now


@pytest.mark.parametrize("error", [Unavailable("503"), RuntimeError("not foreseen")])
async def test_changes_when_one_cannot_be_taken_in_then_those_behind_it_are_not_forgotten(error: Exception) -> None:
    """The state of a trigger that was deleted cannot be dropped now: others were to be looked at again."""
    taken: list[tuple[str, bool]] = []
    fails = True

    async def take_in(trigger_id: str, *, forced: bool) -> Any:
        if trigger_id == "gone" and fails:
            raise error
        taken.append((trigger_id, forced))

    changed = [{"gone"}, set[str]()]
    ticker: Any = SimpleNamespace(
        _attention=SimpleNamespace(look=lambda present: None, steps_back=0),
        _steps_back=0,
        _again={"a", "b", "c"},
        _changes=SimpleNamespace(take=lambda: changed.pop(0)),
        _daemons_changed=asyncio.Event(),
        _states_looked_at=True,
        _take_in=take_in,
        _to_load={},
        _loads=False,
    )

    def look_again(ids: list[str]) -> None:
        ticker._again |= {*ids}

    ticker._look_again = look_again
    with nullcontext() if isinstance(error, Unavailable) else pytest.raises(RuntimeError):
        await Ticker._take_in_changes(ticker)
    assert "gone" in ticker._again
    assert ticker._again | {name for name, _ in taken} == {"a", "b", "c", "gone"}
    assert len(taken) == 3 or not isinstance(error, Unavailable)
    fails = False
    await Ticker._take_in_changes(ticker)
    assert {*taken} == {("a", True), ("b", True), ("c", True), ("gone", True)}
    assert ticker._again == set()


async def test_state_when_couchdb_does_not_say_what_it_is_then_the_other_schedules_begin() -> None:
    """A part of the control database that does not answer holds up its own triggers alone."""
    loaded: list[str] = []
    again: list[str] = []

    async def read(_ids: Any) -> dict[str, Any]:
        return {"known": None}

    async def load(trigger: Any, _rank: int, _stored: Any) -> None:
        loaded.append(trigger.infos.id)

    ticker: Any = SimpleNamespace(_states=SimpleNamespace(read=read), _load_guarded=load, _look_again=again.extend)
    wanted: Any = [(SimpleNamespace(infos=SimpleNamespace(id=name)), 0) for name in ("known", "unknown")]
    await Ticker._load_together(ticker, wanted)
    assert (loaded, again) == (["known"], ["unknown"])


def test_queue_when_triggers_come_and_go_then_it_does_not_keep_what_no_longer_counts() -> None:
    """Reminders that are planned anew again and again, for a month ahead."""
    present = now()
    ticker: Any = SimpleNamespace(_queue=[], _timers={})
    for number in range(20_000):
        at = present + timedelta(seconds=number)
        ticker._timers = {"job": SimpleNamespace(at=at)}
        Ticker._enqueue(ticker, at, "job")
    assert len(ticker._queue) < 6000
    assert (at, "job") in ticker._queue


async def test_drop_when_it_fails_half_way_then_the_next_one_still_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a trigger that is gone, which somebody else has written."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        states = States(connection, "triggers")
        states._revs["gone"] = "1-a"
        answers = [WriteAnswer(Written.CONFLICT), WriteAnswer(Written.OK, rev="3-c")]
        sent: list[str] = []

        async def write(_writer: Any, document: dict[str, Any], *_: Any) -> WriteAnswer:
            sent.append(document["_rev"])
            return answers.pop(0)

        found: list[Any] = [Unavailable("503"), {"_id": "schedule:triggers:gone", "_rev": "2-b"}]

        async def find(_doc_id: str) -> Any:
            if isinstance(one := found.pop(0), Exception):
                raise one
            return one

        monkeypatch.setattr("couchjobs.scheduler.states.write_shortly", write)
        monkeypatch.setattr(states.control, "find", find)
        with pytest.raises(Unavailable):
            await states.drop("gone")
        answers.insert(0, WriteAnswer(Written.CONFLICT))
        await states.drop("gone")
        assert sent == ["1-a", "1-a", "2-b"]
        assert not states._revs
