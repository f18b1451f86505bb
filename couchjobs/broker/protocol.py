"""What every broker can do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from couchjobs.errors import ConfigurationError
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest
from couchjobs.prefixer import Prefixer
from couchjobs.workers.config import WorkersList


class Broker(Protocol):
    """Takes jobs and has them done."""

    async def start_workers(self, workers: WorkersList) -> None:
        """Begin to run the jobs of these workers.

        Raises:
            ClosedError: the broker runs already.
        """

    async def shutdown_workers(self, timeout: float | None = None) -> None:
        """Claim nothing more, let running jobs go on for `timeout` seconds, then put the others back.

        Raises:
            ClosedError: the broker does not run.
        """

    async def push_job(self, db: Prefixer, request: JobRequest) -> Job | None:
        """Store a job and return it; None where the worker's `before_hook` skips it.

        Raises:
            QueueClosedError: the broker is shut down.
            UnknownWorkerError: no worker of that type is registered.
            AdminOnlyError: the worker takes only requests of administrators.
        """

    async def push_jobs(self, db: Prefixer, requests: Iterable[JobRequest]) -> list[Job | Exception | None]:
        """Store many jobs together; return for each the job, None where it is skipped, or what refused it."""

    async def worker_queue_len(self, worker_type: str) -> int:
        """Return how many jobs of that type are queued.

        Raises:
            UnknownWorkerError: no worker of that type is registered.
        """

    def workers_types(self) -> list[str]:
        """Return the types of workers, sorted."""


def check_kind(broker: object, kind: type[Broker]) -> None:
    """Tell those whom no type checker has told that a scheduler fires into brokers of its own kind alone.

    Raises:
        ConfigurationError: the broker is of another kind.
    """
    if not isinstance(broker, kind):
        raise ConfigurationError(f"this scheduler needs a {kind.__name__}, and not a {type(broker).__name__}")
