"""Triggers as objects: what they are, and the requests that they make.

The schedulers decide by `ticks` and `rules` themselves; `schedule` is for programs that have no scheduler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import cached_property
from typing import Any

from couchjobs.jobs.ids import tick_id
from couchjobs.jobs.job import Event
from couchjobs.jobs.message import new_message
from couchjobs.jobs.request import JobRequest
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import ParsedTrigger, parse_trigger
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.schedule import Schedule


class Trigger:
    """A trigger that fires only when it is asked to; the base of those that fire by themselves."""

    def __init__(self, db: Prefixer, infos: TriggerInfos) -> None:
        self.db = db
        self._infos = infos

    @cached_property
    def _requests(self) -> asyncio.Queue[JobRequest | None]:
        """Made when it is needed: a daemon has thousands of triggers, and decides by their rules itself."""
        return asyncio.Queue()

    @property
    def infos(self) -> TriggerInfos:
        """Return the document."""
        return self._infos

    @property
    def id(self) -> str:
        """Return the id of the document."""
        return self._infos.id

    @property
    def type(self) -> str:
        """Return the type, such as @event."""
        return self._infos.type

    @property
    def doc_type(self) -> str:
        """Return the doctype that permissions name."""
        return self._infos.doc_type

    def match(self, key: str, value: str) -> bool:
        """Return whether a permission rule on `key` (`worker` or `type`) allows this trigger."""
        return self._infos.match(key, value)

    async def schedule(self) -> AsyncIterator[JobRequest]:
        """Yield a request for each firing, until `unschedule` is called."""
        while (request := await self._requests.get()) is not None:
            yield request

    def fire(self, payload: Any = None, *, manual: bool = False) -> None:
        """Make a request now."""
        self._requests.put_nowait(self._infos.job_request(payload=payload, manual=manual))

    def unschedule(self) -> None:
        """End the requests."""
        self._requests.put_nowait(None)


class EventTrigger(Trigger):
    """A trigger that fires by changes of documents."""

    def __init__(self, db: Prefixer, infos: TriggerInfos, rules: EventRules) -> None:
        super().__init__(db, infos)
        self.rules = rules

    def notify(self, doctype: str, event: Event) -> bool:
        """Tell the trigger of a change; return whether it fires."""
        old = event.old if isinstance(event.old, dict) else None
        fires = self.rules.matches(doctype, event.verb, event.doc, old)
        if fires:
            self._requests.put_nowait(self._infos.job_request_with_event(event.model_dump(exclude_none=True)))
        return fires


class ClockTrigger(Trigger):
    """A trigger that fires by the clock."""

    def __init__(self, db: Prefixer, infos: TriggerInfos, ticks: Schedule) -> None:
        super().__init__(db, infos)
        self.ticks = ticks

    async def schedule(self, clock: Callable[[], datetime] = now) -> AsyncIterator[JobRequest]:
        """Yield a request at each tick, counted from the first call, until `unschedule` is called."""
        anchor = clock()
        tick = self.ticks.next(anchor, anchor)
        while tick is not None:
            try:
                async with asyncio.timeout(max(0.0, (tick - clock()).total_seconds())):
                    request = await self._requests.get()
            except TimeoutError:
                request = self._infos.job_request(id=tick_id(self.id, tick), queued_at=tick)
                tick = self.ticks.next(tick, anchor)
            if request is None:
                return
            yield request


def new_trigger(db: Prefixer, infos: TriggerInfos, data: Any = None) -> Trigger:
    """Return the trigger of that kind, with `data` as its message where it is not None.

    Raises:
        UnknownTriggerError: its type is not known.
        MalformedTriggerError: its arguments cannot be parsed.
    """
    own = infos.clone()
    own.domain, own.prefix = db.domain, db.prefix
    if data is not None:
        own.message = new_message(data)
    return trigger_of(db, own, parse_trigger(own))


def trigger_of(db: Prefixer, infos: TriggerInfos, parsed: ParsedTrigger) -> Trigger:
    """Return the trigger that a document makes, once parsed."""
    if isinstance(parsed, EventRules):
        return EventTrigger(db, infos, parsed)
    return Trigger(db, infos) if isinstance(parsed, OnDemand) else ClockTrigger(db, infos, parsed)
