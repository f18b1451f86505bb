"""What people use to test their own workers."""

from __future__ import annotations

import pytest

from couchjobs.errors import JobNotFoundError
from couchjobs.jobs.job import State
from couchjobs.jobs.request import JobRequest
from couchjobs.memory.broker import MemBroker
from couchjobs.prefixer import Prefixer
from couchjobs.testing import TestSystem
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker


@worker("greet", max_exec_count=2, retry_delay=30, before_hook=lambda job: job.message != "skip")
async def greet(ctx: WorkerContext, message: str) -> str:
    """Greet, but not at the first try where the message says so."""
    if message == "later" and ctx.exec_count == 1:
        raise ValueError("not yet")
    return f"Hello {message}"


async def test_run_pending_when_jobs_are_due_then_run() -> None:
    """A retry waits for the clock."""
    async with TestSystem(greet) as system:
        job, later = await system.push("greet", "Ann"), await system.push("greet", "later")
        assert await system.run_pending() == 2
        assert system.job(job.id).result == "Hello Ann"
        assert system.job(later.id).state is State.QUEUED
        await system.advance(60)
        assert system.job(later.id).result == "Hello later"
        with pytest.raises(LookupError):
            await system.push("greet", "skip")


async def test_advance_when_triggers_are_due_then_they_fire_and_their_jobs_run() -> None:
    """An hour in no time."""
    async with TestSystem(greet) as system:
        await system.scheduler.add_trigger(
            system.db, TriggerInfos(type="@every", arguments="10m", worker="greet", message="x")
        )
        await system.scheduler.add_trigger(
            system.db, TriggerInfos(type="@event", arguments="orders:CREATED", worker="greet", message="y")
        )
        await system.advance(3600)
        assert len(system.assert_pushed("greet", "x", times=6)) == 6
        await system.scheduler.fire_event(system.db, "orders", "CREATED", {"_id": "a"})
        (job,) = system.assert_pushed("greet", "y")
        assert job.event is not None
        assert job.event["doc"] == {"_id": "a"}
        with pytest.raises(AssertionError, match="0 jobs for 'greet', at least 1 expected"):
            system.assert_pushed("greet", "z")
        with pytest.raises(AssertionError, match="6 jobs for 'greet', 5 expected"):
            system.assert_pushed("greet", "x", times=5)


async def test_cancel_when_queued_then_never_run() -> None:
    """And a job that is not there is not found."""
    broker = MemBroker(auto=False)
    await broker.start_workers(WorkersList([config_of(greet)]))
    job = await broker.push_job(Prefixer("d"), JobRequest(worker_type="greet", message="Ann"))
    assert job is not None
    await broker.cancel(job.id)
    assert (job.state, job.error) == (State.ERRORED, "cancelled")
    assert await broker.run_pending() == 0
    for missing in (broker.cancel("nothing"), broker.wait("nothing")):
        with pytest.raises(JobNotFoundError):
            await missing
    await broker.shutdown_workers()
