"""What a worker function can have done by the engine that runs it, and how far it has come, told beside it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from couchjobs.couch.documents import Documents
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest, PushResult
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now


class Engine(Protocol):
    """The engine behind the context of a try."""

    def now(self) -> datetime:
        """Return the present time, by which jobs are due and have their time."""

    def enter(self) -> None:
        """Be called where a function is about to run, in its context variables."""

    async def push(self, db: Prefixer, request: JobRequest, *, hides_id: bool = False) -> PushResult:
        """Store a job, if there is none with its id.

        `hides_id`: under another one that is made of that, the same each time, and that nobody else can tell.

        Raises:
            BadDocumentError: JSON cannot hold the message, it is too large, or a `before_hook` does not want the job.
            CouchError: CouchDB does not take it.
        """

    def documents(self, db: Prefixer, doctype: str) -> Documents:
        """Return a database of the tenant.

        Raises:
            ConfigurationError: there can be none of that name.
        """

    async def write_progress(self, job: Job, progress: Any) -> bool:
        """Write how far a job has come that runs here; return False where it does not any more.

        Raises:
            CouchError: CouchDB does not take it.
        """


def time_of(engine: Engine | None) -> datetime:
    """Return the present time of an engine; without one, that of this host."""
    return now() if engine is None else engine.now()


_LAST_WORD_S = 0.5
"""Seconds that the last word may take to be written: the end of the job waits for it, at a hurried shutdown, too."""


class Progress:
    """Writes how far one try has come: the last word of it, at most so often, beside the function.

    `tell` may be called from any thread. `close` before the end of the job is written.
    """

    def __init__(self, engine: Engine, job: Job, loop: asyncio.AbstractEventLoop, interval_s: float = 1.0) -> None:
        self._engine = engine
        self._job = job
        self._interval_s = interval_s
        self._loop = loop
        self._last: Any = None
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    def tell(self, progress: Any) -> None:
        """Have this written soon, unless something later comes before that."""
        self._last = progress
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._closed or (self._writing is not None and not self._writing.done()):
            return
        self._writing = self._loop.create_task(self._write(), name="progress")

    async def _write(self) -> None:
        while self._last is not None and not self._closed:
            await self._write_last()
            await asyncio.sleep(self._interval_s)

    async def _write_last(self) -> None:
        progress = self._last
        try:
            await self._engine.write_progress(self._job, progress)
        except Exception as error:  # noqa: BLE001  it decides about nothing, least of all about the end
            self._job.logger.warning("progress not written", reason=str(error))
        if self._last is progress:
            self._last = None

    async def close(self) -> None:
        """Write what was said last, if that can be done soon, and nothing more."""
        self._closed = True
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        if self._last is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORD_S):
                    await self._write_last()
