"""Carrying out plans: what a daemon looks at before it fires."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler import carrier as carrier_module
from couchjobs.scheduler.carrier import Carrier
from couchjobs.scheduler.trigger import ClockTrigger, new_trigger
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.life import Life, State, begun
from couchjobs.triggers.schedule import Schedule

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


class Stored:
    """The states of schedules, as they are stored by now."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.reads = 0

    async def read(self, trigger_ids: list[str]) -> dict[str, State]:
        self.reads += 1
        return dict.fromkeys(trigger_ids, self.state)

    async def write(self, _: TriggerInfos, state: State) -> bool:
        self.state = state
        return True


class Fired:
    """What has fired."""

    def __init__(self) -> None:
        self.count = 0

    async def fire(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.parametrize(("differs", "was_taken", "fires"), [(True, True, 0), (True, False, 1), (False, True, 1)])
async def test_tick_when_another_daemon_has_read_its_local_time_earlier_then_not_fired_again(
    differs: bool, was_taken: bool, fires: int
) -> None:
    """Only where zone data differ is the state read before each tick: else both would make the same job."""
    document = {"_id": "t", "type": "@cron", "arguments": "0 30 2 * * *", "timezone": "Europe/Berlin", "worker": "w"}
    infos = TriggerInfos.from_document({**document, "message": None})
    trigger = new_trigger(Prefixer(), infos)
    assert isinstance(trigger, ClockTrigger)
    schedule: Schedule = trigger.ticks
    state = begun(schedule, infos, BEGUN)
    life = Life(schedule, infos, state)
    present = BEGUN + timedelta(hours=1, minutes=30)
    plan = life.plan(present)
    assert plan.tick is not None
    stored, fired = Stored(plan.then if was_taken else state), Fired()
    carrier = Carrier(None, stored, fired, Prefixer(), lambda: differs)  # type: ignore[arg-type]
    assert await carrier.carry_out(trigger, life, plan) is (fires == 1)
    assert (fired.count, stored.reads) == (fires, int(differs))


class Accepting:
    """A writer of a cluster of which one copy alone has taken the mark, and what its copies agree on."""

    def __init__(self, *leaves: str) -> None:
        self.database = self
        self.name = "triggers"
        self.written: list[dict[str, Any]] = []
        self._leaves = [{"_id": "t", "_rev": rev} for rev in leaves]

    async def write(self, doc: dict[str, Any]) -> WriteAnswer:
        """Take it."""
        self.written.append(doc)
        return WriteAnswer(Written.ACCEPTED if len(self.written) == 1 else Written.OK, rev="2-ours")

    async def leaves(self, _: str) -> list[dict[str, Any]]:
        """The winner first."""
        gone = {one["_rev"] for one in self.written if one.get("_deleted")}
        return [leaf for leaf in self._leaves if leaf["_rev"] not in gone]

    async def info(self) -> dict[str, Any]:
        """It has copies."""
        return {"cluster": {"n": 3}}


@pytest.mark.parametrize(
    ("leaves", "fires", "withdrawn"),
    [(("2-ours",), 1, []), (("2-theirs", "2-ours"), 0, ["2-ours"]), (("2-ours", "2-theirs"), 1, ["2-theirs"])],
)
async def test_single_tick_when_its_mark_is_accepted_then_fires_only_where_it_wins(
    monkeypatch: pytest.MonkeyPatch, leaves: tuple[str, ...], fires: int, withdrawn: list[str]
) -> None:
    """An edit in the moment of its time may have been taken too: one of them counts, the other one is withdrawn."""
    monkeypatch.setattr(carrier_module, "_AGREED_S", 0.0)
    document = {"_id": "t", "_rev": "1-a", "type": "@at", "arguments": "2026-01-01T00:00:00Z", "worker": "w"}
    infos = TriggerInfos.from_document({**document, "message": None})
    trigger = new_trigger(Prefixer(), infos)
    assert isinstance(trigger, ClockTrigger)
    writer, fired = Accepting(*leaves), Fired()
    life = Life(trigger.ticks, infos, begun(trigger.ticks, infos, datetime(2025, 12, 31, tzinfo=UTC)))
    plan = life.plan(datetime(2026, 1, 1, tzinfo=UTC))
    carrier = Carrier(writer, Dropping(), fired, Prefixer())  # type: ignore[arg-type]
    await carrier.carry_out(trigger, life, plan)
    assert fired.count == fires
    deleted = [one["_rev"] for one in writer.written if one.get("_deleted")]
    assert deleted == withdrawn + ["2-ours"] * fires


class Dropping:
    """States of which one is dropped."""

    async def drop(self, _: str) -> None:
        """Drop it."""
