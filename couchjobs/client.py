"""`Couchjobs`: jobs and triggers from any program, task or handler, through one object that is opened once.

    async with Couchjobs(url="https://shop@db.example.org:6984") as couchjobs:
        pushed = await couchjobs.push("charge", {"order": "a1"}, id="charge-a1")

It runs nothing itself; daemons do. `couchjobs.sync.Couchjobs` is the same for programs without an event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Self

from couchjobs.couch.connection import NOWHERE, Connection, check_allowed, connected, current_connection, using
from couchjobs.couch.database import Document
from couchjobs.errors import BadDocumentError, ClosedError, ConfigurationError, Conflict
from couchjobs.jobs.job import ENDED, Job, JobOptions, State
from couchjobs.jobs.lanes import find_job
from couchjobs.jobs.queries import JobFilter, newest, past, worker_queue_len
from couchjobs.jobs.request import JobRequest, PushResult, moment_of
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.transitions import why_reduced
from couchjobs.jobs.waiting import wait as wait_for
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.store import Check, TriggerStore
from couchjobs.settings import Settings, load_settings
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.admission import as_raised
from couchjobs.workers.handles import outside
from couchjobs.workers.pushing import Pusher

JobGuard = Callable[[Job], object]
_TOGETHER = 500
_open_clients: list[Couchjobs] = []


class Couchjobs:
    """The jobs and triggers of one tenant. `open` before use, `close` after; or an async context manager.

    It may be used from any task of the event loop that it was opened in.

    Args:
        url: of CouchDB; None: that of COUCHJOBS_URL.
        settings: the settings, instead of those of the environment.
        given: single settings, which overrule the environment's: `prefix="shop"`.

    Raises:
        ConfigurationError: a setting cannot be used, or nothing says where CouchDB is.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, **given: Any) -> None:
        check_allowed()
        if settings is None and url is None and not os.environ.get("COUCHJOBS_URL"):
            raise ConfigurationError(NOWHERE)
        self.settings = settings or load_settings(url=url, **given)
        self._opened: _Opened | None = None

    @classmethod
    def over(cls, connection: Connection) -> Self:
        """Return one over an open connection, which somebody else closes."""
        client = cls(settings=connection.settings)
        client._opened = _Opened(connection)
        return client

    @classmethod
    def from_env(cls) -> Self:
        """Return one with the settings of the environment.

        Raises:
            ConfigurationError: a setting cannot be used, or COUCHJOBS_URL is not set.
        """
        return cls()

    async def open(self) -> Self:
        """Make it usable; does not touch the network yet. Return it."""
        if self._opened is None:
            self._opened = _Opened(Connection(self.settings))
            _open_clients.append(self)
        return self

    async def close(self) -> None:
        """Close all connections."""
        opened, self._opened = self._opened, None
        if opened is not None:
            _open_clients.remove(self)
            await opened.connection.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def db(self) -> Prefixer:
        """Return the tenant, for the functions of the package that want one."""
        return self.settings.tenant

    @property
    def connection(self) -> Connection:
        """Return the connection, for the functions and classes of the package that want one.

        Raises:
            ClosedError: it is not open.
        """
        return self._open.connection

    @property
    def _open(self) -> _Opened:
        if self._opened is None:
            raise ClosedError("Couchjobs is not open: `async with Couchjobs(...)`, or `await couchjobs.open()`")
        if not self._opened.is_of_here:
            raise ClosedError("Couchjobs was opened in another event loop: open one in each, or take couchjobs.sync")
        return self._opened

    @property
    def triggers(self) -> Triggers:
        """Return the triggers of the tenant."""
        return Triggers(self.connection, self.db)

    async def push(
        self,
        worker: str,
        message: Any = None,
        *,
        id: str | None = None,  # noqa: A002  the name of the field
        delay: float | str | timedelta | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        options: JobOptions | None = None,
    ) -> PushResult:
        """Store a job for whichever daemon has its worker.

        Args:
            worker: the type of worker.
            message: JSON, a pydantic model, or a dataclass.
            id: the job's; where a job with that id is there already, that is returned, and nothing is stored. None: a
                fresh one.
            delay: how long it waits at least: seconds, text such as "10m", or a timedelta.
            at: when it may run at the earliest, with a time zone.
            priority: higher first.
            options: what the job asks of its worker.

        Raises:
            BadDocumentError: JSON cannot hold the message, or it is too large.
            ConfigurationError: `delay` is no duration, or there are `delay` and `at`.
            Unavailable: CouchDB does not take it within `push_timeout`; the text says whether it may be stored.
            NotFound: the databases do not exist; `couchjobs init` makes them.
            Conflict: the job with that id is of another worker.
            Exception: what the `before_hook` of the worker, where this program declares it, has raised; where it says
                False, that is a BadDocumentError.
        """
        request = JobRequest(
            worker_type=worker,
            message=message,
            id=id,
            scheduled_at=moment_of(delay, at),
            priority=priority,
            options=options,
        )
        return await self.push_request(request)

    async def push_request(self, request: JobRequest) -> PushResult:
        """Store the job that the request asks for; as `push`."""
        with as_raised():
            result = await self._open.pusher.push(request)
        if result is None:
            raise BadDocumentError("a before_hook does not want this job")
        return result

    async def push_many(self, requests: Iterable[JobRequest]) -> list[PushResult | Exception]:
        """Store many jobs in few requests; return for each what `push` would return, or raise.

        Raises:
            ConfigurationError: something among them is no JobRequest; what came before it may be stored.
        """
        found: list[PushResult | Exception] = []
        some: list[JobRequest] = []
        for request in requests:
            if not isinstance(request, JobRequest):
                raise ConfigurationError(f"push_many takes JobRequests, and not {request!r:.80}")
            some.append(request)
            if len(some) == _TOGETHER:
                found += await self._push_some(some)
                some = []
        return found + await self._push_some(some)

    async def _push_some(self, some: list[JobRequest]) -> list[PushResult | Exception]:
        answers = await asyncio.gather(*map(self.push_request, some), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
        return [answer for answer in answers if isinstance(answer, PushResult | Exception)]

    async def get(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            JobNotFoundError: there is none with that id.
        """
        return (await find_job(self.connection, self.db, job_id))[1]

    async def jobs(
        self,
        *,
        worker: str | None = None,
        state: State | str | None = None,
        trigger: str | None = None,
        since: datetime | timedelta | str | None = None,
        until: datetime | timedelta | str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs, newest first: those of a worker, in a state, of a trigger, queued since and before a time.

        A time may be a `timedelta` or a duration such as `"1h"`: so long ago.

        Raises:
            ConfigurationError: a time, the state or the limit is none.
        """
        if not isinstance(limit, int) or limit < 0:
            raise ConfigurationError(f"limit: how many jobs at most, and not {limit!r:.80}")
        try:
            chosen = State(state) if state is not None else None
            wanted = JobFilter(worker=worker, state=chosen, trigger=trigger, since=past(since), until=past(until))
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        found = await newest(self.connection, self.db, wanted, limit)
        go_durations = self.connection.settings.go_durations
        return [Job.read(document, go_durations=go_durations) for document in found]

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Wait until the job has ended and return it; the changes feed says when.

        Raises:
            JobNotFoundError: there is no such job, or it was deleted meanwhile.
            TimeoutError: it has not ended within `timeout` seconds.
        """
        with using(self.connection):
            return await wait_for(self.db, job_id, timeout)

    async def cancel(self, job_id: str, *, check: JobGuard | None = None) -> Job:
        """Ask for the job to be cancelled: a queued one is not run, a running one is stopped. Return it.

        `check`: is given the job as it is before; what it raises is raised, and nothing changes.

        Raises:
            JobNotFoundError: there is none with that id.
            Conflict: it has ended already.
        """

        async def work(store: JobStore, job: Job) -> None:
            if check is not None:
                check(job)
            if job.state in ENDED:
                raise _Refused(f"job {job_id} has ended already: it is {job.state}")
            if not job.cancel_requested:
                await store.update(job, cancel_requested=True)

        return await self._change(job_id, work)

    async def retry(self, job_id: str, *, again: bool = False, check: JobGuard | None = None) -> Job:
        """Put a job that has failed back in the queue, with all its tries; return it.

        `again`: also one that is done; `check`: as for `cancel`.

        Raises:
            JobNotFoundError: there is none with that id.
            Conflict: it has not ended, or is done, or what it held is no longer in its document.
        """

        async def work(store: JobStore, job: Job) -> None:
            if check is not None:
                check(job)
            if job.state not in ENDED:
                raise _Refused(f"job {job_id} is {job.state}: only one that has ended can be tried again")
            if job.state is State.DONE and not again:
                raise _Refused(
                    f"job {job_id} is done: it runs again only where you say so (--again, again=True, ?again=true)"
                )
            if told := why_reduced(job.document()):
                raise _Refused(f"job {job_id} cannot be tried again: {told}")
            await store.requeue(job)

        return await self._change(job_id, work)

    async def delete(self, job_id: str) -> Job:
        """Delete a job that does not run; return what it was.

        Raises:
            JobNotFoundError: there is none with that id.
            Conflict: it runs; cancel it first.
        """

        async def work(store: JobStore, job: Job) -> None:
            leaves = await store.database.leaves(job.id)
            if any(leaf.get("state") == State.RUNNING for leaf in leaves) or job.state is State.RUNNING:
                raise _Refused(f"job {job_id} runs: cancel it first")
            for leaf in reversed(leaves):  # the winner last: what is left of a job in conflict would be the job then
                await store.database.delete(job.id, leaf["_rev"])

        return await self._change(job_id, work)

    async def _change(self, job_id: str, work: Callable[[JobStore, Job], Any]) -> Job:
        """Change a job as it is now, again where somebody else has changed it meanwhile."""
        while True:
            store, job = await find_job(self.connection, self.db, job_id)
            try:
                await work(store, job)
            except _Refused as error:
                raise Conflict(str(error), 409) from None
            except Conflict:
                continue
            return job

    async def fire_webhook(self, trigger_id: str, payload: Any = None) -> Job:
        """Fire a @webhook trigger and return its job; the unguessable id is the secret.

        Raises:
            TriggerNotFoundError: there is no @webhook with that id, or it is disabled; nobody is told which.
            BadDocumentError: JSON cannot hold the payload, it is too large, or a `before_hook` does not want the job.
        """
        with as_raised():
            job = await self._open.scheduler.fire_webhook(trigger_id, payload)
        if job is None:
            raise BadDocumentError("a before_hook does not want this job")
        return job

    async def queue_len(self, worker: str) -> int:
        """Return how many jobs of a worker type are queued, those that wait for their time included."""
        return await worker_queue_len(self._open.pusher.store_of(worker).database, worker)


class _Opened:
    """What there is while it is open."""

    def __init__(self, connection: Connection) -> None:
        self._loop = asyncio.get_running_loop()
        self.connection = connection
        self.pusher = Pusher(connection)
        self.scheduler = CouchScheduler(connection)

    @property
    def is_of_here(self) -> bool:
        """Return whether this is the event loop that it was opened in."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return True


class _Refused(Exception):
    """The job is not in a state in which that can be done."""


class Triggers:
    """The triggers of a tenant, as `Couchjobs.triggers`."""

    def __init__(self, connection: Connection, db: Prefixer) -> None:
        self._store = TriggerStore(connection, db)

    async def add(self, trigger: TriggerInfos | Document) -> TriggerInfos:
        """Store a trigger, its document or what `TriggerInfos` says, and return it as it was stored.

        Numbers in the options of a document are in the unit of stored documents (`COUCHJOBS_GO_DURATIONS`), those of
        `TriggerInfos` are seconds.

        Raises:
            BadDocumentError: it is none.
            UnknownTriggerError: its type is not known.
            MalformedTriggerError: its arguments cannot be parsed, or name a database that events may not come from.
            Conflict: there is a trigger with that id.
        """
        if not isinstance(trigger, TriggerInfos | dict):
            raise BadDocumentError(f"a trigger is TriggerInfos or a document, and not {trigger!r:.80}")
        infos = trigger if isinstance(trigger, TriggerInfos) else self._store.read(trigger)
        return await self._store.add(infos)

    async def get(self, trigger_id: str) -> TriggerInfos:
        """Return the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
            BadDocumentError: the document is none.
        """
        return await self._store.get(trigger_id)

    async def list(self) -> list[TriggerInfos]:
        """Return all triggers that can be read, ordered by id."""
        return await self._store.all()

    async def update(self, trigger_id: str, **changes: Any) -> TriggerInfos:
        """Change fields of the document of a trigger, None removing one, and return it as it was stored.

        Raises:
            TriggerNotFoundError: there is none with that id.
            BadDocumentError: it would be none.
            MalformedTriggerError: its arguments cannot be parsed, or name a database that events may not come from.
        """
        if wrong := changes.keys() & {"_id", "_rev", "id", "rev"}:
            raise ConfigurationError(f"{', '.join(sorted(wrong))}: a trigger's id and revision cannot be changed")
        return await self.change(trigger_id, changes)

    async def change(self, trigger_id: str, changes: Document, check: Check | None = None) -> TriggerInfos:
        """Change these fields, as `update`; `check` is given the trigger before, and may raise to leave it as it is."""
        while True:
            try:
                return await self._store.replace(trigger_id, changes, check)
            except Conflict:  # somebody else has edited it meanwhile: on top of that
                continue

    async def delete(self, trigger_id: str, check: Check | None = None) -> None:
        """Delete the trigger; `check` is given it before, and may raise to leave it as it is.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """
        await self._store.delete(trigger_id, check)

    async def enable(self, trigger_id: str) -> TriggerInfos:
        """Have a disabled trigger fire again; return it."""
        return await self.update(trigger_id, disabled=None, ended=None)

    async def disable(self, trigger_id: str) -> TriggerInfos:
        """Have a trigger not fire until it is enabled; return it."""
        return await self.update(trigger_id, disabled=True)


@asynccontextmanager
async def present() -> AsyncIterator[Couchjobs]:
    """Yield one over the connection of the surrounding `Couchjobs`, `connect` or worker; outside, one of its own.

    Raises:
        ConfigurationError: there is none, and nothing says where CouchDB is.
    """
    async with connected() as connection:
        yield Couchjobs.over(connection)


async def _push_outside(request: JobRequest) -> PushResult:
    check_allowed()
    if current_connection() is None:
        for client in reversed(_open_clients):  # the latest one of this event loop, whatever task has opened it
            if client._opened is not None and client._opened.is_of_here:  # noqa: SLF001
                return await client.push_request(request)
    async with present() as client:
        return await client.push_request(request)


outside.push = _push_outside
