"""Tasks that are started again."""

from __future__ import annotations

import asyncio

from couchjobs.supervisor import Supervisor
from couchjobs.waits import backoff


async def test_supervisor_when_a_task_fails_then_started_again_and_counted() -> None:
    """One that returns has ended; stop cancels the rest."""
    runs = 0
    done = asyncio.Event()

    async def fails_twice() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("x")
        done.set()

    supervisor = Supervisor()
    task = supervisor.start("task", fails_twice)
    await asyncio.wait_for(done.wait(), 5)
    await task
    assert supervisor.failures == {"task": 2}
    forever = supervisor.start("forever", asyncio.Event().wait)
    await supervisor.stop()
    assert forever.cancelled()
    assert all(0.05 <= backoff(1) <= 0.1 and backoff(99) <= 10 for _ in range(100))
