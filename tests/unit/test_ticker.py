"""When triggers fire: what is to be looked at again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.errors import Unavailable
from couchjobs.scheduler.ticker import Ticker


async def test_changes_when_one_cannot_be_taken_in_then_those_behind_it_are_not_forgotten() -> None:
    """The state of a trigger that was deleted cannot be dropped now: another one was to be looked at again."""
    taken: list[tuple[str, bool]] = []
    fails = True

    async def take_in(trigger_id: str, *, forced: bool) -> Any:
        if trigger_id == "gone" and fails:
            raise Unavailable("503")
        taken.append((trigger_id, forced))

    ticker: Any = SimpleNamespace(
        _attention=SimpleNamespace(look=lambda present: None, steps_back=0),
        _steps_back=0,
        _again={"a", "b", "c"},
        _changes=SimpleNamespace(take=lambda: {"gone"} if not taken else set()),
        _daemons_changed=asyncio.Event(),
        _states_looked_at=True,
        _take_in=take_in,
        _to_load={},
        _loads=False,
    )
    with pytest.raises(Unavailable):
        await Ticker._take_in_changes(ticker)
    assert ticker._again | {name for name, _ in taken} == {"a", "b", "c", "gone"}
    fails = False
    await Ticker._take_in_changes(ticker)
    assert {*taken} >= {("a", True), ("b", True), ("c", True)}
    assert "gone" in {name for name, _ in taken}
    assert ticker._again == set()
