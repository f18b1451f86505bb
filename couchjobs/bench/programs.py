"""A program that pushes jobs: the bench starts one or several beside the daemon, and has them begin at once.

It says that it is ready by a line of its output, and begins at a line of its input.
"""

from __future__ import annotations

import asyncio
import sys

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import connect
from couchjobs.jobs.request import JobRequest


async def push(producers: int, jobs: int) -> None:
    """Push so many jobs by so many coroutines, each one after the other, to the server and tenant of the settings."""
    async with connect() as connection:
        broker, left = CouchBroker(connection), iter(range(jobs))
        await connection.server.welcome()
        print("ready", flush=True)
        if not await asyncio.to_thread(sys.stdin.readline):  # whoever started this has gone
            return

        async def one_by_one() -> None:
            for number in left:
                await broker.push_job(connection.settings.tenant, JobRequest(worker_type="noop", message=number))

        await asyncio.gather(*(one_by_one() for _ in range(producers)))


if __name__ == "__main__":
    asyncio.run(push(int(sys.argv[1]), int(sys.argv[2])))
