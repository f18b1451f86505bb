"""Child processes that run the worker functions of a daemon, so that it can use all cores of a host.

The daemon follows, claims and writes; a child gets a job's document and answers with the outcome of one try. A child
that dies ends its tries at once: "worker lost". It is replaced, as is one that has had `max_jobs` jobs, whose event
loop does not end a try in time, or one of whose plain functions does not end: that one gets no new jobs, another takes
its place at once, and it is ended when its last try is, or after a while.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from couchjobs.errors import BadRequest, ConfigurationError
from couchjobs.jobs.job import Job
from couchjobs.log import get_logger
from couchjobs.settings import Settings
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import now
from couchjobs.waits import backoff
from couchjobs.workers.boundary import GRACE_S, LONGEST_HOOK_S
from couchjobs.workers.child_process import ChildProcess
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.outcome import Cancelled, Failed, Interrupted, Outcome
from couchjobs.workers.retry import lost_outcome, time_limit
from couchjobs.workers.wire import pack, send, unpack
from couchjobs.workers.worker import Lease

_logger = get_logger(__name__)
_STUCK_AFTER_S = 5.0
"""Beyond its time, its grace and its hooks: then a child gives no answer any more."""
_QUICK_DEATH_S = 5.0
"""After its start: a child that dies so soon twice in a row is not started again at once."""
_LISTENS_WITHIN_S = 3.0
"""Seconds in which a child says that it listens: it may be busy, and its other jobs would be lost with it."""
_HUNG_AFTER_S = 10.0
"""Seconds that a plain function may go on after its try has ended, before its process is replaced."""
_NO_CHILD_S = 30.0
"""Seconds for which a job waits for a child process where none can start; then it goes back to the queue."""
_LAST_TRIES_S = 3600.0
"""Seconds that other tries may have in a process in which something hangs, where they have no limit of their own."""


class RemoteTry:
    """One try of one job, in a child process."""

    def __init__(self, pool: ChildPool, config: WorkerConfig, job: Job, daemon: str, lease: Lease | None) -> None:
        loop = asyncio.get_running_loop()
        self._pool = pool
        self._config = config
        self._is_coroutine = config.is_coroutine
        self._job = job
        self.worker_type = job.worker
        self._daemon = daemon
        self._lease = lease
        self._number = next(pool.numbers)
        self._child: ChildProcess | None = None
        self._stopped_as: Cancelled | Interrupted | None = None
        self._stopped = asyncio.Event()
        self._outcome: asyncio.Future[Outcome] = loop.create_future()
        self.ends_by: float | None = None
        """When the child is killed, at the latest, for this try is not over; None where that may take any time."""
        self.outliving: asyncio.Future[Any] | None = None
        """Done once a function has ended that outlives the outcome."""

    async def run(self) -> Outcome:
        """Have a child run the function, and return what came of it."""
        child = None
        with suppress(TimeoutError):
            async with asyncio.timeout(_NO_CHILD_S):
                child = await self._pool.next_for(self.worker_type, self._stopped)
        if child is None or (self._lease is not None and self._lease.is_lost):
            return self._stopped_as or Interrupted()
        self._child = child
        child.begin(self._number, self)
        self._pool.has_begun(child)
        try:
            facts = {"daemon": self._daemon, "domain": self._job.domain, "prefix": self._job.prefix}
            send(child.writer, {"try": self._number, "job": self._job.document(), **facts})
        except BadRequest as error:
            child.end(self._number)
            return Failed(f"the job cannot be handed to a child process: {error}")
        plain = not self._is_coroutine
        self._pool.plain_functions += plain
        try:
            return await self._outcome_in_time(child)
        finally:
            self._pool.plain_functions -= plain

    async def _outcome_in_time(self, child: ChildProcess) -> Outcome:
        seconds = time_limit(self._config, self._job, now())
        commit = self._config.timeout if self._config.worker_commit is not None else 0.0
        hook = LONGEST_HOOK_S if self._config.error_hook is not None else 0.0
        longest = (
            None if seconds is None or commit is None else max(0.0, seconds) + GRACE_S + hook + commit + _STUCK_AFTER_S
        )
        if longest is not None:
            self.ends_by = asyncio.get_running_loop().time() + longest
        done, _ = await asyncio.wait([self._outcome], timeout=longest)
        if not done:
            _logger.error("child does not end a try in time, and is killed", job=self._job.id, pid=child.process.pid)
            child.kill()
            await asyncio.wait([self._outcome], timeout=_STUCK_AFTER_S)
            self.lost("it gave no answer")
        return await self._outcome

    @property
    def outcome(self) -> asyncio.Future[Outcome]:
        """Return what is done once the try has ended."""
        return self._outcome

    @property
    def has_outcome(self) -> bool:
        """Return whether the try has ended, though its thread may not have."""
        return self._outcome.done()

    def stop(self, outcome: Cancelled | Interrupted, grace_s: float = GRACE_S) -> None:
        """End the try with that outcome; the function has so many seconds for it. A second call may shorten them.

        Where they are fewer than usual, nothing is waited for beyond them: of a child that says nothing meanwhile, all
        jobs are lost.
        """
        if self._stopped_as is None:
            self._stopped_as = outcome
            self._stopped.set()
        if self._child is not None and self._number in self._child.tries:
            send(self._child.writer, {"try": self._number, "stop": pack(outcome), "grace_s": grace_s})
            loop, pongs = asyncio.get_running_loop(), self._child.pongs
            if grace_s < GRACE_S:
                self._ask(self._child)
                loop.call_later(grace_s, self._kill_unless, self._child, pongs)
            loop.call_later(grace_s, self._look_whether_it_listens, self._child)

    def _ask(self, child: ChildProcess) -> None:
        send(child.writer, {"try": self._number, "ping": True})

    def _look_whether_it_listens(self, child: ChildProcess) -> None:
        """Ask a child that has not stopped the try whether it listens: a coroutine may block its event loop."""
        if not self._outcome.done():
            self._ask(child)
            asyncio.get_running_loop().call_later(_LISTENS_WITHIN_S, self._kill_unless, child, child.pongs)

    def _kill_unless(self, child: ChildProcess, pongs: int) -> None:
        if child.pongs == pongs and not self._outcome.done():
            _logger.error("something blocks a child, which does not stop a try: it is killed", job=self._job.id)
            child.kill()

    def answered(self, message: dict[str, Any]) -> bool:
        """Take what the child says; return whether that was the last of it."""
        if "outcome" in message:
            if message["busy"]:
                loop = asyncio.get_running_loop()
                self.outliving = loop.create_future()
                loop.call_later(_HUNG_AFTER_S, self._look_whether_it_hangs)
            if not self._outcome.done():
                self._outcome.set_result(unpack(message["outcome"]))
            return not message["busy"]
        if self.outliving is not None and not self.outliving.done():
            self.outliving.set_result(None)
        return True

    def _look_whether_it_hangs(self) -> None:
        if self._child is not None and self.outliving is not None and not self.outliving.done():
            _logger.error(
                "a function does not end after its time: its process is replaced",
                job=self._job.id,
                worker=self.worker_type,
                pid=self._child.process.pid,
            )
            self._pool.retire(self._child)

    def lost(self, how: str) -> None:
        """Take note that the child is gone."""
        if self.outliving is not None and not self.outliving.done():
            self.outliving.set_result(None)
        if self._outcome.done():
            return
        error = f"worker lost: its process has ended ({how})"
        if self._stopped_as is not None:
            self._outcome.set_result(self._stopped_as)
        else:
            self._outcome.set_result(lost_outcome(self._config, self._job, error))


class ChildPool:
    """So many child processes. `start` before use, `close` after.

    Args:
        count: how many.
        modules: the names of the modules whose workers they have; each child imports them itself.
        workers: the same workers, as the daemon knows them.
        settings: of the process.
        log_level: of the children.
        max_jobs: how many jobs one child has before it is replaced; 0 for no limit.
        loop: their event loop, `uvloop` or `asyncio`.
    """

    def __init__(
        self,
        count: int,
        modules: Iterable[str],
        workers: WorkersList,
        settings: Settings,
        log_level: str = "info",
        max_jobs: int = 0,
        loop: str = "uvloop",
    ) -> None:
        self.count = count
        self.are_children = True
        self.numbers = itertools.count()
        self.plain_functions = 0
        self._workers = workers
        self._hello = {
            "modules": [*modules],
            "settings": settings.model_dump(mode="json"),
            "log_level": log_level,
        }
        self._max_jobs = max_jobs
        self._loop = loop
        self.listeners: list[Callable[[], None]] = []
        """Called when a child is ready for jobs, or no longer."""
        self._children: set[ChildProcess] = set()
        """Those that take new jobs."""
        self._not_taking: set[ChildProcess] = set()
        """Those that begin, or end."""
        self._tasks = Supervisor()
        self._turn = asyncio.Event()
        """Set when children come or go, and another one from then on."""
        self._failed: str | None = None
        self._started = False

    async def start(self) -> None:
        """Start the children and wait until all are ready.

        Raises:
            ConfigurationError: one cannot be, and why.
        """
        for number in range(self.count):
            self._tasks.start(f"child {number}", self._keep_child)
        try:
            while self._failed is None and len(self._children) < self.count:
                await self._turn.wait()
        except asyncio.CancelledError:
            self.kill()
            raise
        if self._failed is not None:
            await self.close()
            raise ConfigurationError(f"a child process cannot start: {self._failed}")
        self._started = True

    async def close(self) -> None:
        """End all children, whatever they do."""
        children = [*self._children, *self._not_taking]
        await self._tasks.stop()
        await asyncio.gather(*(child.end_in_order() for child in children))

    def kill(self) -> None:
        """End all children at once."""
        for child in (*self._children, *self._not_taking):
            child.kill()

    def has_begun(self, child: ChildProcess) -> None:
        """Take note that a child has one more job, which may be its last."""
        if self._max_jobs and child.had >= self._max_jobs:
            self.retire(child)

    def retire(self, child: ChildProcess) -> None:
        """Give the child no more jobs, and have another one take its place."""
        self._children.discard(child)
        self._not_taking.add(child)
        child.retired.set()

    def living(self) -> int:
        """Return how many children take new jobs now."""
        return len(self._children)

    def begin(self, job: Job, daemon: str = "", lease: Lease | None = None) -> RemoteTry:
        """Return a try of the job, not yet running."""
        return RemoteTry(self, self._workers.get(job.worker), job, daemon, lease)

    def fills_the_cores(self) -> bool:
        """Return whether more plain functions run than this host has cores: while one waits, no core is idle."""
        return self.plain_functions > (os.cpu_count() or 1)

    def pick(self, worker_type: str) -> ChildProcess | None:
        """Return the child that has the fewest tries of that type, then of all; None where there is none now.

        A child has threads for `concurrency` plain functions of each type: more of one type would wait there in vain.
        """
        return min(self._children, key=lambda child: (child.of_type[worker_type], len(child.tries)), default=None)

    async def next_for(self, worker_type: str, stopped: asyncio.Event) -> ChildProcess | None:
        """Return a child for a try of that type as soon as there is one; None at that event."""
        while not stopped.is_set():
            changed = self._turn  # as of now: who comes from here on is noticed
            if (child := self.pick(worker_type)) is not None:
                return child
            waits = [asyncio.ensure_future(stopped.wait()), asyncio.ensure_future(changed.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        return None

    async def _keep_child(self) -> None:
        """Keep one child that takes jobs: where it ends, or gets no more, start the next one."""
        loop, deaths = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            child = await self._spawn()
            if child is None:
                if not self._started:
                    return
            else:
                self._tasks.start(f"child {child.process.pid}", lambda child=child: self._mind(child))  # type: ignore[misc]
                await child.retired.wait()
            deaths = deaths + 1 if loop.time() - began < _QUICK_DEATH_S and self._too_quick(child) else 0
            if deaths > 1:
                await asyncio.sleep(backoff(deaths))

    @staticmethod
    def _too_quick(child: ChildProcess | None) -> bool:
        return child is None or child.process.returncode is not None

    async def _spawn(self) -> ChildProcess | None:
        """Return a child that is ready, None where it cannot be."""
        child = await ChildProcess.start(self._loop)
        self._not_taking.add(child)
        try:
            failed = await child.greet(self._hello)
        finally:
            if child.process.returncode is not None:
                self._not_taking.discard(child)
        self._not_taking.discard(child)
        if failed:
            self._failed = failed
            _logger.error("a child process cannot start", reason=failed)
        else:
            self._children.add(child)
        self._tell()
        return None if failed else child

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()
        self._turn.set()
        self._turn = asyncio.Event()

    async def _mind(self, child: ChildProcess) -> None:
        """Hand out what the child says until it has ended; retire it where it has had enough."""
        listening = asyncio.ensure_future(child.listen())
        ended = asyncio.ensure_future(child.process.wait())
        retired = asyncio.ensure_future(child.retired.wait())
        try:
            await asyncio.wait([listening, ended, retired], return_when=asyncio.FIRST_COMPLETED)
            self.retire(child)
            self._tell()
            if not ended.done() and not listening.done():
                await self._let_end(child, ended)
                if not child.tries:
                    await child.end_in_order()
            child.kill()
            code = await ended
        finally:
            for wait in (listening, ended, retired):
                wait.cancel()
        self._not_taking.discard(child)
        child.writer.close()
        for running in child.tries.values():
            running.lost(f"signal {-code}" if code < 0 else f"exit code {code}")
        if child.tries:
            _logger.error("child process has ended", pid=child.process.pid, code=code, jobs=len(child.tries))
        child.tries.clear()

    async def _let_end(self, child: ChildProcess, ended: asyncio.Future[int]) -> None:
        """Wait until the tries that a retired child still has are over, or its end.

        Where something hangs, not longer than all of them have time; those without a limit have an hour.
        """
        loop = asyncio.get_running_loop()
        latest = max((one.ends_by or 0.0 for one in child.tries.values()), default=0.0)
        hangs_since = math.inf
        while not ended.done() and not child.only_hangs() and loop.time() <= max(latest, hangs_since + _LAST_TRIES_S):
            hangs_since = min(hangs_since, loop.time()) if child.hangs() else math.inf
            waits: list[asyncio.Future[Any]] = [ended, *(one.outcome for one in child.tries.values())]
            await asyncio.wait(waits, timeout=1.0)
