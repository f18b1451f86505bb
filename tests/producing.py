"""A producer and what surrounds it, without a server: for tests of the hot path that wait for no time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from couchjobs.broker.lane import Execution, Lane
from couchjobs.broker.producer import Producer
from couchjobs.cluster.pauses import Pauses
from couchjobs.couch.answers import Found
from couchjobs.couch.connection import Connection
from couchjobs.jobs.store import JobStore
from couchjobs.settings import Settings
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.processes import InProcess
from couchjobs.workers.slots import Slots


def nothing(ctx: Any) -> None:
    """Do nothing."""


class Everything:
    """A partition that has all jobs, or only those that it is told of."""

    def __init__(self) -> None:
        self.only: set[str] | None = None

    def has(self, job_id: str, _worker_type: str) -> bool:
        """Whether a job is this daemon's."""
        return self.may_have(job_id)

    def may_have(self, job_id: str) -> bool:
        """The same."""
        return self.only is None or job_id in self.only


class Alone:
    """A daemon without others."""

    id = "own"
    is_lost = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sweep_interval = settings.sweep_interval
        self.pauses = Pauses()
        self.paused: frozenset[str] = frozenset()
        self.partition = Everything()


class Ends:
    """An executor whose jobs run until they are told to end."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = {}
        self.order: list[str] = []

    def new_context(self) -> None:
        """Return none: the present one does."""

    async def run(self, execution: Execution) -> float | None:
        """Begin, wait, free the slot."""
        job_id = execution.job.id
        self.order.append(job_id)
        self.running[job_id] = asyncio.Event()
        await self.running[job_id].wait()
        execution.slot.free(None)
        return None


class Settles:
    """What would write to jobs that are not run: it notes which conflicts it is to look at."""

    def __init__(self) -> None:
        self.settled: list[str] = []

    async def close(self, lanes: Any) -> None:
        """Give up nothing."""

    def settle(self, lane: Lane, job_id: str) -> None:
        """Look at a conflict, and find none."""
        self.settled.append(job_id)
        lane.in_conflict.pop(job_id, None)


class World:
    """A producer and what surrounds it."""

    def __init__(self, connection: Connection, concurrency: int = 2, *, shared: bool = False) -> None:
        self.connection = connection
        workers = WorkersList([WorkerConfig(worker_type="w", worker_func=nothing, concurrency=concurrency)])
        slots = Slots(workers, InProcess(workers, 1.0, CouchEngine(connection, workers)), shared=shared)
        self.daemon, self.executor = Alone(connection.settings), Ends()
        self.marks = Settles()
        self.producer = Producer(self.daemon, slots, self.executor, self.marks)  # type: ignore[arg-type]
        settings = connection.settings
        for _ in range(2):
            store = JobStore(connection, settings.tenant)
            self.producer.add(Lane.of(store, workers, {"w": concurrency}, self.daemon, None))  # type: ignore[arg-type]
        self.lane, self.other = self.producer.lanes

    async def offer(self, lane: Lane, *ids: str, **more: Any) -> None:
        """The feed shows queued jobs."""
        documents = [{"_id": one, "_rev": "1-a", "worker": "w", "message": 1, "state": "queued", **more} for one in ids]
        await self.producer.take_documents(lane, documents)

    async def until(self, condition: Any) -> None:
        """The loop turns until something is so; it never has to wait for time."""
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it does not happen")


class Slow:
    """A database whose answers come when they are let."""

    def __init__(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, dict[str, Any] | None] = {}
        self.may_answer = asyncio.Event()
        self.asked: list[list[str]] = []
        monkeypatch.setattr(store.database, "revisions", self._revisions)
        monkeypatch.setattr(store.database, "read", self._read)

    async def _revisions(self, wanted: Any, **_: Any) -> Any:
        yield await self._read([job_id for job_id, _ in wanted])

    async def _read(self, ids: Any) -> list[Found]:
        self.asked.append([*ids])
        await self.may_answer.wait()
        asked = self.asked[-1]
        return [Found(one, "", self.answers.get(one), absent=self.answers.get(one) is None) for one in asked]
