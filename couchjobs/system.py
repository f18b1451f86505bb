"""A broker and a scheduler, started together and shut down in order."""

from __future__ import annotations

import asyncio
import signal

from couchjobs.broker.couch import CouchBroker
from couchjobs.broker.protocol import Broker
from couchjobs.couch.connection import connect
from couchjobs.errors import ClosedError
from couchjobs.installation import install
from couchjobs.log import get_logger
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.protocol import Scheduler
from couchjobs.settings import Settings
from couchjobs.workers.config import WorkersList

_logger = get_logger(__name__)


class JobSystem:
    """One broker and one scheduler."""

    def __init__(self, broker: Broker, scheduler: Scheduler, workers: WorkersList) -> None:
        self.broker = broker
        self.scheduler = scheduler
        self.workers = workers
        self.state = "new"

    async def start(self) -> None:
        """Start the workers, then the triggers.

        Raises:
            ClosedError: the system is started, or closed.
        """
        if self.state != "new":
            raise ClosedError(f"the system is {self.state}")
        self.state = "running"
        await self.broker.start_workers(self.workers)
        await self.scheduler.start_scheduler(self.broker)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Stop the triggers, then the workers: running jobs may go on for `timeout` seconds.

        Raises:
            ClosedError: the system is not running.
        """
        if self.state != "running":
            raise ClosedError(f"the system is {self.state}")
        self.state = "closed"
        await self.scheduler.shutdown_scheduler()
        await self.broker.shutdown_workers(timeout)


async def system_start(broker: Broker, scheduler: Scheduler, workers_list: WorkersList) -> JobSystem:
    """Return a system of these, started."""
    system = JobSystem(broker, scheduler, workers_list)
    await system.start()
    return system


async def run_daemon(settings: Settings, workers: WorkersList) -> None:
    """Run a system until SIGTERM or SIGINT; a second one interrupts the running jobs."""
    async with connect(settings) as connection:
        await connection.server.wait_until_up(settings.request_timeout)
        for change in await install(connection, settings.tenant):
            _logger.info(change)
        broker = CouchBroker(connection)
        system = await system_start(broker, CouchScheduler(connection), workers)
        _logger.info("daemon runs", daemon=broker.daemon.id, workers=workers.names(), url=connection.server.url)
        await _until_signal(broker)
        _logger.info("daemon stops: running jobs may go on", seconds=settings.shutdown_timeout)
        await system.shutdown()
        _logger.info("daemon has stopped", daemon=broker.daemon.id)


async def _until_signal(broker: CouchBroker) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def ask() -> None:
        if asked.is_set():
            broker.hurry()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    await asked.wait()
