"""Firing by the clock: which tick of which trigger is due, and the state that makes ticks the same everywhere.

State of a trigger, in the control database: `schedule:<triggers database>:<trigger>` = `{type, arguments, anchor,
last}`: when it was first seen, and the last tick whose job is stored. The job's id comes from trigger and tick, so
that two daemons that fire the same tick make one document. The state is written after the job.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from datetime import datetime, timedelta

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.couch.settle import settle, settle_surely
from couchjobs.errors import CouchError, NotFound, QueueClosedError
from couchjobs.jobs.ids import tick_id
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import new_job
from couchjobs.log import get_logger
from couchjobs.recovery.daemon import Daemon
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.rebuild import rules_of, state_id
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.trigger import ClockTrigger
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.infos import TriggerInfos

_logger = get_logger(__name__)
_MISSED = timedelta(seconds=5)
_LONGEST_DELAY = timedelta(seconds=60)
_AFTER_FAILURE = timedelta(seconds=1)
_AFTER_ERROR = timedelta(minutes=1)
_LONGEST_WAIT_S = 60.0
_AT_A_TIME = 50


@dataclass(slots=True)
class _Timer:
    """One trigger that this daemon fires, with its stored state, and since when it does."""

    trigger: ClockTrigger
    state: Document
    anchor: datetime
    last: datetime | None
    since: datetime
    at: datetime | None = None
    stale: bool = False
    firing: bool = False
    begun: datetime | None = None
    """The tick whose firing has begun and is not stored: an outage makes it late, not missed."""

    def set(self, present: datetime) -> None:
        """Find out when to look at the trigger next: at once where a tick is due, None for never."""
        ticks = self.trigger.ticks
        due = self.due_tick(present)
        self.at = due if due is not None else ticks.next(present, self.anchor)

    def due_tick(self, present: datetime) -> datetime | None:
        """Return the first tick that has come and is not stored yet.

        Those that were missed before this daemon had the trigger, or long ago, are collapsed into the last of them.
        """
        ticks, last = self.trigger.ticks, self.last
        latest = ticks.latest(present, self.anchor, last)
        if latest is None or (last is not None and latest <= last):
            return None
        first = ticks.next(max(last or self.anchor, self.since, present - _LONGEST_DELAY), self.anchor)
        return first if first is not None and first < latest else latest


def _is_readable(state: Document) -> bool:
    try:
        return parse_time(state["anchor"]) is not None and (
            "last" not in state or parse_time(state["last"]) is not None
        )
    except (KeyError, TypeError, ValueError):
        return False


class Clock:
    """Fires the scheduled triggers to which this daemon has the first right. `run` goes on until it is cancelled."""

    def __init__(
        self,
        connection: Connection,
        triggers: TriggerSet,
        store: TriggerStore,
        daemon: Daemon,
        firing: Firing,
    ) -> None:
        self._control = connection.control
        self._writer = connection.writer(self._control.name)
        self._triggers = triggers
        self._store = store
        self._daemon = daemon
        self._firing = firing
        self._timers: dict[str, _Timer] = {}
        self._states_looked_at = False
        self._firings: set[asyncio.Task[None]] = set()
        self._fired = asyncio.Event()
        self._queue: list[tuple[datetime, str]] = []
        self._dirty = triggers.listen()
        self._daemons_changed = daemon.listen()

    async def run(self) -> None:
        """Fire each tick when it comes. A firing that takes long holds up no other trigger."""
        await self._triggers.loaded.wait()
        self._dirty.set()
        try:
            while True:
                self._fired.clear()
                if self._dirty.is_set() or self._daemons_changed.is_set():
                    self._dirty.clear()
                    self._daemons_changed.clear()
                    await self._refresh()
                self._begin_due(now())
                await self._wait()
        finally:
            firings = [*self._firings]
            for firing in firings:
                firing.cancel()
            await asyncio.gather(*firings, return_exceptions=True)

    async def _wait(self) -> None:
        seconds = _LONGEST_WAIT_S
        if self._queue:
            seconds = min(seconds, max(0.0, (self._queue[0][0] - now()).total_seconds()))
        waits = [asyncio.ensure_future(event.wait()) for event in (self._dirty, self._daemons_changed, self._fired)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _refresh(self) -> None:
        mine = {
            trigger_id: trigger
            for trigger_id, trigger in self._triggers.scheduled.items()
            if self._daemon.fires(f"trigger:{trigger_id}")
        }
        kept = {
            trigger_id: timer
            for trigger_id, timer in self._timers.items()
            if not timer.stale and trigger_id in mine and mine[trigger_id].infos.rev == timer.trigger.infos.rev
        }
        for trigger_id in [one for one in self._timers if not self._triggers.knows(one)]:
            await self._drop_state(self._timers.pop(trigger_id).state)
        if not self._states_looked_at:
            await self._drop_states_of_others()
        fresh = [trigger for trigger_id, trigger in mine.items() if trigger_id not in kept]
        states = await self._control.get_many(
            state_id(self._store.database.name, trigger.infos.id) for trigger in fresh
        )
        loaded = await asyncio.gather(
            *(
                self._load_guarded(trigger, states.get(state_id(self._store.database.name, trigger.infos.id)))
                for trigger in fresh
            )
        )
        self._timers = kept | {timer.trigger.infos.id: timer for timer in loaded if timer is not None}
        present = now()
        for number, timer in enumerate(loaded):
            if timer is not None:
                self._set(timer, present)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        self._queue = [
            (timer.at, trigger_id)
            for trigger_id, timer in self._timers.items()
            if timer.at is not None and not timer.firing
        ]
        heapq.heapify(self._queue)

    async def _drop_states_of_others(self) -> None:
        """Drop the state of triggers that were removed, or disabled, while no daemon ran: a later one begins anew."""
        prefix = state_id(self._store.database.name, "")
        for state in await self._control.with_prefix(prefix):
            if not self._triggers.knows(state["_id"].removeprefix(prefix)):
                await self._drop_state(state)
        self._states_looked_at = True

    def _set(self, timer: _Timer, present: datetime) -> None:
        """Find out when to look at the trigger next; one whose schedule cannot be computed is never looked at."""
        try:
            timer.set(present)
        except Exception:  # no schedule may stop the others
            _logger.exception("trigger has no next time", trigger=timer.trigger.infos.id)
            timer.at = None

    async def _load_guarded(self, trigger: ClockTrigger, state: Document | None) -> _Timer | None:
        """Return the timer of the trigger; None where its state cannot be had, and it is tried again soon."""
        try:
            return await self._load(trigger, state)
        except CouchError as error:
            _logger.warning("schedule state is not to be had", trigger=trigger.infos.id, reason=str(error))
        except Exception:  # no state may stop the others
            _logger.exception("schedule state cannot be used", trigger=trigger.infos.id)
        asyncio.get_running_loop().call_later(_AFTER_FAILURE.total_seconds(), self._dirty.set)
        return None

    async def _load(self, trigger: ClockTrigger, state: Document | None) -> _Timer:
        infos = trigger.infos
        rules = rules_of(infos.type, infos.arguments, infos.timezone)
        while state is None or not rules.items() <= {"timezone": None, **state}.items() or not _is_readable(state):
            wanted: Document = {
                "_id": state_id(self._store.database.name, trigger.infos.id),
                **rules,
                "anchor": format_time(now()),
            }
            if state is not None:
                wanted["_rev"] = state["_rev"]
            answer = await settle_surely(self._writer, wanted)
            state = {**wanted, "_rev": answer.rev} if answer.stored else await self._control.find(wanted["_id"])
        anchor, last = parse_time(state["anchor"]), parse_time(state["last"]) if state.get("last") else None
        known = self._timers.get(infos.id)
        return _Timer(trigger, state, anchor or now(), last, since=known.since if known is not None else now())

    async def fire_due(self, present: datetime) -> None:
        """Fire every tick that has come by `present`, and return when that is done."""
        self._begin_due(present)
        await asyncio.gather(*self._firings, return_exceptions=True)

    def _begin_due(self, present: datetime) -> None:
        while self._queue and self._queue[0][0] <= present:
            timer = self._timers.get(heapq.heappop(self._queue)[1])
            if timer is not None and not timer.firing:
                timer.firing = True
                name = f"fire {timer.trigger.infos.id[:100]}"
                firing = asyncio.create_task(self._fire(timer, present), name=name)
                self._firings.add(firing)
                firing.add_done_callback(self._firings.discard)

    async def _fire(self, timer: _Timer, present: datetime) -> None:
        infos = timer.trigger.infos
        try:
            tick = timer.begun or timer.due_tick(present)
            if tick is not None:
                if infos.misfire == "skip" and present - tick > _MISSED and timer.begun is None:
                    _logger.info("missed tick skipped", trigger=infos.id, tick=format_time(tick))
                else:
                    timer.begun = tick
                    await self._firing.fire(infos, lambda: self._job(infos, tick))
                await self._note_fired(timer, tick)
                timer.begun = None
        except CouchError as error:
            _logger.warning("trigger not fired, tried again", trigger=infos.id, reason=str(error))
            timer.at = now() + _AFTER_FAILURE
        except QueueClosedError:
            timer.at = None
        except Exception:  # no trigger may stop the others
            _logger.exception("trigger cannot be fired", trigger=infos.id)
            timer.at = now() + _AFTER_ERROR
        else:
            self._set(timer, now())
        finally:
            timer.firing = False
        if timer.at is not None and self._timers.get(infos.id) is timer:
            heapq.heappush(self._queue, (timer.at, infos.id))
            self._fired.set()

    async def _note_fired(self, timer: _Timer, tick: datetime) -> None:
        infos = timer.trigger.infos
        if timer.trigger.ticks.once:
            await self._store.delete_revision(infos.id, infos.rev)
            timer.last = tick
            await self._drop_state(timer.state)
            return
        timer.last = tick
        timer.state = {**timer.state, "last": format_time(tick)}
        answer = await settle_surely(self._writer, timer.state)
        if answer.stored:
            timer.state["_rev"] = answer.rev
        else:
            timer.stale = True
            self._dirty.set()

    async def _drop_state(self, state: Document) -> None:
        try:
            await settle(self._writer, {"_id": state["_id"], "_rev": state["_rev"], "_deleted": True})
        except NotFound:
            _logger.info("schedule state is gone with its database", state=state["_id"])

    def _job(self, infos: TriggerInfos, tick: datetime) -> Job:
        return new_job(self._store.db, infos.job_request(id=tick_id(infos.id, tick), queued_at=tick))
