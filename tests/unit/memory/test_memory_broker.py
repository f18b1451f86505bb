"""When the broker in memory wakes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from couchjobs.jobs.request import JobRequest
from couchjobs.memory.broker import MemBroker
from couchjobs.prefixer import Prefixer
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker


async def test_jobs_when_they_become_due_between_two_looks_at_the_clock_then_run() -> None:
    """What is due now and when to look again are asked of one moment: a job in between would sleep for ever."""
    started = datetime(2026, 1, 1, tzinfo=UTC)
    looks = 0

    def clock() -> datetime:
        nonlocal looks
        looks += 1
        return started + timedelta(milliseconds=10 * looks)

    ran: list[str] = []

    @worker("note", concurrency=100)
    async def note(ctx: WorkerContext) -> None:
        ran.append(ctx.id)

    broker = MemBroker(clock)
    await broker.start_workers(WorkersList([config_of(note)]))
    try:
        for number in range(100):
            due = started + timedelta(milliseconds=10 * looks + 3 + number)
            await broker.push_job(Prefixer("test.example"), JobRequest(worker_type="note", scheduled_at=due))
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while len(ran) < 100:  # noqa: ASYNC110  nothing tells of it but the job itself
                await asyncio.sleep(0.01)
    finally:
        await broker.shutdown_workers(0)
