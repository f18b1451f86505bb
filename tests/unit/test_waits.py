"""What wakes whoever waits."""

from __future__ import annotations

import asyncio

from couchjobs.waits import Signal


async def test_signal_when_set_before_during_or_after_the_wait_then_never_missed() -> None:
    """And it is no longer set after it was seen."""
    signal = Signal()
    signal.set()
    assert await signal.within(None)
    assert not await signal.within(0)
    waiting = asyncio.create_task(signal.within(None))
    await asyncio.sleep(0)
    signal.set()
    signal.set()
    assert await waiting
    assert not await signal.within(0.001)
