"""A scheduler without CouchDB: triggers in memory, events told to it. For tests of one's own triggers and workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from couchjobs.broker.protocol import check_kind
from couchjobs.errors import ClosedError, TriggerNotFoundError
from couchjobs.jobs.ids import event_id, new_id, tick_id
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.request import as_stored
from couchjobs.lifecycle import Lifecycle
from couchjobs.memory.broker import MemBroker
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.event_jobs import ONCE
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import now
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import ParsedTrigger, parse_trigger
from couchjobs.triggers.life import Life, begun
from couchjobs.triggers.on_demand import OnDemand

_LONGEST_WAIT_S = 60.0
"""Between two looks at the clock, which may be set."""


class _Known:
    """One trigger: its tenant, what makes it fire, and its schedule."""

    def __init__(self, db: Prefixer, infos: TriggerInfos, parsed: ParsedTrigger, present: datetime) -> None:
        self.db = db
        self.infos = infos
        self.parsed = parsed
        self.life: Life | None = None
        if not isinstance(parsed, EventRules | OnDemand):
            self.life = Life(parsed, infos, begun(parsed, infos, present))
        self.window: Job | None = None
        self.opening = asyncio.Lock()
        """Held while what fires looks for the window, and makes its job."""


class MemScheduler:
    """Fires ticks by itself; with `auto=False`, only when `poll_scheduler` is called."""

    def __init__(self, clock: Callable[[], datetime] = now, *, auto: bool = True) -> None:
        """Take the clock that tells what is due."""
        self._clock = clock
        self._auto = auto
        self._known: dict[str, _Known] = {}
        self._broker: MemBroker | None = None
        self._changed = asyncio.Event()
        self._tasks = Supervisor()
        self._life = Lifecycle("scheduler")

    async def start_scheduler(self, broker: MemBroker) -> None:
        """Begin to fire into `broker`.

        Raises:
            ClosedError: the scheduler runs already, or has run.
            ConfigurationError: the broker is of another kind.
        """
        check_kind(broker, MemBroker)
        async with self._life.starting() as to_close:
            self._broker = broker
            if self._auto:
                to_close.push_async_callback(self._tasks.stop)
                self._tasks.start("memory scheduler", self._run_for_ever)

    async def shutdown_scheduler(self) -> None:
        """Fire nothing more.

        Raises:
            ClosedError: the scheduler does not run.
        """
        await self._life.close()

    async def poll_scheduler(self, now: datetime) -> None:
        """Fire every tick that has come by `now`; those that were missed collapse into one.

        Raises:
            ClosedError: the scheduler does not run.
        """
        broker = self._running_broker()
        for known in [*self._known.values()]:
            if known.infos.id in broker.bad_triggers:
                self._known.pop(known.infos.id, None)
            elif known.life is not None:
                await self._fire_ticks(known, known.life, now)

    async def _fire_ticks(self, known: _Known, life: Life, present: datetime) -> None:
        """Fire what is due, as `misfire` says."""
        while True:
            previous, plan = life.state.fired, life.plan(present)
            life.state = plan.then
            if plan.ended:
                known.infos.disabled, known.infos.ended = True, plan.ended
            if plan.tick is None:
                return
            tick = plan.tick
            if life.schedule.once:
                self._known.pop(known.infos.id, None)
            await self._fire(known, id=tick_id(known.infos.id, tick), queued_at=tick, tick=tick, previous_tick=previous)
            if life.schedule.once:
                return

    async def fire_event(
        self, db: Prefixer, doctype: str, verb: str, doc: dict[str, Any], old: dict[str, Any] | None = None
    ) -> None:
        """Tell the scheduler of a change: the @event triggers that match fire.

        Raises:
            ClosedError: the scheduler does not run.
        """
        self._running_broker()
        if str(doc.get("_id")).startswith("_design/"):
            return
        event = {"domain": db.domain, "verb": verb, "doc": doc} | ({"old": old} if old is not None else {})
        for known in [*self._known.values()]:
            rules = known.parsed
            if (
                isinstance(rules, EventRules)
                and known.db == db
                and not known.infos.disabled
                and rules.matches(doctype, verb, doc, old)
            ):
                job_id = event_id(doctype, str(doc.get("_id")), ONCE, known.infos.id) if known.infos.once else None
                await self._fire(known, event=event, id=job_id)

    async def fire_webhook(self, trigger_id: str, payload: Any, *, manual: bool = False) -> Job | None:
        """Fire a @webhook trigger and return its job.

        Raises:
            BadDocumentError: JSON cannot hold the payload.
            TriggerNotFoundError: there is no @webhook with that id, or it is disabled.
            ClosedError: the scheduler does not run.
        """
        self._running_broker()
        known = self._known.get(trigger_id)
        if known is None or known.infos.type != "@webhook" or known.infos.disabled:
            raise TriggerNotFoundError("no webhook with that id")
        return await self._fire(known, payload=payload, manual=manual)

    async def _fire(self, known: _Known, **more: Any) -> Job | None:
        broker, infos = self._running_broker(), known.infos
        if not infos.debounce:
            return await broker.push_job(known.db, infos.job_request(**more))
        appends, manual = infos.type == "@webhook", more.get("manual", False)
        payload = as_stored(more.get("payload"), "payload")
        until = self._clock() + timedelta(seconds=infos.debounce)
        request = infos.job_request(
            payload={"payloads": [payload]} if appends else None, debounced=True, scheduled_at=until, manual=manual
        )
        if appends and not await broker.wants(known.db, request):
            return None
        async with known.opening:
            window = known.window
            if window is None or window.state is not State.QUEUED or window.exec_count > 0:
                known.window = await broker.push_job(known.db, request, is_asked=appends)
            elif appends:
                window.payload["payloads"].append(payload)
            return known.window

    async def add_trigger(self, db: Prefixer, infos: TriggerInfos) -> TriggerInfos:
        """Add a trigger and return it with its id.

        Raises:
            UnknownTriggerError: its type is not known.
            MalformedTriggerError: its arguments cannot be parsed.
        """
        stored = infos.clone()
        stored.id, stored.domain, stored.prefix = infos.id or new_id(), db.domain, db.prefix
        self._known[stored.id] = _Known(db, stored, parse_trigger(stored), self._clock())
        self._changed.set()
        return stored

    async def get_trigger(self, db: Prefixer, trigger_id: str) -> TriggerInfos:
        """Return the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """
        known = self._known.get(trigger_id)
        if known is None or known.db != db:
            raise TriggerNotFoundError(f"no trigger {trigger_id!r} in memory")
        return known.infos

    async def delete_trigger(self, db: Prefixer, trigger_id: str) -> None:
        """Delete the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """
        await self.get_trigger(db, trigger_id)
        del self._known[trigger_id]

    async def get_all_triggers(self, db: Prefixer) -> list[TriggerInfos]:
        """Return all triggers, ordered by id."""
        return sorted((known.infos for known in self._known.values() if known.db == db), key=lambda infos: infos.id)

    async def clean(self) -> None:
        """Drop all schedule state: every schedule begins now."""
        for known in self._known.values():
            if known.life is not None:
                known.life.state = begun(known.life.schedule, known.infos, self._clock())

    async def rebuild(self, db: Prefixer) -> None:
        """Drop the schedule state and make it anew; the last tick is what later ones are counted from."""
        for known in self._known.values():
            if known.db == db and known.life is not None and (last := known.life.state.last) is not None:
                known.life.state = replace(known.life.state, anchor=last, passed=last)

    async def _run_for_ever(self) -> None:
        while True:
            self._changed.clear()
            await self.poll_scheduler(self._clock())
            tick = min(self._ticks(), default=None)
            seconds = _LONGEST_WAIT_S
            if tick is not None:
                seconds = min((tick - self._clock()).total_seconds(), _LONGEST_WAIT_S)
            try:
                async with asyncio.timeout(max(0.0, seconds)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def next_time(self) -> datetime | None:
        """Return when the next tick comes that has not come yet; None where none does."""
        return min((tick for tick in self._ticks() if tick > self._clock()), default=None)

    def _ticks(self) -> list[datetime]:
        present = self._clock()
        lives = [known.life for known in self._known.values() if known.life is not None]
        return [tick for life in lives if (tick := life.look(present)) is not None]

    def _running_broker(self) -> MemBroker:
        if not self._life.is_("running") or self._broker is None:
            raise ClosedError(f"the scheduler is {self._life.state}")
        return self._broker
