"""The workers of a small shop: charge once, a receipt for each payment, ship after it, thumbnails, a nightly report.

couchjobs dev --memory                 # and paste what it prints
couchjobs run shop                     # in this folder
python web.py
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel

from couchjobs import AbortJob, JobFailedError, WorkerContext, on_failed, worker


class Order(BaseModel):
    """What the web app pushes."""

    id: str
    cents: int
    email: str = ""


class Image(BaseModel):
    """An attachment of a product."""

    product: str
    name: str


@worker("charge", max_exec_count=8, timeout="30s", retry_delay="100ms")
async def charge(ctx: WorkerContext, order: Order) -> str:
    """Charge a card once: the bank knows the payment by the job's id, whichever try it is."""
    if order.cents <= 0:
        ctx.set_no_retry()
        raise ValueError(f"order {order.id} costs {order.cents}")
    ctx.progress(0.5, "asking the bank")
    payment = hashlib.sha256(ctx.id.encode()).hexdigest()[:12]
    await ctx.couch["orders"].update(order.id, lambda doc: doc.update(status="paid", payment=payment))
    return payment


@worker("receipt")
async def receipt(ctx: WorkerContext) -> str:
    """Write a receipt: fired by `orders:CREATED,UPDATED:=>paid:status`, once each time that an order becomes paid."""
    order = ctx.job.event["doc"] if ctx.job.event else {}
    await ctx.couch["mails"].put({"_id": f"receipt-{ctx.id}", "order": order["_id"], "payment": order["payment"]})
    await ctx.push(ship, Order(id=order["_id"], cents=order["cents"]))
    return f"receipt for {order['_id']}"


@worker("ship")
async def ship(ctx: WorkerContext, order: Order) -> None:
    """Ship what is paid, and say so in the order; an order that was cancelled meanwhile is left alone."""

    def shipped(doc: dict[str, Any]) -> None:
        if doc.get("status") == "cancelled":
            raise AbortJob("cancelled meanwhile")
        doc["status"] = "shipped"

    await ctx.couch["orders"].update(order.id, shipped)


@worker("thumbnail", concurrency=2)
def thumbnail(ctx: WorkerContext, image: Image) -> int:
    """Make a small picture of an attachment, in a thread: every tenth byte of it, where a shop would take Pillow."""
    data = ctx.sync_couch["products"].attachment(image.product, image.name)
    ctx.progress(0.5, f"{len(data):,} bytes read")
    small = data[::10]
    ctx.sync_couch["products"].attach(image.product, f"small-{image.name}", small, "image/png")
    return len(small)


@worker("report", cron="0 3 * * *", timezone="Europe/Paris")
async def report(ctx: WorkerContext) -> dict[str, int]:
    """Count the orders each night, at three in Paris."""
    paid = await ctx.couch["orders"].query({"status": {"$in": ["paid", "shipped"]}}, limit=10_000)
    return {"orders": len(paid), "cents": sum(order["cents"] for order in paid)}


@worker("import", concurrency=50)
async def import_product(ctx: WorkerContext, product: dict[str, Any]) -> None:
    """Take over one product of 20,000."""
    await ctx.couch["products"].update(product["_id"], lambda doc: doc.update(product))


@worker("export", timeout="10m")
async def export(ctx: WorkerContext) -> int:
    """Write a long file, step by step; somebody may cancel it."""
    products = await ctx.couch["products"].query({}, limit=1000)
    for number, _ in enumerate(products):
        ctx.progress(number / len(products), "exporting")
    return len(products)


@on_failed
async def to_dead_letters(ctx: WorkerContext, error: JobFailedError) -> None:
    """Keep what has failed for good where people look; called again, it writes the same."""
    letter = {"worker": ctx.job.worker, "error": str(error), "cause": error.cause, "traceback": error.traceback}
    await ctx.couch["dead-letters"].update(ctx.id, lambda doc: doc.update(letter))
