"""Child processes that run the worker functions of a daemon, so that it can use all cores of a host.

The daemon follows, claims and writes; a child gets a job's document and answers with the outcome of one try. A child
that dies ends its tries at once: "worker lost". It is replaced, as is one that has had `max_jobs` jobs, or whose event
loop does not end a try in time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from couchjobs.errors import ConfigurationError
from couchjobs.jobs.job import Job, JobOptions
from couchjobs.log import get_logger
from couchjobs.settings import Settings
from couchjobs.supervisor import Supervisor, backoff
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.outcome import Cancelled, Failed, Interrupted, Outcome, Retry
from couchjobs.workers.wire import pack, receive, send, unpack
from couchjobs.workers.worker import lower, most_tries

_logger = get_logger(__name__)
_STUCK_AFTER_S = 5.0
_QUICK_DEATH_S = 5.0


@dataclass(eq=False)
class _Child:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tries: dict[int, RemoteTry] = field(default_factory=dict)
    of_type: Counter[str] = field(default_factory=Counter)
    had: int = 0

    def begin(self, number: int, one: RemoteTry) -> None:
        """Take note of a try that begins here."""
        self.tries[number] = one
        self.of_type[one.worker_type] += 1
        self.had += 1

    def end(self, number: int) -> None:
        """Take note that a try has ended."""
        self.of_type[self.tries.pop(number).worker_type] -= 1


class RemoteTry:
    """One try of one job, in a child process."""

    def __init__(self, pool: ChildPool, config: WorkerConfig, job: Job, daemon: str) -> None:
        loop = asyncio.get_running_loop()
        self._pool = pool
        self._config = config
        self._job = job
        self.worker_type = job.worker
        self._daemon = daemon
        self._number = next(pool.numbers)
        self._child: _Child | None = None
        self._stopped_as: Cancelled | Interrupted | None = None
        self._outcome: asyncio.Future[Outcome] = loop.create_future()
        self.thread: asyncio.Future[Any] | None = None
        """Done once a plain function has ended that outlives the outcome."""

    async def run(self) -> Outcome:
        """Have a child run the function, and return what came of it."""
        self._child = child = await self._pool.pick(self._job.worker)
        if self._stopped_as is not None:
            return self._stopped_as
        child.begin(self._number, self)
        send(child.writer, {"try": self._number, "job": self._job.document(), "daemon": self._daemon})
        plain = not self._config.is_coroutine
        self._pool.plain_functions += plain
        try:
            return await self._outcome_in_time(child)
        finally:
            self._pool.plain_functions -= plain

    async def _outcome_in_time(self, child: _Child) -> Outcome:
        options = self._job.options or JobOptions()
        seconds = lower(self._config.timeout, options.timeout)
        commit = self._config.timeout if self._config.worker_commit is not None else 0.0
        longest = None if seconds is None or commit is None else seconds + commit + _STUCK_AFTER_S
        done, _ = await asyncio.wait([self._outcome], timeout=longest)
        if not done:
            _logger.error("child does not end a try in time, and is killed", job=self._job.id, pid=child.process.pid)
            with suppress(ProcessLookupError):
                child.process.kill()
        return await self._outcome

    def stop(self, outcome: Cancelled | Interrupted) -> None:
        """End the try with that outcome."""
        if self._stopped_as is None:
            self._stopped_as = outcome
            if self._child is not None and self._number in self._child.tries:
                send(self._child.writer, {"try": self._number, "stop": pack(outcome)})

    def answered(self, message: dict[str, Any]) -> bool:
        """Take what the child says; return whether that was the last of it."""
        if "outcome" in message:
            if message["busy"]:
                self.thread = asyncio.get_running_loop().create_future()
            if not self._outcome.done():
                self._outcome.set_result(unpack(message["outcome"]))
            return not message["busy"]
        if self.thread is not None and not self.thread.done():
            self.thread.set_result(None)
        return True

    def lost(self, how: str) -> None:
        """Take note that the child is gone."""
        if self.thread is not None and not self.thread.done():
            self.thread.set_result(None)
        if self._outcome.done():
            return
        error = f"worker lost: its process has ended ({how})"
        if self._stopped_as is not None:
            self._outcome.set_result(self._stopped_as)
        elif self._job.exec_count < most_tries(self._config, self._job):
            self._outcome.set_result(Retry(error, 0.0))
        else:
            self._outcome.set_result(Failed(error))


class ChildPool:
    """So many child processes. `start` before use, `close` after.

    Args:
        count: how many.
        modules: the names of the modules whose workers they have; each child imports them itself.
        workers: the same workers, as the daemon knows them.
        settings: of the process.
        log_level: of the children.
        max_jobs: how many jobs one child has before it is replaced; 0 for no limit.
    """

    def __init__(
        self,
        count: int,
        modules: Iterable[str],
        workers: WorkersList,
        settings: Settings,
        log_level: str = "info",
        max_jobs: int = 0,
    ) -> None:
        self.count = count
        self.numbers = itertools.count()
        self.plain_functions = 0
        self._workers = workers
        self._hello = {
            "modules": [*modules],
            "settings": settings.model_dump(mode="json"),
            "log_level": log_level,
        }
        self._max_jobs = max_jobs
        self._children: set[_Child] = set()
        self._tasks = Supervisor()
        self._changed = asyncio.Condition()
        self._failed: str | None = None
        self._started = False

    async def start(self) -> None:
        """Start the children and wait until all are ready.

        Raises:
            ConfigurationError: one cannot be, and why.
        """
        for number in range(self.count):
            self._tasks.start(f"child {number}", self._keep_child)
        async with self._changed:
            await self._changed.wait_for(lambda: self._failed is not None or len(self._children) == self.count)
        if self._failed is not None:
            await self.close()
            raise ConfigurationError(f"a child process cannot start: {self._failed}")
        self._started = True

    async def close(self) -> None:
        """End all children, whatever they do."""
        children = [*self._children]
        await self._tasks.stop()
        for child in children:
            child.writer.close()
            if child.process.returncode is None:
                child.process.kill()
            await child.process.wait()

    def begin(self, job: Job, daemon: str = "") -> RemoteTry:
        """Return a try of the job, not yet running."""
        return RemoteTry(self, self._workers.get(job.worker), job, daemon)

    def fills_the_cores(self) -> bool:
        """Return whether more plain functions run than this host has cores: while one waits, no core is idle."""
        return self.plain_functions > (os.cpu_count() or 1)

    async def pick(self, worker_type: str) -> _Child:
        """Return the child that has the fewest tries of that type, then of all; wait for one where there is none.

        A child has threads for `concurrency` plain functions of each type: more of one type would wait there in vain.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._children))
            return min(self._children, key=lambda child: (child.of_type[worker_type], len(child.tries)))

    async def _keep_child(self) -> None:
        loop, deaths = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            child = await self._spawn()
            if child is not None:
                await self._listen(child)
            elif not self._started:
                return
            deaths = deaths + 1 if loop.time() - began < _QUICK_DEATH_S else 0
            if deaths > 1:
                await asyncio.sleep(backoff(deaths))

    async def _spawn(self) -> _Child | None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "couchjobs.workers.child", str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        send(writer, self._hello)
        answer = await receive(reader)
        if answer is None or "failed" in answer:
            self._failed = answer["failed"] if answer else f"it ended at once, with {await process.wait()}"
            _logger.error("a child process cannot start", reason=self._failed)
            async with self._changed:
                self._changed.notify_all()
            return None
        child = _Child(process, reader, writer)
        self._children.add(child)
        async with self._changed:
            self._changed.notify_all()
        return child

    async def _listen(self, child: _Child) -> None:
        """Hand out what the child says until it has gone, or has had enough and is idle."""
        while (message := await receive(child.reader)) is not None:
            running = child.tries.get(message["try"])
            if running is not None and running.answered(message):
                child.end(message["try"])
            if self._max_jobs and child.had >= self._max_jobs:
                self._children.discard(child)
                if not child.tries:
                    break
        self._children.discard(child)
        child.writer.close()
        code = await child.process.wait()
        for running in child.tries.values():
            running.lost(f"signal {-code}" if code < 0 else f"exit code {code}")
        if child.tries:
            _logger.error("child process has ended", pid=child.process.pid, code=code, jobs=len(child.tries))
        child.tries.clear()
