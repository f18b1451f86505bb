"""One job from its claim to its end: what a slot waits for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import eventually

from couchjobs import watchdog
from couchjobs.broker import executor as module
from couchjobs.broker.executor import Executor
from couchjobs.jobs.job import Job
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.workers.config import WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.outcome import Failed, Interrupted, Retry
from couchjobs.workers.processes import InProcess
from couchjobs.workers.registry import config_of, worker
from couchjobs.workers.slots import Slots
from couchjobs.workers.worker import task_of


async def test_slot_when_a_failure_cannot_be_noted_then_free_after_a_while_and_given_back_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A document that is refused may take minutes, and the type has one slot."""
    monkeypatch.setattr(module, "_LONGEST_HELD_S", 0.05)
    workers = WorkersList([config_of(worker("w", concurrency=1)(lambda ctx: 1))])
    nothing: Any = None
    slots = Slots(workers, InProcess(workers, 1.0, CouchEngine(nothing, workers)))
    noted, slot, told = asyncio.Event(), slots.take("w"), []

    async def begin_to_fail(*_: Any) -> bool:
        return await noted.wait()

    async def tell(job: Job, error: Exception) -> None:
        told.append(str(error))

    lane = SimpleNamespace(store=SimpleNamespace(ends=SimpleNamespace(begin_to_fail=begin_to_fail)), claims=OwnClaims())
    execution: Any = SimpleNamespace(lane=lane, job=Job(id="a", worker="w", rev="2-b"), slot=slot, attempt=None)
    presence: Any = SimpleNamespace(id="own")
    failures: Any = SimpleNamespace(wanted=lambda worker_type: True, tell=tell)
    executor = Executor(nothing, presence, nothing, failures, nothing)
    telling = asyncio.create_task(executor._tell_of_failure(execution, Failed("for good")))
    await asyncio.sleep(0)
    assert slots.free(0) == {}
    await eventually(lambda: slots.free(0))
    assert not told
    noted.set()
    assert await telling
    assert told == ["for good"]
    module._free_slot(execution)
    assert slots.free(0) == {"w": 1}


def test_outcome_when_the_function_has_blocked_the_event_loop_then_its_try_counts_and_no_other_does() -> None:
    """The daemon counts as dead for that, and its tries do not count: that one would be run again for ever."""
    workers = WorkersList([config_of(worker("w", max_exec_count=2)(lambda ctx: 1))])
    lane: Any = SimpleNamespace(workers=workers)

    def execution(job: Job, *, was_cut_off: bool = True) -> Any:
        return SimpleNamespace(lane=lane, job=job, was_cut_off=was_cut_off)

    presence: Any = SimpleNamespace(connection=SimpleNamespace(settings=SimpleNamespace(dead_after=30.0)))
    nothing: Any = None
    executor = Executor(nothing, presence, nothing, nothing, nothing)
    first, last, other = (Job(id=name, worker="w", exec_count=tries) for name, tries in (("a", 1), ("b", 2), ("c", 1)))
    for job in (first, last):
        watchdog._blocked[task_of(job)] = 41.7
    watchdog._blocked[task_of(other)] = 6.0  # which is no reason for others to take the daemon for dead
    again = executor._counted(execution(first), Interrupted())
    assert isinstance(again, Retry)
    assert "blocked the event loop for 42 s" in again.error
    assert executor._counted(execution(last), Interrupted()) == Failed(again.error, worker_lost=True)
    assert executor._counted(execution(other), Interrupted()) == Interrupted()
    assert executor._counted(execution(first), Interrupted()) == Interrupted(), "told once"
    watchdog._blocked[task_of(first)] = 12.0
    asked = execution(first, was_cut_off=False)
    assert executor._counted(asked, Interrupted()) == Interrupted(), "an orderly end puts the job back with its try"
