"""The workers of the daemons that the bench starts as processes."""

from __future__ import annotations

import time

from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

_BUSY_S = 0.02


@worker("noop", concurrency=250)
async def noop(ctx: WorkerContext) -> None:
    """Do nothing."""


@worker("busy", concurrency=1)
def busy(ctx: WorkerContext) -> None:  # noqa: ARG001  every worker takes one
    """Keep one core busy for 20 ms of its time."""
    until = time.thread_time() + _BUSY_S
    while time.thread_time() < until:
        pass
