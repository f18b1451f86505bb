"""Finished jobs go while others run, and nothing that has fired fires again once its job is gone."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

from long_run import LongRun, long_run, node, say

from couchjobs.bench.limit import write_all, write_finished
from couchjobs.couch.bulk import compact
from couchjobs.couch.database import Database
from couchjobs.jobs.retention import store_rules

_RULES = [{"worker": "*", "state": "done", "keep": "1d"}, {"worker": "order", "state": "done", "keep": "1s"}]
_OLD_ORDERS = 1000
_FIRED = 1000
_BEFORE_S = 40.0
_SETTLE_S = 10.0
"""Seconds of the load that are not looked at: while a daemon begins, or rules come."""
_LONGEST_S = 1800.0
_SAMPLE = 200
_LOOK_S = 2.0
_CALM_S = 15.0
"""Seconds for which nothing comes back, and nothing fires."""
_EVENT = {"_id": "orders", "type": "@event", "arguments": "orders:CREATED", "worker": "order", "message": None}


async def retention(
    url: str | None, jobs: int, jobs_per_s: float, node_command: str | None, stays: str | None
) -> dict[str, Any]:
    """Return what became of `jobs` finished jobs, four fifths of which are too old, and of what ran meanwhile."""
    async with long_run(url, stays) as run:
        database, orders = run.database("jobs"), run.database("orders")
        await run.connection.server.create_database(orders.name)
        await _orders(orders, "old", _OLD_ORDERS)
        aged = await write_finished(database, jobs * 4 // 5, ended_ago=timedelta(days=2))
        young = await write_finished(database, jobs - jobs * 4 // 5)
        daemon = run.start()
        await run.database("triggers").put(_EVENT)
        await run.until(lambda: _is_there(run, f"checkpoint:{orders.name}"), "orders are followed", 60)
        await _orders(orders, "fired", _FIRED)
        await run.until(lambda: len(run.tries()) >= _FIRED, "orders have fired", 120)
        fired = [one[0].job_id for one in run.tries().values()]
        say("load begins")
        enough = asyncio.Event()
        load = asyncio.create_task(run.write(jobs_per_s, until=enough.is_set))
        began = time.time()
        await asyncio.sleep(_BEFORE_S)
        if node_command:
            await node(node_command, "stop")
        set_at = time.time()
        await store_rules(run.connection, run.tenant, _RULES)
        say("rules are set")
        gone = await run.until(lambda: _are_gone(database, aged), "removed", _LONGEST_S, _LOOK_S)
        gone_at = time.time()
        say(f"removed after {gone_at - set_at:.0f} s")
        await run.until(lambda: _are_gone(database, fired), "jobs of orders are removed", _LONGEST_S, _LOOK_S)
        if node_command:
            await node(node_command, "start")
        enough.set()
        await load
        await run.until_all_ran()
        await asyncio.sleep(_CALM_S)
        left = {*await _present(database, aged)} | {*await _present(database, fired)}
        kept = len(await _present(database, young))
        sizes = await _compacted(database)
        await run.stop(daemon)
        old_again = await _fires_nothing_again(run, orders, daemon)
        lost, again = run.lost_and_again()
        if lost or again or old_again or left:
            run.tell_daemons()
        return {
            "finished": jobs,
            "to_go": len(aged) + len(fired),
            "removed_in_s": round(gone_at - set_at, 1) if gone else None,
            "left": len(left),
            "kept_of_young": [kept, len(young)],
            "jobs_meanwhile": len(run.sent),
            "jobs_per_s": jobs_per_s,
            "latency_before_ms": run.waits(began + _SETTLE_S, set_at),
            "latency_meanwhile_ms": run.waits(set_at, gone_at),
            **sizes,
            "lost": len(lost),
            "ran_again": len(again),
            "old_orders_fired": old_again,
        }


async def _orders(orders: Database, name: str, count: int) -> None:
    await write_all(orders, [{"_id": f"{name}-{number:05}", "status": "paid"} for number in range(count)])


async def _is_there(run: LongRun, doc_id: str) -> bool:
    return await run.connection.control.find(doc_id) is not None


async def _are_gone(database: Database, ids: list[str]) -> bool:
    """Whether those of a sample are, and then all."""
    return not await _present(database, ids[:: max(1, len(ids) // _SAMPLE)]) and not await _present(database, ids)


async def _present(database: Database, ids: list[str]) -> list[str]:
    found: list[str] = []
    for at in range(0, len(ids), 1000):
        found += await database.get_many(ids[at : at + 1000])
    return found


async def _compacted(database: Database) -> dict[str, Any]:
    """The size of the file before and after compaction, and what is in it."""
    before = await database.info()
    if "sizes" not in before:
        return {"documents": before["doc_count"]}
    await compact(database)
    info = await database.info()
    while info.get("compact_running"):
        await asyncio.sleep(1)
        info = await database.info()
    return {
        "documents": info["doc_count"],
        "file_mb": [round(one["sizes"]["file"] / 1e6, 1) for one in (before, info)],
        "bytes_a_document": round(info["sizes"]["file"] / max(1, info["doc_count"])),
    }


async def _fires_nothing_again(run: LongRun, orders: Database, last: Any) -> int:
    """Take away the position, then set it to the beginning; return how many orders fire that had been seen."""
    checkpoint = await run.connection.control.get(f"checkpoint:{orders.name}")
    await run.connection.control.delete(checkpoint["_id"], checkpoint["_rev"])
    before = {*run.tries()}
    for name in ("removed", "set-back"):
        say(f"position: {name}")
        daemon = run.start()
        await run.until(lambda: _is_there(run, checkpoint["_id"]), "followed again", 60)
        await asyncio.sleep(_CALM_S)
        await orders.put({"_id": f"new-{name}"})
        wanted = f"{run.name}:new-{name}"
        await run.until(lambda wanted=wanted: wanted in run.tries(), f"{wanted} fires", 120)
        await asyncio.sleep(_CALM_S)
        await run.stop(daemon)
        position = await run.connection.control.get(checkpoint["_id"])
        await run.connection.control.put({**position, "seq": "0"})
    new = {what for what in run.tries().keys() - before if not what.partition(":")[2].startswith("new-")}
    again = [what for what, some in run.tries().items() if what.startswith(f"{run.name}:") and len(some) > 1]
    return len(new) + len(again)
