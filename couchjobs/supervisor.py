"""Long-lived tasks that never run on half alive: one that fails is started again, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from couchjobs.errors import CouchError
from couchjobs.log import get_logger
from couchjobs.waits import LONGEST_OUTAGE_PAUSE_S, LONGEST_PAUSE_S, backoff

_logger = get_logger(__name__)


def is_cancelled() -> bool:
    """Return whether somebody has cancelled the present task, rather than something that it waits for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class Supervisor:
    """The long-lived tasks of one component; `failures` counts how often one had to be started again."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: dict[str, int] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `run` in a task until it returns or is cancelled, again with backoff where it raises."""
        task = asyncio.create_task(self._keep_running(name, run), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await run()
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise
                failures = 1 if loop.time() - started > LONGEST_PAUSE_S else failures + 1
                self.failures[name] = self.failures.get(name, 0) + 1
                outage = isinstance(error, CouchError)
                pause = backoff(failures, longest=LONGEST_OUTAGE_PAUSE_S if outage else LONGEST_PAUSE_S)
                facts = {"task": name, "failures": self.failures[name], "again_in_s": round(pause, 2)}
                if not outage:
                    _logger.exception("task failed", **facts)
                elif failures & (failures - 1) == 0:  # the 1st, 2nd, 4th, ... time: an outage is told of, not recited
                    _logger.warning("task waits for CouchDB", reason=str(error), **facts)
                await asyncio.sleep(pause)
            else:
                return
