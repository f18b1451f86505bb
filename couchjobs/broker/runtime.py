"""What one daemon runs jobs with, whosever they are: its processes, its slots and the one producer."""

from __future__ import annotations

from couchjobs.broker.executor import Executor
from couchjobs.broker.marks import Marks
from couchjobs.broker.producer import Producer
from couchjobs.cluster.presence import Presence
from couchjobs.lifecycle import Lifecycle
from couchjobs.stats import Stats
from couchjobs.supervisor import Supervisor
from couchjobs.workers.config import WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.failure import Failures
from couchjobs.workers.pool import ChildPool
from couchjobs.workers.processes import InProcess, Processes
from couchjobs.workers.slots import Slots

_HURRIED_GRACE_S = 0.5
"""Seconds that functions have to end at the second signal: 2 s are left for everything."""


class Runtime:
    """The processes, slots and producer of one daemon: started once, closed once.

    Args:
        presence: that of the daemon.
        workers: what it can do.
        pool: child processes for the functions, each of which has all the slots; None: they run in this process.
    """

    def __init__(self, presence: Presence, workers: WorkersList, pool: ChildPool | None = None) -> None:
        connection = presence.connection
        engine = CouchEngine(connection, workers)
        self.presence = presence
        self.workers = workers
        self.processes: Processes = pool or InProcess(workers, connection.settings.max_retry_delay, engine)
        self.failures = Failures(workers, presence.id, engine)
        slots = Slots(workers, self.processes, connection.settings.max_jobs, shared=presence.serves_many)
        self.stats = Stats()
        executor = Executor(connection, presence, self.processes, self.failures, self.stats)
        self.producer = Producer(presence, slots, executor, Marks(presence.peers, self.failures))
        self.grace_s = connection.settings.shutdown_timeout
        """Seconds that running jobs may go on for once this is closed."""
        self._tasks = Supervisor()
        self._minding = Supervisor()
        """What minds the own beats, until no job runs here any more."""
        self._life = Lifecycle("runtime")

    async def start(self) -> None:
        """Begin to run the jobs of the lanes that the producer has, and will have.

        Raises:
            NotFound: there is no control database; `couchjobs init` makes it.
        """
        async with self._life.starting() as to_close:
            to_close.push_async_callback(self.processes.close)
            await self.processes.start()
            to_close.push_async_callback(self.presence.leave)
            await self.presence.join()
            to_close.push_async_callback(self._minding.stop)
            to_close.push_async_callback(self._finish)
            self._tasks.start("claim jobs", self.producer.run)
            self._minding.start("mind own beats", self.producer.mind_own_beats)
            self.presence.connection.server.wait_for_credentials(self.presence.connection.settings.request_timeout)

    async def close(self) -> None:
        """Claim nothing more, let running jobs go on for `grace_s`, then put the others back in the queue."""
        await self._life.close()

    async def _finish(self) -> None:
        self.stop_claiming()
        await self._tasks.stop()
        await self.presence.take_jobs((), 0)
        await self.producer.close(self.grace_s)

    def stop_claiming(self) -> None:
        """Claim nothing more, from now on, and do not wait for credentials that were changed."""
        self.presence.connection.server.wait_for_credentials(0)
        self.producer.is_open = False

    def hurry(self) -> None:
        """Interrupt all running jobs now, for a shutdown that is under way."""
        self.producer.interrupt(_HURRIED_GRACE_S)
