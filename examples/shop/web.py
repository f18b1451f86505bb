"""The web app of the shop: `python web.py`, then POST http://127.0.0.1:8080/orders {"id": "a1", "cents": 500}."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web
from shop import Order

from couchjobs import Couchjobs, JobNotFoundError, JobRequest

JOBS = web.AppKey("JOBS", Couchjobs)
RECEIPTS = {
    "_id": "receipts",
    "type": "@event",
    "arguments": "orders:CREATED,UPDATED:=>paid:status",
    "worker": "receipt",
    "message": None,
}


async def connected(app: web.Application) -> AsyncIterator[None]:
    """Open the jobs with the app, make the databases, and have receipts written."""
    async with app[JOBS] as couchjobs:
        for doctype in ("orders", "products", "mails", "dead-letters"):
            await couchjobs.connection.server.create_database(couchjobs.db.database(doctype))
        if RECEIPTS["_id"] not in [trigger.id for trigger in await couchjobs.triggers.list()]:
            await couchjobs.triggers.add(RECEIPTS)
        yield


async def order(request: web.Request) -> web.Response:
    """Take an order, and charge it once, however often the browser asks."""
    wanted = Order.model_validate(await request.json())
    jobs = request.app[JOBS]
    orders = jobs.connection.database(jobs.db.database("orders"))
    if await orders.find(wanted.id) is None:
        await orders.put({"_id": wanted.id, "status": "open", **wanted.model_dump(exclude={"id"})})
    pushed = await jobs.push("charge", wanted, id=f"charge-{wanted.id}")
    return web.json_response({"job": pushed.job.id, "new": pushed.created}, status=201 if pushed.created else 200)


async def later(request: web.Request) -> web.Response:
    """Charge an order in three days, unless somebody thinks better of it."""
    wanted = Order.model_validate(await request.json())
    job = (await request.app[JOBS].push("charge", wanted, id=f"charge-{wanted.id}", delay="3d")).job
    return web.json_response({"job": job.id, "at": str(job.scheduled_at)}, status=201)


async def imports(request: web.Request) -> web.Response:
    """Push thousands of jobs in a few requests."""
    products = await request.json()
    requests = (JobRequest(worker_type="import", message=one, id=f"import-{one['_id']}") for one in products)
    results = await request.app[JOBS].push_many(requests)
    return web.json_response({"pushed": sum(not isinstance(one, Exception) for one in results)}, status=201)


async def show(request: web.Request) -> web.Response:
    """Tell how far a job has come."""
    try:
        job = await request.app[JOBS].get(request.match_info["id"])
    except JobNotFoundError as error:
        return web.json_response({"error": str(error)}, status=404)
    state = "cancelled" if job.cancelled else job.state.value
    return web.json_response({"state": state, "progress": job.progress, "result": job.result, "error": job.error})


async def cancel(request: web.Request) -> web.Response:
    """Cancel a job."""
    job = await request.app[JOBS].cancel(request.match_info["id"])
    return web.json_response({"job": job.id})


def make_app(couchjobs: Couchjobs) -> web.Application:
    """Return the app, over these jobs, which it opens and closes."""
    app = web.Application()
    app[JOBS] = couchjobs
    app.cleanup_ctx.append(connected)
    app.router.add_post("/orders", order)
    app.router.add_post("/orders/later", later)
    app.router.add_post("/imports", imports)
    app.router.add_get("/jobs/{id}", show)
    app.router.add_delete("/jobs/{id}", cancel)
    return app


if __name__ == "__main__":
    web.run_app(make_app(Couchjobs.from_env()), host="127.0.0.1", port=8080)
