"""The broker whose queue is CouchDB: it takes jobs in, and puts together what works through them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from couchjobs.broker.feed import JobsFeed
from couchjobs.broker.lane import Lane
from couchjobs.broker.reader import Reader
from couchjobs.broker.runtime import Runtime
from couchjobs.broker.sweeper import Sweeper
from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.connection import Connection
from couchjobs.errors import CouchError, UnknownWorkerError
from couchjobs.jobs.job import CLIENT_WORKER, Job
from couchjobs.jobs.queries import worker_queue_len
from couchjobs.jobs.request import JobRequest, PushResult
from couchjobs.jobs.store import JobStore
from couchjobs.lifecycle import Lifecycle
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.duties import Duties
from couchjobs.recovery.lost import LostJobs
from couchjobs.stats import Stats
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import moment
from couchjobs.waits import patiently
from couchjobs.workers.admission import as_raised
from couchjobs.workers.config import WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.failure import Failures
from couchjobs.workers.pool import ChildPool
from couchjobs.workers.pushing import Pusher

_PUSHED_TOGETHER = 2000
"""Jobs of `push_jobs` whose documents are in memory at once."""


class CouchBroker:
    """Takes jobs of one tenant into CouchDB, and runs those that its workers can do; built without the network."""

    def __init__(
        self,
        connection: Connection,
        db: Prefixer | None = None,
        runtime: Runtime | None = None,
        pool: ChildPool | None = None,
    ) -> None:
        """Take the tenant of the settings unless `db` says another.

        Jobs run in `runtime`, which somebody else starts and closes, for the brokers of other tenants share it; None:
        in one of its own, with that pool.
        """
        self._connection = connection
        self._pool = pool
        self._settings = connection.settings
        self._db = db or connection.settings.tenant
        self._shared = runtime
        self._runtime = runtime
        self.daemon = Daemon(connection, self._db, runtime.presence if runtime else None)
        self.tasks = Supervisor()
        """The loops that run for ever, or until this pauses."""
        self.pusher = Pusher(connection, self._db)
        """Stores jobs, those of firings, too, until this is shut down."""
        self._configs = WorkersList()
        self._failures = Failures(self._configs, self.daemon.id, CouchEngine(connection, self._configs))
        self._lanes: list[Lane] = []
        self._feeds: list[JobsFeed] = []
        self._loops: list[Callable[[], None]] = []
        """What starts them."""
        self._duties: list[Duties] = []
        self._life = Lifecycle("broker")
        self._grace_s = 0.0
        self.stats = Stats()
        """What has been done for this tenant here."""

    async def start_workers(self, workers: WorkersList) -> None:
        """Begin to run the jobs of these workers.

        Raises:
            ClosedError: the broker runs already, or has run.
            NotFound: the databases do not exist; `couchjobs init` makes them.
        """
        async with self._life.starting() as to_close:
            self._configs = self.pusher.workers = workers
            if any(config.admin_only for config in workers):
                await patiently(self.pusher.admin_proof.load, self._settings.request_timeout)
            runtime = self._shared
            if runtime is None:
                runtime = self._runtime = Runtime(self.daemon.presence, workers, self._pool)
                await runtime.start()
                to_close.push_async_callback(self._close_runtime, runtime)
            self._failures = runtime.failures
            to_close.push_async_callback(self._finish, runtime)
            await self.daemon.take_jobs(workers.names(), runtime.producer.slots.count)
            self._open_lanes(runtime)
            self.resume()
            to_close.callback(self.pusher.close)

    @property
    def runtime(self) -> Runtime | None:
        """Return what runs the jobs; None before the start."""
        return self._runtime

    async def _close_runtime(self, runtime: Runtime) -> None:
        runtime.grace_s = self._grace_s
        await runtime.close()

    def _open_lanes(self, runtime: Runtime) -> None:
        processes, producer = runtime.processes, runtime.producer
        self.stats = runtime.stats if self._shared is None else Stats(runtime.stats)
        for name, store in self.pusher.stores.items():
            some = WorkersList(one for one in self._configs if self._settings.lane_of(one.worker_type) == name)
            if some:
                per_type = {one.worker_type: one.concurrency * processes.count for one in some}
                lane = Lane.of(store, some, per_type, self.daemon, self.pusher.admin_proof)
                lane.stats = self.stats
                if processes.are_children:
                    store.writer.may_hold = processes.fills_the_cores
                producer.add(lane)
                self._lanes.append(lane)
                self._add_loops(lane, runtime)

    def _add_loops(self, lane: Lane, runtime: Runtime) -> None:
        sweeper = Sweeper(self._connection, lane, runtime.producer)
        feed = JobsFeed(self._connection, lane, runtime.producer, sweeper)
        self._feeds.append(feed)
        lost = LostJobs(lane.store, self.daemon.peers, runtime.failures)
        duties = Duties(lost, lane.claims, self.daemon, self._connection, lane.workers.names())

        def start() -> None:
            self.tasks.start("follow jobs", feed.follow)
            self.tasks.start("sweep jobs", sweeper.run)
            self.tasks.start("read jobs again", Reader(lane, runtime.producer).run)
            self.tasks.start("watch partition", lambda: runtime.producer.watch_partition(lane))
            duties.start(self.tasks)

        self._loops.append(start)
        self._duties.append(duties)

    def resume(self) -> None:
        """Begin, or go on, to look for jobs."""
        for lane in self._lanes:
            lane.rests = False
        for start in self._loops:
            start()

    async def pause(self) -> None:
        """Look for no jobs until `resume`; what is known of them stays."""
        await self.tasks.stop()
        for lane in self._lanes:
            lane.rests = lane.is_quiet and not lane.backlog

    async def look_after(self) -> None:
        """Do once what is done now and then: for who pauses for longer than that.

        Raises:
            CouchError: CouchDB does not take it.
        """
        failed: CouchError | None = None
        for duties in self._duties:
            try:
                await duties.once()
            except CouchError as error:  # those of the other lanes do not wait for it
                failed = error
        if failed is not None:
            raise failed

    @property
    def is_quiet(self) -> bool:
        """Return whether no job runs here, nor is there one to run before `next_in`, as far as is known."""
        return all(lane.is_quiet for lane in self._lanes) and not any(duties.are_urgent for duties in self._duties)

    async def has_more(self) -> bool:
        """Return whether CouchDB has changes of jobs that have not been looked at.

        Raises:
            CouchError: it does not say.
        """
        return any([await feed.has_more() for feed in self._feeds])

    @property
    def databases(self) -> set[str]:
        """Return the names of the databases of jobs."""
        return {store.database.name for store in self.pusher.stores.values()}

    def next_in(self) -> float | None:
        """Return in how many seconds the next job is due that is known here, None where there is none."""
        present = moment()
        waits = [lane.backlog.next_in(lane.workers.names(), present) for lane in self._lanes]
        return min((wait for wait in waits if wait is not None), default=None)

    async def shutdown_workers(self, timeout: float | None = None) -> None:
        """Claim nothing more, let running jobs go on for `timeout` seconds, then put the others back in the queue.

        Args:
            timeout: seconds; None: the setting `shutdown_timeout`.

        Raises:
            ClosedError: the broker does not run.
        """
        self._grace_s = self._settings.shutdown_timeout if timeout is None else timeout
        await self._life.close()

    async def _finish(self, runtime: Runtime) -> None:
        if self._shared is None:
            runtime.stop_claiming()
        await self.tasks.stop()
        if self._shared is not None:
            await runtime.producer.close_lanes(self._lanes, self._grace_s)

    def hurry(self) -> None:
        """Interrupt all running jobs now, for a shutdown that is under way."""
        if self._runtime is not None:
            self._runtime.hurry()

    async def idle(self) -> None:
        """Return as soon as no job runs here."""
        if self._runtime is not None:
            await self._runtime.producer.idle()

    def stop_claiming(self) -> None:
        """Claim nothing more, from now on, and do not wait for credentials that were changed."""
        self._connection.server.wait_for_credentials(0)
        if self._runtime is not None:
            self._runtime.stop_claiming()

    async def push_job(self, db: Prefixer, request: JobRequest) -> Job | None:
        """Store a job and return it, or the one that has its id already; None where `before_hook` skips it.

        Raises: as `push`.
        """
        result = await self.push(db, request)
        return None if result is None else result.job

    async def push(self, db: Prefixer, request: JobRequest) -> PushResult | None:
        """Store a job, if there is none with its id; None where the worker's `before_hook` skips it.

        Raises:
            UnknownWorkerError: neither this daemon nor another living one of the tenant has a worker of that type; of
                another tenant that is not asked.
            CouchjobsError: as `Pusher.push`.
        """
        is_own, worker_type = db == self._db, request.worker_type
        is_known = not (is_own and self._life.is_("running")) or worker_type in {*self._configs.names(), CLIENT_WORKER}
        if not is_known and self.daemon.living(worker_type) == [self.daemon.id]:
            raise UnknownWorkerError(f"no daemon has a worker of type {worker_type!r}")
        pusher = self.pusher if is_own else Pusher(self._connection, db, self.pusher.workers)
        with as_raised():
            return await pusher.push(request)

    async def push_jobs(self, db: Prefixer, requests: Iterable[JobRequest]) -> list[Job | Exception | None]:
        """Store many jobs in few requests; return for each the job, None where it is skipped, or what refused it."""
        answers: list[Job | Exception | None] = []
        for some in _in_parts(requests, _PUSHED_TOGETHER):
            found = await asyncio.gather(*(self.push_job(db, one) for one in some), return_exceptions=True)
            for answer in found:
                if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
        return answers

    async def store_refused(self, job: Job, reason: str) -> None:
        """Store a small document that says why, in the place of a job that CouchDB never takes."""
        store = self.store_of(job.worker)
        await self._failures.tell_refused(job, reason)
        await store.create_errored(job, reason)

    def store_of(self, worker_type: str) -> JobStore:
        """Return where the jobs of that worker type are."""
        return self.pusher.store_of(worker_type)

    async def worker_queue_len(self, worker_type: str) -> int:
        """Return how many jobs of that type are queued.

        Raises:
            UnknownWorkerError: no worker of that type is registered.
        """
        self._configs.get(worker_type)
        return await worker_queue_len(self.store_of(worker_type).database, worker_type)

    @property
    def workers(self) -> WorkersList:
        """Return the types that run here."""
        return self._configs

    def workers_types(self) -> list[str]:
        """Return the types of workers, sorted."""
        return self._configs.names()


def _in_parts(requests: Iterable[JobRequest], size: int) -> Iterator[list[JobRequest]]:
    rest = iter(requests)
    while part := list(islice(rest, size)):
        yield part
