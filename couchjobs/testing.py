"""Testing one's own workers and triggers, without CouchDB and without waiting.

async with TestSystem(greet) as system:
    job = await system.push("greet", {"name": "Ann"})
    await system.run_pending()
    assert system.job(job.id).result == "Hello Ann"
    await system.advance("1h")        # an hour in no time: what is due fires and runs
    system.assert_pushed("greet", {"name": "Ann"})
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from couchjobs.couch.connection import no_server
from couchjobs.durations import read_seconds
from couchjobs.errors import JobNotFoundError
from couchjobs.jobs.ids import new_id
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest, moment_of
from couchjobs.memory.broker import MemBroker
from couchjobs.memory.couch import MemCouch, MemDocuments
from couchjobs.memory.scheduler import MemScheduler
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.declared import declared_by
from couchjobs.system import JobSystem
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import config_of

_TOLD = 10


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

    def __init__(
        self,
        *workers: Callable[..., Any],
        clock: ManualClock | None = None,
        prefix: str | None = None,
        domain: str = "test.example",
    ) -> None:
        """Take functions that are decorated with @worker; `prefix` and `domain` are those of the tenant."""
        self.db = Prefixer(domain, prefix)
        self.clock = clock or ManualClock()
        self._guard = ExitStack()
        self.broker = MemBroker(self.clock, auto=False)
        self.scheduler = MemScheduler(self.clock, auto=False)
        self._system = JobSystem(self.broker, self.scheduler, WorkersList(config_of(worker) for worker in workers))

    async def __aenter__(self) -> Self:
        self._guard.enter_context(no_server("a TestSystem is open: no CouchDB is reached; use system.push, ctx.push"))
        await self._system.start()
        self.broker.couch.changed = self._fire_event
        for config in self._system.workers:
            if (document := declared_by(config)) is not None:
                await self.scheduler.add_trigger(self.db, TriggerInfos.from_document(document))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._guard.close()
        await self._system.shutdown()

    @property
    def couch(self) -> MemCouch:
        """Return the databases in memory that worker functions see as `ctx.couch`; their changes fire triggers."""
        return self.broker.couch

    async def push(
        self,
        worker_type: str,
        message: Any = None,
        *,
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        **more: Any,
    ) -> Job:
        """Push a job and return it; `delay` is counted from the clock of the test. `more`: as in JobRequest.

        Raises:
            LookupError: the worker's `before_hook` does not want it.
            ConfigurationError: `delay` is no duration, or there are `delay` and `at`.
        """
        if (moment := moment_of(delay, at, self.clock())) is not None:
            more["scheduled_at"] = moment
        job = await self.broker.push_job(self.db, JobRequest(worker_type=worker_type, message=message, **more))
        if job is None:
            raise LookupError(f"the before_hook of worker {worker_type!r} does not want the job")
        return job

    def job(self, job_id: str) -> Job:
        """Return the job as it is now.

        Raises:
            JobNotFoundError: there is none with that id.
        """
        try:
            return self.broker.jobs[job_id]
        except KeyError:
            there = ", ".join([*self.broker.jobs][:_TOLD]) or "none"
            raise JobNotFoundError(f"no job {job_id!r}; there are: {there}") from None

    async def run_pending(self) -> int:
        """Run every job that is due; return how many tries that were."""
        return await self.broker.run_pending()

    async def add_trigger(self, trigger: dict[str, Any]) -> TriggerInfos:
        """Add a trigger, as its document has it, and return it.

        Raises:
            BadDocumentError: it is none.
            MalformedTriggerError: its arguments cannot be parsed.
        """
        return await self.scheduler.add_trigger(self.db, TriggerInfos.from_document(trigger))

    async def change(self, doctype: str, doc: dict[str, Any], old: dict[str, Any] | None = None) -> None:
        """Write a document, whatever is there, as somebody else would: triggers fire, and `ctx.couch` has it.

        CREATED where there was none before, DELETED by `_deleted`. `old`: what is to be there before, if it is not.
        """
        database = self.couch[doctype]
        doc_id = doc.get("_id", new_id())
        if old is not None:
            self.broker.couch.changed = None
            await self._write(database, {**old, "_id": doc_id})
            self.broker.couch.changed = self._fire_event
        await self._write(database, {**doc, "_id": doc_id})

    @staticmethod
    async def _write(database: MemDocuments, doc: dict[str, Any]) -> None:
        present = await database.find(doc["_id"])
        rest = {name: value for name, value in doc.items() if name != "_rev"}
        await database.put(rest if present is None else {**rest, "_rev": present["_rev"]})

    async def _fire_event(self, doctype: str, doc: dict[str, Any], old: dict[str, Any] | None) -> None:
        verb = "DELETED" if doc.get("_deleted") else "CREATED" if old is None else "UPDATED"
        await self.scheduler.fire_event(self.db, doctype, verb, doc, old)

    async def fire(self, trigger_id: str, payload: Any = None) -> Job | None:
        """Fire a @webhook trigger and return its job."""
        return await self.scheduler.fire_webhook(trigger_id, payload)

    async def cancel(self, job_id: str) -> None:
        """Ask for a job to be cancelled."""
        await self.broker.cancel(job_id)

    async def advance(self, duration: float | str | timedelta) -> None:
        """Run what is due, then move the clock on, from one due moment to the next: ticks fire, jobs that are due run.

        `duration`: seconds, text such as "1h", or a timedelta.
        """
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else read_seconds(duration)
        end = self.clock() + timedelta(seconds=seconds)
        await self._fire_and_run()
        while self.clock() < end:
            moments = (self.scheduler.next_time(), self.broker.next_time(), end)
            self.clock.time = min(one for one in moments if one is not None)
            await self._fire_and_run()

    async def _fire_and_run(self) -> None:
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
