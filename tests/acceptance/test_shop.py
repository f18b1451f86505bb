"""The shop of `examples/shop`: its workers without CouchDB, then all of it with a daemon and its web app."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import State
from couchjobs.prefixer import Prefixer
from couchjobs.testing import TestSystem
from couchjobs.workers import failure
from couchjobs.workers.loading import load_workers

SHOP = Path(__file__).parent.parent.parent / "examples" / "shop"
IMPORTED = int(os.environ.get("COUCHJOBS_TEST_IMPORTED", "2000"))


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of its workers; what it wants to hear of all failures is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(SHOP))
    monkeypatch.setattr(failure, "_for_all", [])
    for name in ("shop", "web"):
        sys.modules.pop(name, None)
    import shop as module

    yield module
    for name in ("shop", "web"):
        sys.modules.pop(name, None)


async def test_workers_when_tested_in_memory_then_the_whole_chain(shop: Any) -> None:
    """An order is charged, gets its receipt, is shipped; a year of reports in no time; what fails is kept."""
    workers = (shop.charge, shop.receipt, shop.ship, shop.thumbnail, shop.report)
    async with TestSystem(*workers) as system:
        await system.add_trigger(
            {
                "_id": "receipts",
                "type": "@event",
                "arguments": "orders:CREATED,UPDATED:=>paid:status",
                "worker": "receipt",
                "message": None,
            }
        )
        orders = system.couch["orders"]
        await orders.put({"_id": "a1", "cents": 500, "status": "open"})
        await system.push("charge", {"id": "a1", "cents": 500}, id="charge-a1")
        await system.push("charge", {"id": "a1", "cents": 500}, id="charge-a1")
        await system.run_pending()
        assert (await orders.get("a1"))["status"] == "shipped"
        system.assert_pushed("receipt", times=1)
        system.assert_pushed("ship", times=1)
        bad = await system.push("charge", {"id": "a2", "cents": 0})
        await system.run_pending()
        assert system.job(bad.id).state is State.ERRORED
        assert (await system.couch["dead-letters"].get(bad.id))["cause"] == "tries"
        await system.couch["products"].put({"_id": "p1"})
        await system.couch["products"].attach("p1", "p.png", bytes(1000), "image/png")
        small = await system.push("thumbnail", {"product": "p1", "name": "p.png"})
        await system.run_pending()
        assert system.job(small.id).result == 100
        assert len(await system.couch["products"].attachment("p1", "small-p.png")) == 100
        await system.advance(365 * 86_400)
        assert len(system.assert_pushed("report")) in (365, 366)


async def test_shop_when_it_runs_then_each_order_is_charged_and_shipped_once(
    connection: Connection, db: Prefixer, start: Any, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through its web app: twice the same order, a later one that is cancelled, an import, a thumbnail, progress."""
    import web

    monkeypatch.chdir(SHOP)
    workers = [config.worker_func for config in load_workers(["shop"])]
    await start(*workers)
    app = web.make_app(Couchjobs(settings=connection.settings))
    orders, products = (connection.database(db.database(doctype)) for doctype in ("orders", "products"))
    async with TestClient(TestServer(app)) as browser:
        await eventually(lambda: connection.control.with_prefix("checkpoint:"))
        first = await browser.post("/orders", json={"id": "a1", "cents": 500})
        second = await browser.post("/orders", json={"id": "a1", "cents": 500})
        assert [(one.status, (await one.json())["job"]) for one in (first, second)] == [
            (201, "charge-a1"),
            (200, "charge-a1"),
        ]

        async def shipped() -> bool:
            return (await orders.get("a1"))["status"] == "shipped"

        await eventually(shipped)
        mails = connection.database(db.database("mails"))
        assert len([doc async for page in mails.all_docs() for doc in page]) == 1
        told = await (await browser.get("/jobs/charge-a1")).json()
        assert (told["state"], told["error"]) == ("done", None)
        await browser.post("/orders/later", json={"id": "a2", "cents": 100})
        assert (await browser.delete("/jobs/charge-a2")).status == 200

        async def cancelled() -> bool:
            return (await (await browser.get("/jobs/charge-a2")).json())["state"] == "cancelled"

        await eventually(cancelled)
        pushed = await browser.post("/imports", json=[{"_id": f"p{number}", "n": number} for number in range(IMPORTED)])
        assert (await pushed.json())["pushed"] == IMPORTED

        async def imported() -> bool:
            return (await products.info())["doc_count"] == IMPORTED

        await eventually(imported, 90)
        couchjobs = app[web.JOBS]
        failed = (await couchjobs.push("charge", {"id": "a3", "cents": 0})).job
        await couchjobs.wait(failed.id, 15)
        letters = connection.database(db.database("dead-letters"))
        assert "costs 0" in (await letters.get(failed.id))["error"]
        assert (await browser.get("/jobs/none")).status == 404
