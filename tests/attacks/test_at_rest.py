"""At rest, one at a time, with the safety nets off: what is due runs when it is due."""

from __future__ import annotations

import os
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from triggering import orders_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

COUNT = int(os.environ.get("COUCHJOBS_TEST_AT_REST", "5"))
LATEST_S = 1.5
NETS_OFF = {"sweep_interval": 86_400, "beat_interval": 600, "dead_after": 1800, "audit_grace": 86_400}
"""Sweeps, beats and all that goes by them. `feed_heartbeat` stays: a row that comes just when a request begins to wait
is shown by CouchDB itself at that moment (see `couch/changes.py`), and by nothing else."""


async def lateness_of_retries(
    connection: Connection, db: Prefixer, begin: Any, count: int, **given: Any
) -> list[float]:
    """How late each of so many retries of 0.2 s began, in seconds, one after the other."""
    began: dict[str, list[float]] = {}

    @worker("again", retry_delay=0.2, max_exec_count=2)
    async def again(ctx: WorkerContext) -> None:
        began.setdefault(ctx.id, []).append(time.monotonic())
        if len(began[ctx.id]) == 1:
            raise ValueError("once")

    await begin(again, **given)
    jobs = connection.database(db.database("jobs"))
    late: list[float] = []
    for number in range(count):
        job_id = f"retry-{number}"
        await jobs.put({"_id": job_id, "worker": "again", "message": None, "state": "queued"})
        await eventually(lambda one=job_id: len(began.get(one, [])) == 2, 70)
        late.append(began[job_id][1] - began[job_id][0] - 0.2)
    return late


async def lateness_of_delays(connection: Connection, db: Prefixer, begin: Any, count: int, **given: Any) -> list[float]:
    """How late each of so many jobs that were due a while ahead began, in seconds."""
    began: dict[str, float] = {}

    @worker("delayed")
    async def delayed(ctx: WorkerContext) -> None:
        began[ctx.id] = time.time()

    await begin(delayed, **given)
    jobs = connection.database(db.database("jobs"))
    late: list[float] = []
    for number in range(count):
        job_id, due = f"delay-{number}", datetime.now(UTC) + timedelta(seconds=0.5)
        document = {"worker": "delayed", "message": None, "state": "queued", "scheduled_at": format_time(due)}
        await jobs.put({"_id": job_id, **document})
        await eventually(lambda one=job_id: one in began, 70)
        late.append(began[job_id] - due.timestamp())
    return late


async def lateness_of_events(connection: Connection, db: Prefixer, begin: Any, count: int, **given: Any) -> list[float]:
    """How long after its document was written the job of each so many events began, in seconds."""
    began: dict[str, float] = {}

    @worker("eventful")
    async def eventful(ctx: WorkerContext) -> None:
        began[ctx.job.event["doc"]["_id"]] = time.monotonic()

    orders = await orders_of(connection, db)
    trigger = {"_id": "t", "type": "@event", "arguments": "orders:CREATED", "worker": "eventful", "message": None}
    await triggers_of(connection, db).put(trigger)
    await begin(eventful, **given)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    late: list[float] = []
    for number in range(count):
        written = time.monotonic()
        await orders.put({"_id": f"order-{number}"})
        await eventually(lambda number=number: f"order-{number}" in began, 70)
        late.append(began[f"order-{number}"] - written)
    return late


async def lateness_of_ticks(connection: Connection, db: Prefixer, begin: Any, count: int, **given: Any) -> list[float]:
    """How late the job of each of so many one-shot triggers began, in seconds."""
    began: dict[str, float] = {}

    @worker("ticking")
    async def ticking(ctx: WorkerContext) -> None:
        began[str(ctx.job.trigger_id)] = time.time()

    await begin(ticking, **given)
    late: list[float] = []
    for number in range(count):
        trigger_id, due = f"at-{number}", datetime.now(UTC) + timedelta(seconds=0.5)
        trigger = {"type": "@at", "arguments": format_time(due), "worker": "ticking", "message": None}
        await triggers_of(connection, db).put({"_id": trigger_id, **trigger})
        await eventually(lambda one=trigger_id: one in began, 70)
        late.append(began[trigger_id] - due.timestamp())
    return late


async def lateness_of_windows(
    connection: Connection, db: Prefixer, begin: Any, count: int, **given: Any
) -> list[float]:
    """How long after its end the job of each of so many debounce windows of 0.5 s began, in seconds."""
    began: dict[str, float] = {}

    @worker("windowed")
    async def windowed(ctx: WorkerContext) -> None:
        began[ctx.id] = time.time()

    trigger = {"_id": "hook", "type": "@webhook", "worker": "windowed", "message": None, "debounce": "500ms"}
    await triggers_of(connection, db).put(trigger)
    system = await begin(windowed, **given)
    late: list[float] = []
    for number in range(count):
        job = await system.scheduler.fire_webhook("hook", number)
        await eventually(lambda one=job.id: one in began, 70)
        late.append(began[job.id] - job.scheduled_at.timestamp())
    return late


@pytest.mark.parametrize("nets_off", [True, False])
@pytest.mark.parametrize(
    "measure", [lateness_of_retries, lateness_of_delays, lateness_of_events, lateness_of_ticks, lateness_of_windows]
)
async def test_due_when_at_rest_then_no_net_is_needed(
    connection: Connection, db: Prefixer, begin: Any, measure: Any, nets_off: bool
) -> None:
    """A candidate that ripens between two questions was lost until the next sweep."""
    late = await measure(connection, db, begin, COUNT, **(NETS_OFF if nets_off else {}))
    print(f"{len(late)}: latest {max(late):.3f} s, median {statistics.median(late):.4f} s")
    assert max(late) < LATEST_S, late
