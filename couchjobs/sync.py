"""`Couchjobs` for programs without an event loop: scripts, Django, Flask. The methods are those of the other one.

    from couchjobs.sync import Couchjobs

    couchjobs = Couchjobs(url="http://shop:...@127.0.0.1:5984")
    couchjobs.push("charge", {"order": "a1"}, id="charge-a1")

Its requests are made in one event loop in a thread of its own, whoever asks: it may be shared by threads, and goes on
in a process that was forked. Nothing need be opened; `close` when done, or use it as a context manager.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from couchjobs import client
from couchjobs.couch.database import Document
from couchjobs.errors import ClosedError
from couchjobs.jobs.job import Job, JobOptions, State
from couchjobs.jobs.request import JobRequest, PushResult
from couchjobs.settings import Settings
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.handles import outside

T = TypeVar("T")
_of_parents: list[Any] = []
"""What a forked process has of its parent: kept, for its sockets are the parent's to close."""


class _Background:
    """An event loop in a thread, and what is open in it."""

    def __init__(self, opened: client.Couchjobs) -> None:
        self.opened = opened
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="couchjobs.sync", daemon=True)
        self._thread.start()
        self.result_of(self.begin(opened.open()))

    def begin(self, what: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin to run the coroutine; not beside `close`, which ends what has begun before it."""
        return asyncio.run_coroutine_threadsafe(what, self.loop)

    @staticmethod
    def result_of(running: Future[T]) -> T:
        """Return what a coroutine returns."""
        try:
            return running.result()
        except (CancelledError, asyncio.CancelledError):
            raise ClosedError("Couchjobs was closed meanwhile, by another thread") from None
        except BaseException:  # Ctrl-C, too: nobody waits for it any more
            running.cancel()
            raise

    async def _end(self) -> None:
        """End what others still wait for, and close what is open."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.opened.close()

    def close(self) -> None:
        """Close what is open, and end the thread."""
        self.result_of(self.begin(self._end()))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Couchjobs:
    """The jobs and triggers of one tenant, from any thread. What it is given is as for `couchjobs.Couchjobs`."""

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, **given: Any) -> None:
        self.settings = client.Couchjobs(url, settings=settings, **given).settings
        self._pid = os.getpid()
        self._background: _Background | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_env(cls) -> Self:
        """Return one with the settings of the environment."""
        return cls()

    def _forget(self) -> None:
        """Begin anew in a process that was forked: the thread, and the connections, are its parent's."""
        _of_parents.append(self._background)
        self._pid, self._lock, self._background = os.getpid(), threading.Lock(), None

    def close(self) -> None:
        """Close all connections; a later call opens them again."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            background, self._background = self._background, None
        if background is not None:
            background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Callable[[client.Couchjobs], Coroutine[Any, Any, T]]) -> T:
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            if self._background is None:
                self._background = _Background(client.Couchjobs(settings=self.settings))
            background = self._background
            running = background.begin(work(background.opened))
        return background.result_of(running)

    @property
    def triggers(self) -> Triggers:
        """Return the triggers of the tenant."""
        return Triggers(self._run)

    def push(
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
        """Store a job for whichever daemon has its worker."""
        return self._run(
            lambda one: one.push(worker, message, id=id, delay=delay, at=at, priority=priority, options=options)
        )

    def push_request(self, request: JobRequest) -> PushResult:
        """Store the job that the request asks for; as `push`."""
        return self._run(lambda one: one.push_request(request))

    def push_many(self, requests: Iterable[JobRequest]) -> list[PushResult | Exception]:
        """Store many jobs in few requests; return for each what `push` would return, or raise."""
        return self._run(lambda one: one.push_many(requests))

    def get(self, job_id: str) -> Job:
        """Return the job."""
        return self._run(lambda one: one.get(job_id))

    def jobs(
        self,
        *,
        worker: str | None = None,
        state: State | str | None = None,
        trigger: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs, newest first."""
        return self._run(
            lambda one: one.jobs(worker=worker, state=state, trigger=trigger, since=since, until=until, limit=limit)
        )

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Wait until the job has ended and return it."""
        return self._run(lambda one: one.wait(job_id, timeout))

    def cancel(self, job_id: str) -> Job:
        """Ask for the job to be cancelled; return it."""
        return self._run(lambda one: one.cancel(job_id))

    def retry(self, job_id: str, *, again: bool = False) -> Job:
        """Put a job that has failed (`again`: or is done) back in the queue, with all its tries; return it."""
        return self._run(lambda one: one.retry(job_id, again=again))

    def delete(self, job_id: str) -> Job:
        """Delete a job that does not run; return what it was."""
        return self._run(lambda one: one.delete(job_id))

    def fire_webhook(self, trigger_id: str, payload: Any = None) -> Job:
        """Fire a @webhook trigger and return its job."""
        return self._run(lambda one: one.fire_webhook(trigger_id, payload))

    def queue_len(self, worker: str) -> int:
        """Return how many jobs of a worker type are queued, those that wait for their time included."""
        return self._run(lambda one: one.queue_len(worker))


class Triggers:
    """The triggers of a tenant, as `Couchjobs.triggers`."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def add(self, trigger: TriggerInfos | Document) -> TriggerInfos:
        """Store a trigger, its document or what `TriggerInfos` says, and return it as it was stored."""
        found: TriggerInfos = self._run(lambda one: one.triggers.add(trigger))
        return found

    def get(self, trigger_id: str) -> TriggerInfos:
        """Return the trigger."""
        found: TriggerInfos = self._run(lambda one: one.triggers.get(trigger_id))
        return found

    def list(self) -> list[TriggerInfos]:
        """Return all triggers that can be read, ordered by id."""
        found: list[TriggerInfos] = self._run(lambda one: one.triggers.list())
        return found

    def update(self, trigger_id: str, **changes: Any) -> TriggerInfos:
        """Change fields of a trigger, None removing one, and return it as it was stored."""
        found: TriggerInfos = self._run(lambda one: one.triggers.update(trigger_id, **changes))
        return found

    def delete(self, trigger_id: str) -> None:
        """Delete the trigger."""
        self._run(lambda one: one.triggers.delete(trigger_id))

    def enable(self, trigger_id: str) -> TriggerInfos:
        """Have a disabled trigger fire again; return it."""
        found: TriggerInfos = self._run(lambda one: one.triggers.enable(trigger_id))
        return found

    def disable(self, trigger_id: str) -> TriggerInfos:
        """Have a trigger not fire until it is enabled; return it."""
        found: TriggerInfos = self._run(lambda one: one.triggers.disable(trigger_id))
        return found


_own: list[Couchjobs] = []


def _push_outside(request: JobRequest) -> PushResult:
    if not _own:
        _own.append(Couchjobs.from_env())
    return _own[0].push_request(request)


outside.sync_push = _push_outside
