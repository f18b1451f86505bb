"""A broker and a scheduler, started together and shut down in order."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, Protocol, Self, TypeAlias, TypeVar, cast

from couchjobs import process
from couchjobs.broker.couch import CouchBroker
from couchjobs.broker.protocol import Broker
from couchjobs.broker.runtime import Runtime
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import CouchError
from couchjobs.figures import FigureKeeper
from couchjobs.http.address import Address
from couchjobs.installation import install
from couchjobs.lifecycle import Lifecycle
from couchjobs.log import get_logger
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.protocol import Scheduler
from couchjobs.settings import Settings
from couchjobs.supervisor import Supervisor
from couchjobs.tenants.host import Host
from couchjobs.timestamps import now
from couchjobs.waits import patiently
from couchjobs.watchdog import Watchdog
from couchjobs.workers.boundary import take_signals
from couchjobs.workers.config import WorkersList
from couchjobs.workers.pool import ChildPool

_logger = get_logger(__name__)
_LAST_WRITES_S = 10.0
"""Seconds beyond `shutdown_timeout` in which the ends of jobs are written and connections are closed."""
_HURRIED_S = 2.0
"""For what is left to do, once a second signal has come."""
_BLOCKED_S = 0.5
"""Seconds more for an end that the event loop itself sees to."""
_LOOK_S = 0.1
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


BrokerT = TypeVar("BrokerT", bound=Broker)


class JobSystem(Generic[BrokerT]):
    """One broker and one scheduler, started together; as an async context manager, shut down in the end."""

    def __init__(self, broker: BrokerT, scheduler: Scheduler[BrokerT], workers: WorkersList) -> None:
        self.broker = broker
        self.scheduler = scheduler
        self.workers = workers
        self._life = Lifecycle("system")
        self._grace_s: float | None = 0

    async def start(self) -> None:
        """Start the workers, then the triggers.

        Raises:
            ClosedError: the system is started, or closed.
        """
        async with self._life.starting() as to_close:
            await self.broker.start_workers(self.workers)
            to_close.push_async_callback(self._shutdown_broker)
            try:
                await self.scheduler.start_scheduler(self.broker)
            except asyncio.CancelledError:  # somebody asks for the end: jobs that run may go on as at any end
                self._grace_s = None
                raise
            to_close.push_async_callback(self.scheduler.shutdown_scheduler)

    async def __aenter__(self) -> Self:
        """Start it, unless it runs."""
        if self.state != "running":
            await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Shut it down, unless somebody has."""
        if self.state == "running":
            await self.shutdown()

    async def _shutdown_broker(self) -> None:
        await self.broker.shutdown_workers(self._grace_s)

    @property
    def state(self) -> str:
        """Return `new`, `running` or `closed`."""
        return self._life.state

    async def shutdown(self, timeout: float | None = None) -> None:
        """Stop the triggers, then the workers: running jobs may go on for `timeout` seconds.

        Raises:
            ClosedError: the system is not running.
        """
        self._grace_s = timeout
        await self._life.close()


async def system_start(broker: BrokerT, scheduler: Scheduler[BrokerT], workers_list: WorkersList) -> JobSystem[BrokerT]:
    """Return a system of these, started."""
    system = JobSystem(broker, scheduler, workers_list)
    await system.start()
    return system


class _Signals:
    """SIGTERM, SIGINT and SIGHUP: the first one asks for an orderly end, each further one for a quick one.

    A function may block the event loop: a thread sees to it that the process ends in time all the same.
    """

    def __init__(self, longest_s: float, pool: ChildPool | None) -> None:
        self.asked = asyncio.Event()
        self.again = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._longest_s = longest_s
        self._pool = pool
        self._deadline = float("inf")
        self._watches = False
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN or number is signal.SIGTERM:  # nohup ignores SIGHUP
                process.listen_to(number, self._take)
        os.register_at_fork(after_in_child=take_signals)

    def _take(self, _number: int, _frame: object) -> None:
        """Be called by the interpreter, between two steps of whatever it does, a blocking function included."""
        seconds = self._longest_s if self._deadline == float("inf") else _HURRIED_S
        self._deadline = min(self._deadline, time.monotonic() + seconds + _BLOCKED_S)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe((self.again if self.asked.is_set() else self.asked).set)
        if not self._watches:
            self._watches = True
            threading.Thread(target=self._watch, name="couchjobs end", daemon=True).start()

    def _watch(self) -> None:
        while time.monotonic() < self._deadline:
            time.sleep(_LOOK_S)
        _logger.error("the event loop is blocked, and the process ends as it is")
        if self._pool is not None:
            self._pool.kill()
        process.leave(0)


class Service(Protocol):
    """What answers over HTTP."""

    async def open(self) -> None:
        """Take the address."""

    async def start(self, runtime: Runtime | None = None) -> None:
        """Answer."""

    async def stop(self) -> None:
        """Listen no more."""


class _OneTenant:
    """A daemon of the tenant of the settings."""

    def __init__(self, connection: Connection, workers: WorkersList, pool: ChildPool | None) -> None:
        self._connection = connection
        self._broker = CouchBroker(connection, pool=pool)
        self._system = JobSystem(self._broker, CouchScheduler(connection), workers)
        self._figures: FigureKeeper | None = None
        self._tasks = Supervisor()
        self.id = self._broker.daemon.id
        self.workers = workers
        self.stop_claiming = self._broker.stop_claiming
        self.hurry = self._broker.hurry

    async def start(self) -> None:
        """Make what is missing, and begin."""
        connection = self._connection
        patience_s = connection.settings.request_timeout
        for change in await patiently(lambda: install(connection, connection.settings.tenant), patience_s):
            _logger.info(change)
        await self._system.start()
        self._figures = FigureKeeper(connection, connection.settings.tenant, self.id, self.runtime.stats)
        self._tasks.start("keep figures", self._figures.run)

    @property
    def runtime(self) -> Runtime:
        """Return what it runs jobs with, once it has started."""
        return cast("Runtime", self._broker.runtime)

    async def shutdown(self) -> None:
        """End it."""
        await self._tasks.stop()
        await self._system.shutdown()
        if self._figures is not None:
            with suppress(CouchError):
                await self._figures.write(now())


class _WithHttp:
    """A daemon that also answers over HTTP."""

    def __init__(
        self, daemon: _OneTenant | Host, connection: Connection, address: Address, tenants: str | None
    ) -> None:
        from couchjobs.http.server import HttpServer  # noqa: PLC0415  8 MB that most daemons do not need

        self._daemon = daemon
        self._http: Service = HttpServer(connection, address, tenants)
        self._life = Lifecycle("daemon with HTTP")
        self.id = daemon.id
        self.workers = daemon.workers
        self.stop_claiming = daemon.stop_claiming
        self.hurry = daemon.hurry

    async def start(self) -> None:
        """Take the address first: a daemon that cannot have it does not begin. Where a step fails, none is left."""
        async with self._life.starting() as to_close:
            to_close.push_async_callback(self._http.stop)
            await self._http.open()
            await self._daemon.start()
            to_close.push_async_callback(self._daemon.shutdown)
            await self._http.start(self._daemon.runtime)

    async def shutdown(self) -> None:
        """End it; whoever looks at its health is answered to the end."""
        await self._life.close()


_Daemon: TypeAlias = _OneTenant | Host | _WithHttp


async def run_daemon(
    settings: Settings,
    workers: WorkersList,
    pool: ChildPool | None = None,
    tenants: str | None = None,
    address: Address | None = None,
) -> None:
    """Run a system until SIGTERM or SIGINT; a second one interrupts the running jobs.

    From the first signal on all of the end has one deadline, `shutdown_timeout` and 10 s, from the second on 2 s: then
    the process ends as it is. Jobs that it leaves `running` are rescued by other daemons.

    Args:
        settings: the settings.
        workers: what the daemon can do.
        pool: child processes for the functions; None: they run in this process.
        tenants: which, as `--tenants` says it; None: that of the settings alone.
        address: where to serve HTTP; None: nowhere.
    """
    longest = settings.shutdown_timeout + _LAST_WRITES_S
    signals = _Signals(longest, pool)
    with Watchdog():
        serving = asyncio.ensure_future(
            _serve(settings, lambda connection: _daemon(connection, workers, pool, tenants, address), signals)
        )
        await _first(serving, signals.asked.wait())
        if not serving.done():
            await _first(asyncio.wait([serving], timeout=longest), signals.again.wait())
        if not serving.done() and signals.again.is_set():
            await asyncio.wait([serving], timeout=_HURRIED_S)
        if not serving.done():
            _logger.error("the end takes too long: what is left of it is left to other daemons")
            if pool is not None:
                pool.kill()
            process.leave(0)
        await serving


def _daemon(
    connection: Connection,
    workers: WorkersList,
    pool: ChildPool | None,
    tenants: str | None,
    address: Address | None,
) -> _Daemon:
    daemon = _OneTenant(connection, workers, pool) if tenants is None else Host(connection, workers, tenants, pool)
    return daemon if address is None else _WithHttp(daemon, connection, address, tenants)


async def _serve(settings: Settings, make: Callable[[Connection], _Daemon], signals: _Signals) -> None:
    """Start, run until a signal asks for the end, shut down and close."""
    async with connect(settings) as connection:
        daemon = make(connection)
        starting = asyncio.ensure_future(_start(connection, daemon))
        hurrying = asyncio.ensure_future(_hurry(daemon, signals))
        try:
            await _first(starting, signals.asked.wait())
            if not starting.done():  # its jobs may run already
                _stop_claiming(daemon, settings)
                starting.cancel()
            try:
                await starting
            except asyncio.CancelledError:
                if not signals.asked.is_set():
                    raise
                _logger.info("daemon has stopped before it had started", daemon=daemon.id)
                return
            _logger.info("daemon runs", daemon=daemon.id, workers=daemon.workers.names(), url=connection.server.url)
            await signals.asked.wait()
            _stop_claiming(daemon, settings)
            await daemon.shutdown()
        finally:
            hurrying.cancel()
        _logger.info("daemon has stopped", daemon=daemon.id)


async def _start(connection: Connection, daemon: _Daemon) -> None:
    await connection.server.wait_until_up(connection.settings.request_timeout)
    await daemon.start()


def _stop_claiming(daemon: _Daemon, settings: Settings) -> None:
    daemon.stop_claiming()
    _logger.info("daemon stops: running jobs may go on; a second signal ends them", seconds=settings.shutdown_timeout)


async def _hurry(daemon: _Daemon, signals: _Signals) -> None:
    await signals.again.wait()
    daemon.hurry()


async def _first(*waits: Awaitable[object]) -> None:
    """Return as soon as one of these is done; the tasks made for the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, wait in zip(tasks, waits, strict=True):
        if task is not wait:
            task.cancel()
