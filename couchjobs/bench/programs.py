"""Programs that push one job after another: a process that the bench starts beside the daemon's."""

from __future__ import annotations

import asyncio
import sys

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import connect
from couchjobs.jobs.request import JobRequest


async def push(producers: int, jobs: int) -> None:
    """Push so many jobs by so many producers, to the server and tenant of the settings."""
    async with connect() as connection:
        broker, left = CouchBroker(connection), iter(range(jobs))

        async def one_by_one() -> None:
            for number in left:
                await broker.push_job(connection.settings.tenant, JobRequest(worker_type="noop", message=number))

        await asyncio.gather(*(one_by_one() for _ in range(producers)))


if __name__ == "__main__":
    asyncio.run(push(int(sys.argv[1]), int(sys.argv[2])))
