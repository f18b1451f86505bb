"""A thousand tenants on one daemon: 100,000 jobs of one do not hold up the others, and the triggers of all fire."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from long_run import LongRun, long_run, memory_mb, say

from couchjobs.bench.limit import job_documents, write_all
from couchjobs.prefixer import Prefixer

_WITH_TRIGGERS = 300
_QUEUED = 100_000
_JOBS_PER_S = 10
_LOOKED_AT_S = 60.0
_FEW = 8
_TRIGGERS = (
    {"_id": "orders", "type": "@event", "arguments": "orders:CREATED", "worker": "order", "message": None},
    {"_id": "ticks", "type": "@every", "arguments": "1m", "worker": "tick", "message": None},
)


async def tenants(url: str | None, count: int) -> dict[str, Any]:
    """Return how long jobs of any tenant wait beside a large queue of one, and how many triggers fire."""
    async with long_run(url) as run:
        everybody = [Prefixer("", f"{run.name}-{number:05}") for number in range(count)]
        with_triggers, large = everybody[:_WITH_TRIGGERS], everybody[-1]
        await _make(run, everybody, "jobs")
        for doctype in ("triggers", "orders"):
            await _make(run, with_triggers, doctype)
        await asyncio.gather(*(_put_triggers(run, some) for some in _parts(with_triggers)))
        listed = run.folder / "tenants"
        listed.write_text("".join(f"{one.prefix}\n" for one in everybody))
        began = time.monotonic()
        daemon = run.start("--tenants", str(listed))
        say("daemon starts")
        ticked = {f"{one.prefix}:tick" for one in with_triggers}
        is_up = await run.until(lambda: ticked <= _of_tenants(run), "each schedule has fired", 300)
        start_s = time.monotonic() - began
        say("each schedule has fired")
        calm_waits = await _waits(run, everybody[:-1])
        for one in with_triggers:
            await run.database("orders", one).put({"_id": "order"})
        ordered = {f"{one.prefix}:order" for one in with_triggers}
        fired = await run.until(lambda: ordered <= run.tries().keys(), "each order has fired", 120)
        say("each order has fired")
        queued = job_documents(_QUEUED, "work")
        database = run.database("jobs", large)
        await write_all(database, queued)
        say("queue is written")
        before = len(run.tries())
        waits = await _waits(run, everybody[:-1])
        meanwhile = len(run.tries()) - before
        memory = memory_mb({daemon.process.pid})
        own = {document["_id"] for document in queued}
        await run.until(lambda: own <= run.tries().keys(), "the large queue is done", 600, 2)
        lost, again = run.lost_and_again()
        if lost or again or not (is_up and fired):
            run.tell_daemons()
        return {
            "tenants": count,
            "until_all_schedules_fired_s": round(start_s, 1),
            "schedules_that_fired": len(ticked & _of_tenants(run)),
            "orders_that_fired": len(ordered & run.tries().keys()),
            "latency_ms": calm_waits,
            "latency_beside_a_large_queue_ms": waits,
            "jobs_run_meanwhile": meanwhile,
            "memory_mb": memory,
            "lost": len(lost) + len(own - run.tries().keys()),
            "ran_again": len(again),
        }


def _parts(everybody: list[Prefixer]) -> list[list[Prefixer]]:
    return [everybody[start::_FEW] for start in range(_FEW)]


async def _make(run: LongRun, everybody: list[Prefixer], doctype: str) -> None:
    async def make(some: list[Prefixer]) -> None:
        for one in some:
            await run.connection.server.create_database(one.database(doctype), shards=1)

    await asyncio.gather(*(make(some) for some in _parts(everybody)))
    say(f"{len(everybody)} databases of {doctype}")


async def _put_triggers(run: LongRun, some: list[Prefixer]) -> None:
    for one in some:
        for trigger in _TRIGGERS:
            await run.database("triggers", one).put(trigger)


def _of_tenants(run: LongRun) -> set[str]:
    """Whose schedules have fired."""
    return {what.rpartition(":tick:")[0] + ":tick" for what in run.tries() if ":tick:" in what}


async def _waits(run: LongRun, everybody: list[Prefixer]) -> dict[str, float]:
    """How long jobs wait that are written into any of their databases for a while, in ms."""
    began = time.time()
    some = [run.database("jobs", random.choice(everybody)) for _ in range(int(_JOBS_PER_S * _LOOKED_AT_S))]  # noqa: S311
    await run.write(_JOBS_PER_S, until=lambda: time.time() - began > _LOOKED_AT_S, databases=some)
    ended = time.time()
    await run.until_all_ran()
    return run.waits(began, ended)
