"""Where the worker functions of a daemon run: in its own process, or in children (`pool`). Both are used alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from couchjobs.jobs.job import Job
from couchjobs.workers.boundary import GRACE_S
from couchjobs.workers.config import WorkersList
from couchjobs.workers.outcome import Cancelled, Interrupted, Outcome
from couchjobs.workers.progress import Engine
from couchjobs.workers.worker import Lease, Try, Worker


class Attempt(Protocol):
    """One try of one job."""

    outliving: asyncio.Future[Any] | None
    """Done once a function has ended that outlives the outcome; None: there is none."""

    async def run(self) -> Outcome:
        """Have the function run, and return what came of it."""

    def stop(self, outcome: Cancelled | Interrupted, grace_s: float = GRACE_S) -> None:
        """End the try with that outcome; the function has so many seconds for it."""


class Processes(Protocol):
    """The processes of a daemon that run worker functions. `start` before use, `close` after."""

    count: int
    """How many there should be, each with all the slots."""
    listeners: list[Callable[[], None]]
    """Called when there is one more, or one less."""
    are_children: bool
    """Whether a function that hangs is their business: its process is replaced."""

    async def start(self) -> None:
        """Return when all are ready.

        Raises: whatever a `worker_init` raises.
        """

    def living(self) -> int:
        """Return how many take jobs now."""

    def fills_the_cores(self) -> bool:
        """Return whether no core of this host would be idle where a job waits a moment."""

    def begin(self, job: Job, daemon: str = "", lease: Lease | None = None) -> Attempt:
        """Return a try of the job, not yet running.

        `lease`: that of the daemon. A process may stand still: once it is over, another daemon may have the job, and
        the function does not begin any more.
        """

    async def close(self) -> None:
        """Let the worker types end."""


class InProcess:
    """This process. A plain function has a thread of its own.

    Args:
        workers: the worker types.
        longest_delay: seconds that a retry waits at most.
        engine: what functions push further jobs by.
    """

    count = 1
    are_children = False

    def __init__(self, workers: WorkersList, longest_delay: float, engine: Engine) -> None:
        self._workers = {one.worker_type: Worker(one, longest_delay, engine) for one in workers}
        self.listeners: list[Callable[[], None]] = []
        self._begun: list[Worker] = []

    async def start(self) -> None:
        """Call each worker's `worker_init`, whose exceptions pass."""
        for worker in self._workers.values():
            await worker.init()
            self._begun.append(worker)

    def living(self) -> int:
        """Return one: this process."""
        return 1

    def fills_the_cores(self) -> bool:
        """Return False: a job that waits is a function that waits."""
        return False

    def begin(self, job: Job, daemon: str = "", lease: Lease | None = None) -> Try:
        """Return a try of the job, not yet running.

        Raises:
            KeyError: there is no such worker.
        """
        return self._workers[job.worker].begin(job, daemon, lease)

    async def close(self) -> None:
        """Call `worker_stop` of each type that has begun; exceptions are logged, functions that hang left behind."""
        for worker in self._begun:
            await worker.stop()
