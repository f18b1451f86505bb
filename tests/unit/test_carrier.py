"""Carrying out plans: what a daemon looks at before it fires."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from couchjobs.prefixer import Prefixer
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
