"""Debounced triggers: what fires within one window makes one job.

The first firing opens a window and makes a job that is not run before the window's end; later firings join that job.
The window is fixed, and closes when the job is claimed. Of an @event, no event data is kept; a @webhook appends its
payload to `{"payloads": [...]}`, once the worker's `before_hook` has taken it by itself; any other kind keeps the first
firing as it is.

State, in the control database: `debounce:<triggers database>:<trigger>` = `{job_id, until, of}`, the window that was
opened last, and what its job is made of: once the trigger says something else, another window is opened. It is written
before the job, so that all daemons agree on the job's id; where a crash came between the two, the next firing makes the
job. A feed that rewinds behind a window that is closed opens another: one job too many rather than one too few.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.codec import encode
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.couch.surely import write_or_raise
from couchjobs.errors import BadDocumentError, Conflict, Refused, Unavailable
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.payloads import as_changes, gathered, holds
from couchjobs.jobs.request import as_stored, new_job
from couchjobs.jobs.transitions import CHAIN
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.conflicts import settle_conflicts
from couchjobs.scheduler.together import Together
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.life import AHEAD

_logger = get_logger(__name__)
_APPENDS = "@webhook"
_Payloads = dict[str, Any]
"""By a random name each, by which it is told whether the job holds it."""


@dataclass(frozen=True, slots=True)
class _Firing:
    """What fires, and how: by hand or not, and the triggers that have led to it."""

    infos: TriggerInfos
    manual: bool
    makers: Collection[str]

    @property
    def appends(self) -> bool:
        """Return whether the job gathers what each firing brings."""
        return self.infos.type == _APPENDS


class _SkippedError(Exception):
    """The worker's `before_hook` does not want the job."""


class Debouncer:
    """Fires the debounced triggers of one tenant."""

    def __init__(self, connection: Connection, db: Prefixer, broker: CouchBroker) -> None:
        self._db = db
        self._broker = broker
        self._control = connection.control
        self._writer = connection.writer(self._control.name)
        self._prefix = f"debounce:{db.database(connection.settings.triggers_doctype)}:"
        self._largest = connection.settings.max_message_bytes
        self._together: Together[tuple[str, Any], Job | None] = Together(Refused, BadDocumentError)

    async def fire(
        self,
        infos: TriggerInfos,
        payload: Any = None,
        *,
        manual: bool = False,
        makers: Collection[str] = (),
        patience_s: float | None = None,
    ) -> Job | None:
        """Join the open window of the trigger, or open one; return the job. Those who wait meanwhile join together.

        None where the worker's `before_hook` skips it. `patience_s`: seconds that CouchDB may take; None: any time.

        Raises:
            HookError: the `before_hook` refuses it.
            BadDocumentError: JSON cannot hold the payload, or it is too large.
            Refused: CouchDB never takes the job.
            Unavailable: CouchDB does not answer; the firing may be in the job or not.
        """
        payload = as_stored(payload, "payload")
        if len(encode(payload)) > self._largest:
            raise BadDocumentError(f"payload is larger than the {self._largest:,} bytes that a message may have")
        firing, name = _Firing(infos, manual, makers), secrets.token_hex(4)
        if firing.appends and not await self._broker.pusher.wants(self._job_of(firing, {name: payload})):
            return None
        try:
            async with asyncio.timeout(patience_s) as patience:
                return await self._together.ask(infos.id, (name, payload), lambda some: self._fire(firing, dict(some)))
        except TimeoutError:
            if not patience.expired():
                raise
            raise Unavailable("CouchDB does not take it in time: the firing may be in the job or not") from None

    def _job_of(self, firing: _Firing, payloads: _Payloads, **more: Any) -> Job:
        job = new_job(self._db, firing.infos.job_request(debounced=True, manual=firing.manual, **more))
        if firing.appends:
            together = as_changes(payloads)
            job.payload, job.payload_ids = together["payload"], together["payload_ids"]
        return job

    async def _fire(self, firing: _Firing, payloads: _Payloads) -> Job | None:
        """Return the job that stands for the firing; None where the worker's `before_hook` skips it."""
        try:
            return await self._until_held(firing, payloads)
        except _SkippedError:
            return None

    async def _until_held(self, firing: _Firing, payloads: _Payloads) -> Job:
        infos = firing.infos
        while True:
            state = await self._control.find(self._prefix + infos.id)
            job = None
            joins = state is not None and _is_window(state) and state.get("of") in (None, _made_of(infos))
            if state is not None and joins and await self._ends_in_time(state, infos):
                job = await self._join(state, firing, payloads)
            if job is None and (window := await self._open(state, infos)) is not None:
                job = await self._make(window, firing, payloads)
            if job is not None and (not firing.appends or await self._holds(job, payloads)):
                return job

    async def _ends_in_time(self, state: Document, infos: TriggerInfos) -> bool:
        """Return whether the window ends when it should; one of a clock that was ahead is closed, its job due now."""
        latest = now() + timedelta(seconds=infos.debounce or 0)
        until = parse_time(state["until"]) or latest
        if until <= latest + AHEAD:
            return True
        _logger.warning("a window of a clock that was ahead is closed", trigger=infos.id, until=state["until"])
        store = self._broker.store_of(infos.worker)
        document = await store.database.find(state["job_id"])
        if document is not None and Job.read(document).state is State.QUEUED:
            try:
                await store.update(store.read(document), scheduled_at=latest)
            except Conflict:
                return False
        return False

    async def _holds(self, job: Job, payloads: _Payloads) -> bool:
        """Return whether the job as CouchDB has it holds the payloads; on a cluster, it may have taken two writes."""
        store = self._broker.store_of(job.worker)
        if len(await store.database.leaves(job.id)) > 1:
            await settle_conflicts(store.ends, self._broker.daemon.peers, [job.id])
        present = await store.database.find(job.id)
        return present is None or holds(present, payloads)  # None: done and deleted already

    async def _open(self, state: Document | None, infos: TriggerInfos) -> Document | None:
        """Return the window that was opened, None where another daemon was quicker.

        A cluster may tell two daemons that they have opened it: the id of its job comes from what it replaces, so that
        both make the same one.
        """
        until = now() + timedelta(seconds=infos.debounce or 0)
        before = state["_rev"] if state is not None else ""
        job_id = await self._broker.pusher.id_of_window(infos.id, before)
        window: Document = {
            "_id": self._prefix + infos.id,
            "job_id": job_id,
            "until": format_time(until),
            "of": _made_of(infos),
        }
        if state is not None:
            window["_rev"] = before
        answer = await write_or_raise(self._writer, window)
        return window if answer.stored else None

    async def _join(self, state: Document, firing: _Firing, payloads: _Payloads) -> Job | None:
        """Return the job of the window, with this firing in it; None where the window is closed or full."""
        store = self._broker.store_of(firing.infos.worker)
        document = await store.database.find(state["job_id"])
        if document is None:
            if (parse_time(state["until"]) or now()) < now():
                return None
            return await self._make(state, firing, payloads)
        job = store.read(document)
        if job.state is not State.QUEUED or job.exec_count > 0:
            return None
        if not firing.appends:
            return job
        present = gathered(document)
        together = as_changes((present or {}) | payloads, document)
        if present is None or len(encode(together)) > self._largest:
            return None
        try:
            await store.update(job, **together)
        except Conflict:
            return await self._join(state, firing, payloads)
        return job

    async def _make(self, state: Document, firing: _Firing, payloads: _Payloads) -> Job | None:
        until = parse_time(state["until"])
        job = self._job_of(firing, payloads, id=state["job_id"], scheduled_at=until)
        if firing.makers:
            job.document()[CHAIN] = sorted(firing.makers)
        made = await self._broker.pusher.store(job, is_asked=firing.appends)
        if made is None:
            raise _SkippedError
        if made.created:
            return made.job
        return await self._join(state, firing, payloads)


def _made_of(infos: TriggerInfos) -> str:
    """Return a digest of what the jobs of a trigger are made of."""
    of = [infos.type, infos.worker, infos.message, infos.document().get("options"), infos.debounce]
    return sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def _is_window(state: Document) -> bool:
    """Return whether the document says which window is open; what does not is replaced by the next window."""
    try:
        return isinstance(state.get("job_id"), str) and parse_time(state["until"]) is not None
    except (KeyError, TypeError, ValueError):
        return False
