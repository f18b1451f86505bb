"""When triggers fire: what is to be looked at again."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.errors import Unavailable
from couchjobs.scheduler.ticker import Ticker


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
