"""The workers of the fault runner. Each try that begins or ends is a line in a file: a record beside the documents."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from datetime import datetime, timedelta, tzinfo

from couchjobs import WorkerContext, timestamps, worker

OFF = timedelta(seconds=float(os.environ.get("FAULTS_CLOCK_OFF", "0")))
if OFF:
    real_time = time.time
    time.time = lambda: real_time() + OFF.total_seconds()

    class Shifted(datetime):
        """A clock that is wrong."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Shifted:  # type: ignore[override]
            """The wrong time."""
            return super().now(tz) + OFF  # type: ignore[return-value]

    timestamps.datetime = Shifted  # type: ignore[misc]


def note(what: str, ctx: WorkerContext) -> None:
    """One line, in one write."""
    handle = os.open(os.environ["FAULTS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{what} {ctx.id} {ctx.daemon} {os.getpid()} {time.monotonic()}\n".encode())
    os.close(handle)


@worker("work", concurrency=10, timeout=None, max_exec_count=20)
async def work(ctx: WorkerContext, message: float) -> None:
    """Take a while."""
    note("began", ctx)
    await asyncio.sleep(message)
    note("ended", ctx)


@worker("exits", concurrency=1, max_exec_count=2)
async def exits(ctx: WorkerContext) -> None:
    """Take the process with it."""
    note("began", ctx)
    os._exit(1)


@worker("blocks", concurrency=1, timeout=None, max_exec_count=2)
async def blocks(ctx: WorkerContext, message: float) -> None:
    """Block the event loop."""
    note("began", ctx)
    time.sleep(message)  # noqa: ASYNC251  that is what it is about
    note("ended", ctx)


@worker("never", concurrency=1, timeout=1, max_exec_count=2, retry_delay=0.1)
async def never(ctx: WorkerContext) -> None:
    """Wait for what does not come."""
    note("began", ctx)
    await asyncio.Event().wait()


@worker("eats", concurrency=1, max_exec_count=2, retry_delay=0.1)
def eats(ctx: WorkerContext) -> None:
    """Take all the memory that the process may have."""
    note("began", ctx)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**32, before[1]))
    try:
        bytearray(2**33)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
