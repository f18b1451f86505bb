"""Deadlines that share timers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from couchjobs import deadlines as module
from couchjobs.deadlines import Deadlines


async def test_deadline_when_near_or_far_then_called_in_time_and_not_if_it_was_called_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never early; a far one at most a quarter of a second late; one that fails, or calls others off, harms nobody."""
    monkeypatch.setattr(module, "_NEAR_S", 0.1)
    loop = asyncio.get_running_loop()
    failed: list[Any] = []
    loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
    all_of_them, called = Deadlines(), {}
    began, over = loop.time(), asyncio.Event()

    def call(name: str) -> None:
        called[name] = loop.time() - began
        if name == "last":
            over.set()

    def fail() -> None:
        other.cancel()
        raise KeyError("mine")

    all_of_them.call_at(began + 0.02, call, "near")
    all_of_them.call_at(began + 0.02, call, "near, called off").cancel()
    all_of_them.call_at(began + 0.3, fail)
    other = all_of_them.call_at(began + 0.3, call, "far, called off by another")
    all_of_them.call_at(began + 0.3, call, "far")
    all_of_them.call_at(began + 0.3, call, "far, called off").cancel()
    all_of_them.call_at(began + 0.7, call, "last")
    await asyncio.wait_for(over.wait(), 30)
    assert sorted(called) == ["far", "last", "near"]
    assert called["near"] >= 0.02
    assert called["far"] >= 0.3
    assert called["last"] >= 0.7
    assert [type(error) for error in failed] == [KeyError]
    assert not all_of_them._slices


async def test_deadline_when_it_is_far_away_then_a_second_late_at_most() -> None:
    """A day away, too: a child that gives no answer is killed ten seconds after the end of a try."""
    now, all_of_them = asyncio.get_running_loop().time(), Deadlines()
    for away in (3, 60, 3600.5, 86_400, 3_000_000):
        all_of_them.call_at(now + away, print)
    times = sorted(length * number for length, number in all_of_them._slices)
    for away, called_at in zip((3, 60, 3600.5, 86_400, 3_000_000), times, strict=True):
        assert 0 <= called_at - (now + away) <= module.LATEST_S
    assert module.LATEST_S < 2


async def test_deadlines_when_very_many_are_called_off_then_few_timers_are_left() -> None:
    """However far away they are, and however different: each would keep a kilobyte until its time."""
    now, all_of_them = asyncio.get_running_loop().time(), Deadlines()
    all_of_them.call_at(now + 60, print)
    for number in range(20_000):
        all_of_them.call_at(now + 100_000 + 37.1 * number, print).cancel()
        all_of_them.call_at(now + 60 + number / 1000, print).cancel()
    assert len(all_of_them._slices) < 2000
    near = min(length * number for length, number in all_of_them._slices)
    assert now + 60 <= near < now + 61
