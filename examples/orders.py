"""The workers of the demo: `couchjobs run examples.orders`, or `couchjobs run orders` from this folder."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from couchjobs import WorkerContext, worker


class Mail(BaseModel):
    """What a mail job is told."""

    template: str
    to: str | None = None


@worker("sendmail", concurrency=4, max_exec_count=3, timeout=30)
async def sendmail(ctx: WorkerContext, message: Mail) -> dict[str, Any]:
    """Pretend to send a mail: to the address in the message, else to the customer of the order that fired."""
    to = message.to or (ctx.job.event or {})["doc"]["customer"]
    ctx.logger.info("mail sent", to=to, template=message.template)
    return {"to": to, "template": message.template}


@worker("invoice", concurrency=2, max_exec_count=3, retry_delay=0.5)
def invoice(ctx: WorkerContext) -> str:
    """Fail once, as a plain function that runs in a thread, and succeed when tried again."""
    if ctx.exec_count == 1:
        raise ConnectionError("the printer is on fire")
    return "printed"
