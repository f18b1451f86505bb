"""Testing one's own workers and triggers, without CouchDB and without waiting.

async with TestSystem(greet) as system:
    job = await system.push("greet", {"name": "Ann"})
    await system.run_pending()
    assert system.job(job.id).result == "Hello Ann"
    await system.advance(60)          # an hour in no time: what is due fires and runs
    system.assert_pushed("greet", {"name": "Ann"})
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from couchjobs.broker.memory import MemBroker
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.memory import MemScheduler
from couchjobs.system import JobSystem
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import config_of


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, time: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.time = time

    def __call__(self) -> datetime:
        """Return the time."""
        return self.time

    def advance(self, seconds: float) -> None:
        """Move the time on."""
        self.time += timedelta(seconds=seconds)


class TestSystem:
    """Workers, a broker and a scheduler in memory, with a clock to move by hand. Use as an async context manager."""

    __test__ = False
    db = Prefixer("test.example")

    def __init__(self, *workers: Callable[..., Any], clock: ManualClock | None = None) -> None:
        """Take functions that are decorated with @worker."""
        self.clock = clock or ManualClock()
        self.broker = MemBroker(self.clock, auto=False)
        self.scheduler = MemScheduler(self.clock, auto=False)
        self._system = JobSystem(self.broker, self.scheduler, WorkersList(config_of(worker) for worker in workers))

    async def __aenter__(self) -> Self:
        await self._system.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._system.shutdown()

    async def push(self, worker_type: str, message: Any = None, **more: Any) -> Job:
        """Push a job and return it.

        Raises:
            LookupError: the worker's `before_hook` does not want it.
        """
        job = await self.broker.push_job(self.db, JobRequest(worker_type=worker_type, message=message, **more))
        if job is None:
            raise LookupError(f"the before_hook of worker {worker_type!r} does not want the job")
        return job

    def job(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return self.broker.jobs[job_id]

    async def run_pending(self) -> int:
        """Run every job that is due; return how many tries that were."""
        return await self.broker.run_pending()

    async def advance(self, seconds: float) -> None:
        """Move the clock on, a second at a time: ticks that come fire, jobs that are due run."""
        left = seconds
        while left > 0:
            self.clock.advance(min(1.0, left))
            left -= 1.0
            await self.scheduler.poll_scheduler(self.clock())
            await self.run_pending()

    def assert_pushed(self, worker_type: str, message: Any = ..., *, times: int | None = None) -> list[Job]:
        """Return the jobs of that worker, with that message if one is given, in whatever state.

        Raises:
            AssertionError: there is none, or not as many as `times` says.
        """
        jobs = [job for job in self.broker.jobs.values() if job.worker == worker_type and message in (..., job.message)]
        wanted = "at least 1" if times is None else str(times)
        if (times is None and not jobs) or (times is not None and len(jobs) != times):
            pushed = [(job.worker, job.message) for job in self.broker.jobs.values()]
            raise AssertionError(f"{len(jobs)} jobs for {worker_type!r}, {wanted} expected; pushed were: {pushed}")
        return jobs
