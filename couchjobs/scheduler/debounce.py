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
from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from datetime import timedelta
from hashlib import sha256
from typing import Any

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.codec import encode
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.couch.surely import write_or_raise
from couchjobs.errors import BadDocumentError, Conflict, Refused
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.payloads import as_changes, gathered, holds
from couchjobs.jobs.request import as_stored, new_job
from couchjobs.jobs.transitions import CHAIN
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.conflicts import settle_conflicts
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.life import AHEAD

_logger = get_logger(__name__)
_APPENDS = "@webhook"
_Waiting = tuple[str, Any, asyncio.Future[Job | None]]
"""A firing that waits to be taken: a name, its payload, and where its answer goes."""


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
        self._waiting: defaultdict[str, list[_Waiting]] = defaultdict(list)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def fire(
        self, infos: TriggerInfos, payload: Any = None, *, manual: bool = False, makers: Collection[str] = ()
    ) -> Job | None:
        """Join the open window of the trigger, or open one; return the job. Those who wait meanwhile join together.

        None where the worker's `before_hook` skips it.

        Raises:
            HookError: the `before_hook` refuses it.
            BadDocumentError: JSON cannot hold the payload, or it is too large.
            Refused: CouchDB never takes the job.
            Unavailable: CouchDB does not answer; the firing may be in the job or not.
        """
        payload = as_stored(payload, "payload")
        if len(encode(payload)) > self._largest:
            raise BadDocumentError(f"payload is larger than the {self._largest:,} bytes that a message may have")
        name = secrets.token_hex(4)
        if infos.type == _APPENDS and not await self._is_wanted(infos, {name: payload}, manual=manual):
            return None
        joined: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        own = (name, payload, joined)
        self._waiting[infos.id].append(own)
        try:
            async with self._locks[infos.id]:
                if not joined.done():
                    await self._fire_all(infos, own, self._waiting.pop(infos.id), manual=manual, makers=makers)
        except BaseException:
            joined.cancel()
            left = self._waiting[infos.id]  # who has given up must not turn up in a later window
            self._waiting[infos.id] = [one for one in left if one is not own]
            raise
        finally:
            if not self._waiting[infos.id]:
                del self._waiting[infos.id]
        return await joined

    async def _fire_all(
        self,
        infos: TriggerInfos,
        own: _Waiting,
        together: list[_Waiting],
        *,
        manual: bool,
        makers: Collection[str],
    ) -> None:
        """Answer all that wait: together, or, where CouchDB never takes that, each alone."""
        try:
            payloads = {name: payload for name, payload, _ in together}
            job = await self._fire_together(infos, payloads, manual=manual, makers=makers)
        except (Refused, BadDocumentError) as error:
            if len(together) == 1:
                raise
            _logger.warning("payloads are not taken together, and go alone", trigger=infos.id, reason=str(error))
            left = deque(together)
            try:
                while left:
                    await self._fire_alone(infos, left[0], manual=manual, makers=makers)
                    left.popleft()
            except BaseException:
                self._put_back(infos, left, own)
                raise
        except BaseException:
            self._put_back(infos, together, own)
            raise
        else:
            for _, _, waiting in together:
                if not waiting.done():
                    waiting.set_result(job)

    def _put_back(self, infos: TriggerInfos, some: Iterable[_Waiting], own: _Waiting) -> None:
        """Have those wait on who have no answer, where the one who asked for all of them gives up."""
        self._waiting[infos.id][:0] = [one for one in some if one is not own and not one[-1].done()]

    async def _is_wanted(self, infos: TriggerInfos, payloads: dict[str, Any], *, manual: bool) -> bool:
        return await self._broker.pusher.wants(self._job_of(infos, payloads, manual=manual))

    def _job_of(self, infos: TriggerInfos, payloads: dict[str, Any], *, manual: bool, **more: Any) -> Job:
        job = new_job(self._db, infos.job_request(debounced=True, manual=manual, **more))
        if infos.type == _APPENDS:
            together = as_changes(payloads)
            job.payload, job.payload_ids = together["payload"], together["payload_ids"]
        return job

    async def _fire_alone(
        self,
        infos: TriggerInfos,
        one: _Waiting,
        *,
        manual: bool,
        makers: Collection[str],
    ) -> None:
        name, payload, waiting = one
        try:
            job = await self._fire_together(infos, {name: payload}, manual=manual, makers=makers)
        except Exception as error:  # noqa: BLE001  his own answer, and nobody else's
            if not waiting.done():
                waiting.set_exception(error)
        else:
            if not waiting.done():
                waiting.set_result(job)

    async def _fire_together(
        self, infos: TriggerInfos, payloads: dict[str, Any], *, manual: bool, makers: Collection[str]
    ) -> Job | None:
        """Return the job that stands for the firing; None where the worker's `before_hook` skips it."""
        try:
            return await self._until_held(infos, payloads, manual=manual, makers=makers)
        except _SkippedError:
            return None

    async def _until_held(
        self, infos: TriggerInfos, payloads: dict[str, Any], *, manual: bool, makers: Collection[str]
    ) -> Job:
        while True:
            state = await self._control.find(self._prefix + infos.id)
            job = None
            joins = state is not None and _is_window(state) and state.get("of") in (None, _made_of(infos))
            if state is not None and joins and await self._ends_in_time(state, infos):
                job = await self._join(state, infos, payloads, manual=manual, makers=makers)
            if job is None:
                window = await self._open(state, infos)
                job = None
                if window is not None:
                    job = await self._make(window, infos, payloads, manual=manual, makers=makers)
            if job is not None and (infos.type != _APPENDS or await self._holds(job, payloads)):
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
                await store.update(Job.read(document), scheduled_at=latest)
            except Conflict:
                return False
        return False

    async def _holds(self, job: Job, payloads: dict[str, Any]) -> bool:
        """Return whether the job as CouchDB has it holds the payloads; on a cluster, it may have taken two writes."""
        store = self._broker.store_of(job.worker)
        if len(await store.database.leaves(job.id)) > 1:
            await settle_conflicts(store, self._broker.daemon.peers, [job.id])
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

    async def _join(
        self, state: Document, infos: TriggerInfos, payloads: dict[str, Any], *, manual: bool, makers: Collection[str]
    ) -> Job | None:
        """Return the job of the window, with this firing in it; None where the window is closed or full."""
        store = self._broker.store_of(infos.worker)
        document = await store.database.find(state["job_id"])
        if document is None:
            if (parse_time(state["until"]) or now()) < now():
                return None
            return await self._make(state, infos, payloads, manual=manual, makers=makers)
        job = Job.read(document)
        if job.state is not State.QUEUED or job.exec_count > 0:
            return None
        if infos.type != _APPENDS:
            return job
        present = gathered(document)
        together = as_changes((present or {}) | payloads, document)
        if present is None or len(encode(together)) > self._largest:
            return None
        try:
            await store.update(job, **together)
        except Conflict:
            return await self._join(state, infos, payloads, manual=manual, makers=makers)
        return job

    async def _make(
        self, state: Document, infos: TriggerInfos, payloads: dict[str, Any], *, manual: bool, makers: Collection[str]
    ) -> Job | None:
        until = parse_time(state["until"])
        job = self._job_of(infos, payloads, manual=manual, id=state["job_id"], scheduled_at=until)
        if makers:
            job.document()[CHAIN] = sorted(makers)
        made = await self._broker.pusher.store(job, is_asked=infos.type == _APPENDS)
        if made is None:
            raise _SkippedError
        if made.created:
            return made.job
        return await self._join(state, infos, payloads, manual=manual, makers=makers)


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
