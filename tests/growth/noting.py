"""The workers of the long runs. Each try is a line in a file: a record beside the documents."""

from __future__ import annotations

import os
import time
from typing import Any

from couchjobs import WorkerContext, worker


def note(ctx: WorkerContext, what: str) -> None:
    """One line, in one write: what it was, without blanks, and which job."""
    handle = os.open(os.environ["GROWTH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{what} {ctx.id} {os.getpid()} {time.time()}\n".encode())
    os.close(handle)


@worker("work", concurrency=250)
async def work(ctx: WorkerContext) -> None:
    """Note which job it is."""
    note(ctx, ctx.id)


@worker("order", concurrency=250)
async def order(ctx: WorkerContext) -> None:
    """Note which document of which database has fired."""
    event: Any = ctx.job.event
    note(ctx, f"{ctx.job.prefix}:{event['doc']['_id']}")


@worker("tick", concurrency=250)
async def tick(ctx: WorkerContext) -> None:
    """Note which schedule of whom has fired."""
    note(ctx, f"{ctx.job.prefix}:tick:{ctx.tick:%FT%T}")
