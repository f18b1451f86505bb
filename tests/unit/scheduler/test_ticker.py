"""When triggers fire: what is to be looked at again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import eventually

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.couch.connection import connect
from couchjobs.errors import Unavailable
from couchjobs.scheduler import ticker as ticker_module
from couchjobs.scheduler.attention import Attention
from couchjobs.scheduler.states import States
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.ticker import Ticker
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.settings import load_settings
from couchjobs.timestamps import now


class Gone:
    """States of triggers that are gone, of which one is deleted when it is let."""

    def __init__(self) -> None:
        self.known = {"stuck", "quick"}
        self.let = asyncio.Event()
        self.error: Exception | None = None
        self.asked: list[str] = []

    async def all(self) -> AsyncIterator[str]:
        """Yield all that are known."""
        for trigger_id in sorted(self.known, reverse=True):
            yield trigger_id

    def has(self, trigger_id: str) -> bool:
        """Return whether there is one."""
        return trigger_id in self.known

    async def drop(self, trigger_id: str, _is_gone: Any) -> None:
        """Delete one."""
        self.asked.append(trigger_id)
        if trigger_id == "stuck":
            await self.let.wait()
            if self.error is not None:
                raise self.error
        self.known.discard(trigger_id)


@pytest.fixture
async def ticker() -> AsyncIterator[Any]:
    """A ticker of no triggers: those of before are gone."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        store = TriggerStore(connection, connection.settings.tenant)
        daemon: Any = SimpleNamespace(listen=asyncio.Event, rank_for=lambda key: 0, others_read_zones_differently=None)
        firing: Any = None
        ticker: Any = Ticker(connection, TriggerSet(store, 1.0), store, daemon, firing, Attention())
        ticker._states = Gone()
        ticker._triggers.loaded.set()
        yield ticker


@pytest.mark.parametrize("error", [None, Unavailable("503"), RuntimeError("not foreseen")])
async def test_state_when_it_cannot_be_dropped_then_no_other_waits_for_it_and_its_trigger_begins_after_it(
    ticker: Any, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """Each attempt may take seconds: other schedules are taken in meanwhile, one made in its place after it."""
    monkeypatch.setattr(ticker_module, "_AFTER_FAILURE", timedelta(0))
    monkeypatch.setattr(ticker_module, "_AFTER_ERROR", timedelta(0))
    states = ticker._states
    loaded: list[str] = []

    async def load(wanted: list[Any]) -> None:
        loaded.extend(trigger.infos.id for trigger, _ in wanted)

    ticker._load_together = load
    running = asyncio.create_task(ticker.run())
    await eventually(lambda: states.asked == ["stuck", "quick"])
    again = {"type": "@every", "arguments": "1h", "worker": "w", "message": None}
    ticker._triggers.take_in([{"_id": name, "_rev": "1-a", **again} for name in ("new", "stuck")])
    ticker._triggers._notify()
    await eventually(lambda: loaded == ["new"])
    assert not ticker.is_quiet
    states.error = error
    states.let.set()
    await eventually(lambda: loaded == ["new", "stuck"])
    assert states.asked == ["stuck", "quick"], "a trigger that is there again has its state read, and not dropped"
    assert ("stuck" in states.known) == (error is not None)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_state_when_it_was_not_dropped_then_that_is_tried_again(
    ticker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is gone; and after the loop was cut off as well."""
    monkeypatch.setattr(ticker_module, "_AFTER_FAILURE", timedelta(0))
    states = ticker._states
    states.error = Unavailable("503")
    states.let.set()
    running = asyncio.create_task(ticker.run())
    await eventually(lambda: states.asked.count("stuck") > 2)
    states.let.clear()
    count = len(states.asked)
    await eventually(lambda: len(states.asked) > count)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    states.error = None
    states.let.set()
    running = asyncio.create_task(ticker.run())
    await eventually(lambda: not states.known)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


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
        await states.drop("gone", lambda: False)  # it is there again
        assert sent == ["1-a"]
        answers.insert(0, WriteAnswer(Written.CONFLICT))
        await states.drop("gone")
        assert sent == ["1-a", "1-a", "2-b"]
        assert not states._revs
