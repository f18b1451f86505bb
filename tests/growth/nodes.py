"""The node that a daemon uses is killed and started again, under load, and the daemon goes on at the others."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

from long_run import LongRun, long_run, node, say

from couchjobs.bench.limit import write_all
from couchjobs.couch.surely import write_surely

_TIMES = 3
_AWAY_S = 10.0
_BETWEEN_S = 20.0
_OLD_ORDERS = 10_000
_ORDERS_PER_S = 20
_EVENT = {"_id": "orders", "type": "@event", "arguments": "orders", "worker": "order", "message": None}


async def nodes(url: str, jobs_per_s: float, node_command: str, stays: str) -> dict[str, Any]:
    """Return what became of jobs and of orders whose changes fire; `url`: the node that dies comes first."""
    async with long_run(url, stays) as run:
        orders = run.database("orders")
        await run.connection.server.create_database(orders.name)
        await write_all(orders, [{"_id": f"old-{number:05}", "status": "paid"} for number in range(_OLD_ORDERS)])
        run.start()
        await run.database("triggers").put(_EVENT)
        await run.until(lambda: _is_followed(run), "orders are followed", 60)
        enough = asyncio.Event()
        load = [
            asyncio.create_task(run.write(jobs_per_s, until=enough.is_set)),
            asyncio.create_task(_write_orders(run, enough)),
        ]
        await asyncio.sleep(_BETWEEN_S)
        for _ in range(_TIMES):
            await node(node_command, "stop")
            await asyncio.sleep(_AWAY_S)
            await node(node_command, "start")
            await asyncio.sleep(_BETWEEN_S)
        enough.set()
        _, written = await asyncio.gather(*load)
        wanted = {f"{run.name}:{doc_id}" for doc_id in written}
        await run.until(lambda: wanted <= run.tries().keys(), "all orders have fired", 300)
        await run.until_all_ran()
        await asyncio.sleep(_BETWEEN_S)
        tries = run.tries()
        lost, again = run.lost_and_again()
        old = [what for what in tries if what.startswith(f"{run.name}:old-")]
        if lost or again or old:
            run.tell_daemons()
        begun = sorted(some[0].at for what, some in tries.items() if what in run.sent)
        return {
            "nodes_killed": _TIMES,
            "jobs": len(run.sent),
            "orders": len(wanted),
            "latency_ms": run.waits(0, time.time()),
            "longest_pause_s": round(max(b - a for a, b in pairwise(begun)), 2),
            "lost": len(lost),
            "ran_again": len(again),
            "orders_lost": len(wanted - tries.keys()),
            "old_orders_fired": len(old),
        }


async def _is_followed(run: LongRun) -> bool:
    return await run.connection.control.find(f"checkpoint:{run.database('orders').name}") is not None


async def _write_orders(run: LongRun, enough: asyncio.Event) -> list[str]:
    """Write orders at a steady rate, and return which."""
    writer, written = run.connection.writer(run.database("orders").name), list[str]()
    while not enough.is_set():
        doc_id = f"new-{len(written):05}"
        await write_surely(writer, {"_id": doc_id, "status": "paid"}, patience_s=120)
        written.append(doc_id)
        await asyncio.sleep(1 / _ORDERS_PER_S)
    say(f"{len(written)} orders")
    return written
