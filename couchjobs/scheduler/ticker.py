"""Firing by the clock: which schedules this daemon looks at, and when.

What is to be done about a schedule is said by `triggers.life`, and done by `carrier`.

The daemon with the first right to a trigger fires it. The others look at its state some seconds after a tick, and
take the trigger over where the tick did not come: its daemon may be unable to read what they can.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import generation
from couchjobs.couch.history import documents_since
from couchjobs.errors import CouchError, QueueClosedError
from couchjobs.log import get_logger
from couchjobs.scheduler.attention import Attention
from couchjobs.scheduler.carrier import Carrier
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.states import States
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.trigger import ClockTrigger
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.infos import TriggerInfos, is_disabled
from couchjobs.triggers.life import ON_TIME, Life, State, seen
from couchjobs.waits import Turns

_logger = get_logger(__name__)
_LONGEST_DELAY = timedelta(seconds=60)
"""How long CouchDB may take nothing, and the ticks of that time all fire; those of before were missed."""
_AFTER_FAILURE = timedelta(seconds=1)
_AFTER_ERROR = timedelta(minutes=1)
_LONGEST_WAIT_S = 60.0
"""Between two looks at the clock, which may be set."""
_STALE_ENTRIES = 5000
"""Times of triggers that were changed since, until the queue is made anew."""
_LATE_AT_ONCE = 50
"""Late ticks that are fired together: what is due now comes between."""
_TOGETHER = 500
"""Schedules whose states are read and written together."""
_OTHERS = timedelta(seconds=10)
"""How long a tick is left to the daemon with the first right; to that with the second twice as long, and so on."""
_OTHERS_EACH = timedelta(seconds=30)
"""How often the state of a trigger that another daemon fires is looked at, at most."""


@dataclass(slots=True)
class _Timer:
    """One schedule, as this daemon knows it."""

    trigger: ClockTrigger
    life: Life
    rank: int
    """0: this daemon fires it; else after how many others."""
    since: datetime
    at: datetime | None = None
    """When to look at it next; None: never."""
    busy: bool = False

    @property
    def infos(self) -> TriggerInfos:
        return self.trigger.infos


class Ticker:
    """Fires the scheduled triggers to which this daemon has the first right. `run` goes on until it is cancelled."""

    def __init__(
        self,
        connection: Connection,
        triggers: TriggerSet,
        store: TriggerStore,
        daemon: Daemon,
        firing: Firing,
        attention: Attention | None = None,
    ) -> None:
        """Take what watches the clock, where somebody else has it do so; None: this does, while it runs."""
        self._triggers = triggers
        self._database = store.database
        self._states = States(connection, store.database.name)
        self._carrier = Carrier(
            connection.writer(store.database.name), self._states, firing, store.db, daemon.others_read_zones_differently
        )
        self._daemon = daemon
        self._attention = attention or Attention()
        self._watches = attention is None
        self._steps_back = self._attention.steps_back
        self._timers: dict[str, _Timer] = {}
        self._queue: list[tuple[datetime, str]] = []
        self._late = asyncio.Semaphore(_LATE_AT_ONCE)
        self._states_looked_at = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_load: dict[str, tuple[ClockTrigger, int]] = {}
        self._loads = False
        self._dropping: set[str] = set()
        """Triggers that are gone and whose states are being deleted: what is made in the place of one begins then."""
        self._drops = asyncio.Semaphore(_TOGETHER)
        self._news = asyncio.Event()
        self._again: set[str] = set()
        self._later = 0
        """Looks again that wait for their moment."""
        self._changes = triggers.listen()
        self._daemons_changed = daemon.listen()

    async def run(self) -> None:
        """Fire each tick when it comes. A firing that takes long holds up no other trigger."""
        await self._triggers.loaded.wait()
        self._daemons_changed.set()
        if self._watches:
            self._start(self._attention.watch(), "attention")
        try:
            while True:
                self._news.clear()
                await self._take_in_changes()
                if self._begin_due(now()):
                    await self._wait()
                else:
                    await asyncio.sleep(0)
        finally:
            tasks = [*self._tasks]
            if any(task.get_name() != "attention" for task in tasks):  # they are cut off: all is read again
                self._again |= self._timers.keys() | self._to_load.keys() | self._dropping
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self) -> None:
        seconds = _LONGEST_WAIT_S
        if self._queue:
            seconds = min(seconds, max(0.0, (self._queue[0][0] - now()).total_seconds()))
        waits = [asyncio.ensure_future(one.wait()) for one in (self._changes, self._daemons_changed, self._news)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _take_in_changes(self) -> None:
        """Take in which triggers have changed, and which are this daemon's."""
        self._attention.look(now())
        if self._attention.steps_back != self._steps_back:
            self._steps_back = self._attention.steps_back
            _logger.warning("the clock was set back: all schedules are looked at again")
            self._again |= self._timers.keys()
        forced, self._again = self._again, set()
        left = self._changes.take() | forced
        if self._daemons_changed.is_set():
            self._daemons_changed.clear()
            left |= self._triggers.scheduled.keys() | self._timers.keys()
        turns = Turns()
        try:
            if not self._states_looked_at:
                await self._drop_states_of_others()
            for trigger_id in [*left]:
                if (found := self._take_in(trigger_id, forced=trigger_id in forced)) is not None:
                    self._to_load[trigger_id] = found
                left.discard(trigger_id)
                if turns.over:
                    self._begin_due(now())
                    await turns.turn()
        finally:
            self._again |= left  # nobody tells of them again
        if self._to_load and not self._loads:
            self._loads = True
            self._start(self._load_all(), "load schedules")

    async def _load_all(self) -> None:
        """Read the states of triggers that are new here, beside the firing of others."""
        try:
            while self._to_load:
                part = [*self._to_load.items()][:_TOGETHER]
                for trigger_id, _ in part:
                    del self._to_load[trigger_id]
                await self._load_together([found for _, found in part])
                self._news.set()
        finally:
            self._loads = False

    def _take_in(self, trigger_id: str, *, forced: bool) -> tuple[ClockTrigger, int] | None:
        """Take in what a trigger has become; return it, and this daemon's rank, where its state must be read."""
        trigger, timer = self._triggers.scheduled.get(trigger_id), self._timers.get(trigger_id)
        if (timer is not None and timer.busy) or trigger_id in self._dropping:
            self._again.add(trigger_id)  # it says itself when it is done
            return None
        rank = self._daemon.rank_for(f"trigger:{trigger_id}") if trigger is not None else None
        if trigger is None or rank is None:
            self._timers.pop(trigger_id, None)
            if trigger is None and not self._triggers.may_be_clock(trigger_id):
                self._drop_soon(trigger_id)
            return None
        if timer is not None and not forced and (timer.infos.rev, timer.rank) == (trigger.infos.rev, rank):
            return None
        return trigger, rank

    async def _drop_states_of_others(self) -> None:
        """Drop the state of triggers that were removed while no daemon ran: a later one begins anew."""
        async for trigger_id in self._states.all():
            if not self._triggers.may_be_clock(trigger_id):
                self._drop_soon(trigger_id)
        self._states_looked_at = True

    def _drop_soon(self, trigger_id: str) -> None:
        """Drop the state of a trigger that is gone, beside the firing of others."""
        if self._states.has(trigger_id) and trigger_id not in self._dropping:
            self._dropping.add(trigger_id)
            self._start(self._drop(trigger_id), "drop schedule state")

    async def _drop(self, trigger_id: str) -> None:
        try:
            async with self._drops:
                await self._states.drop(trigger_id, lambda: not self._triggers.may_be_clock(trigger_id))
        except CouchError as error:
            _logger.warning("schedule state not dropped, tried again", trigger=trigger_id, reason=str(error))
            self._look_again([trigger_id])
        except Exception:
            _logger.exception("schedule state cannot be dropped", trigger=trigger_id)
            self._look_again([trigger_id], _AFTER_ERROR)
        finally:
            self._dropping.discard(trigger_id)
            if trigger_id in self._again:
                self._news.set()

    async def _load_together(self, wanted: list[tuple[ClockTrigger, int]]) -> None:
        ids = [trigger.infos.id for trigger, _ in wanted]
        try:
            stored = await self._states.read(ids)
        except CouchError as error:
            _logger.warning("schedule states are not to be had", reason=str(error))
            self._look_again(ids)
            return
        if unknown := set(ids) - stored.keys():
            _logger.warning("schedule states are not to be had, and the others go on", triggers=len(unknown))
            self._look_again(unknown)
        known = [(trigger, rank) for trigger, rank in wanted if trigger.infos.id in stored]
        await asyncio.gather(*(self._load_guarded(trigger, rank, stored[trigger.infos.id]) for trigger, rank in known))

    async def _load_guarded(self, trigger: ClockTrigger, rank: int, stored: State | None) -> None:
        """Begin to watch a trigger; where its state cannot be had, that is tried again soon."""
        trigger_id = trigger.infos.id
        try:
            await self._load(trigger, rank, stored)
        except CouchError as error:
            _logger.warning("schedule state is not to be had", trigger=trigger_id, reason=str(error))
            self._look_again([trigger_id])
        except Exception:  # no state may stop the others
            _logger.exception("schedule state cannot be used", trigger=trigger_id)
            self._look_again([trigger_id], _AFTER_ERROR)

    def _look_again(self, ids: Iterable[str], after: timedelta = _AFTER_FAILURE) -> None:
        wanted = set(ids)
        self._later += 1

        def look() -> None:
            self._later -= 1
            self._again.update(wanted)
            self._news.set()

        asyncio.get_running_loop().call_later(after.total_seconds(), look)

    async def _load(self, trigger: ClockTrigger, rank: int, stored: State | None) -> None:
        infos, present = trigger.infos, now()
        before = await self._as_it_was(infos, stored)
        state = seen(before, trigger.ticks, infos, present)
        if before is not None and state.note and state.note != before.note:
            _logger.warning("a schedule is begun anew", trigger=infos.id, reason=state.note)
        is_stored = stored is not None and stored == state and stored.rev in ("", state.rev)
        if rank == 0 and not is_stored and not await self._states.write(infos, state):
            self._look_again([infos.id], timedelta())
            return
        known = self._timers.get(infos.id)
        if self._triggers.scheduled.get(infos.id) is not trigger:  # it has changed, or is gone, meanwhile
            self._look_again([infos.id], timedelta())
            return
        if known is not None and known.busy:
            self._again.add(infos.id)
            return
        timer = _Timer(trigger, Life(trigger.ticks, infos, state), rank, known.since if known else present)
        self._timers[infos.id] = timer
        timer.at = self._left_to_others(timer, present, rank * _OTHERS) if rank else timer.life.look(present)
        if timer.at is not None:
            self._enqueue(timer.at, infos.id)

    def _enqueue(self, at: datetime, trigger_id: str) -> None:
        """Have the schedule looked at then; entries that no longer count are dropped before they outnumber the rest."""
        heapq.heappush(self._queue, (at, trigger_id))
        if len(self._queue) > 2 * len(self._timers) + _STALE_ENTRIES:
            live = {(timer.at, name) for name, timer in self._timers.items() if timer.at is not None}
            self._queue = [*live.intersection(self._queue)]
            heapq.heapify(self._queue)

    async def _as_it_was(self, infos: TriggerInfos, stored: State | None) -> State | None:
        """Return the stored state, paused where the trigger was disabled since; None where it was made again."""
        if stored is None or not stored.rev or stored.rev == infos.rev:
            return stored
        steps = generation(infos.rev) - generation(stored.rev)
        if steps == 1:
            return stored
        between = await documents_since(self._database, infos.id, stored.rev)
        if steps < 1 or between is None or any(document.get("_deleted") for document in between):
            return None
        if any(map(is_disabled, between)):
            return replace(stored, paused=True)
        return stored

    @property
    def is_quiet(self) -> bool:
        """Return whether nothing is being fired, nor is to be looked at before its time."""
        work = any(task.get_name() != "attention" for task in self._tasks)
        changed = self._changes.is_set() or self._daemons_changed.is_set()
        return not (work or changed or self._again or self._later or self._to_load)

    def next_in(self) -> float | None:
        """Return in how many seconds a schedule is to be looked at, None where there is none."""
        return max(0.0, (self._queue[0][0] - now()).total_seconds()) if self._queue else None

    def _noticed(self, timer: _Timer, present: datetime) -> datetime:
        return max(timer.since, self._attention.since, present - _LONGEST_DELAY)

    def _left_to_others(self, timer: _Timer, present: datetime, each: timedelta) -> datetime | None:
        """Return when to look whether another daemon has fired the trigger."""
        first = timer.life.look(present)
        if first is None:
            return None
        try:
            return max(first + timer.rank * _OTHERS, present + each)
        except OverflowError:  # at the end of all times
            return first

    async def fire_due(self, present: datetime) -> None:
        """Fire every tick that has come by `present`, and return when that is done."""
        self._begin_due(present)
        await asyncio.gather(*(task for task in self._tasks if task.get_name() != "attention"), return_exceptions=True)

    def _begin_due(self, present: datetime) -> bool:
        """Begin what is due; return False where that takes too long, and there is more."""
        turns = Turns()
        others: list[_Timer] = []
        while self._queue and self._queue[0][0] <= present:
            if turns.over:
                break
            at, trigger_id = heapq.heappop(self._queue)
            timer = self._timers.get(trigger_id)
            if timer is None or timer.busy or timer.at != at:
                continue
            timer.busy = True
            if timer.rank:
                others.append(timer)
            else:
                self._start(self._fire(timer, is_late=present - at > ON_TIME), f"fire {trigger_id[:100]}")
        if others:
            self._start(self._look_at_others(others), "look at triggers of others")
        return not self._queue or self._queue[0][0] > present

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _done_with(self, timer: _Timer) -> None:
        timer.busy = False
        if timer.infos.id in self._again:
            self._news.set()
        elif timer.at is not None and self._timers.get(timer.infos.id) is timer:
            self._enqueue(timer.at, timer.infos.id)
            self._news.set()

    async def _fire(self, timer: _Timer, *, is_late: bool) -> None:
        """Do what is to be done about a schedule: one tick at most, then it is looked at again."""
        infos = timer.infos
        try:
            async with self._late if is_late else nullcontext():
                present = now()
                plan = timer.life.plan(present, self._noticed(timer, present))
                timer.at = plan.look
                if not await self._carrier.carry_out(timer.trigger, timer.life, plan):
                    timer.at = None
                    self._look_again([infos.id], timedelta())
        except CouchError as error:
            _logger.warning("trigger not fired, tried again", trigger=infos.id, reason=str(error))
            timer.at = now() + _AFTER_FAILURE
        except QueueClosedError:
            timer.at = None
        except Exception:  # no trigger may stop the others
            _logger.exception("trigger cannot be fired", trigger=infos.id)
            timer.at = now() + _AFTER_ERROR
        finally:
            self._done_with(timer)

    async def _is_taken_over(self, timer: _Timer, stored: State | None) -> bool:
        """Have the state that counts be this daemon's, where the others could not read the trigger, or wrote none."""
        if timer.trigger.ticks.once or stored == timer.life.state:
            return True
        return await self._states.write(timer.infos, timer.life.state)

    async def _look_at_others(self, timers: list[_Timer]) -> None:
        """Look whether the daemons that have the first right have fired; take over what they have not."""
        present = now()
        try:
            stored = await self._states.read(timer.infos.id for timer in timers)
            for timer in timers:
                if timer.infos.id not in stored:
                    timer.at = present + _OTHERS
                    continue
                known = stored[timer.infos.id]
                timer.life = Life(timer.trigger.ticks, timer.infos, _as_both_see(known, timer.life.state))
                overdue = timer.life.overdue(present - timer.rank * _OTHERS)
                if overdue is None:
                    timer.at = self._left_to_others(timer, present, _OTHERS_EACH)
                else:
                    _logger.warning(
                        "a tick did not come, and its trigger is taken over",
                        trigger=timer.infos.id,
                        tick=format_time(overdue),
                    )
                    if await self._is_taken_over(timer, known):
                        timer.rank, timer.at = 0, present
                    else:
                        timer.at = present + _OTHERS
        except CouchError as error:
            _logger.info("schedule states are not to be had", reason=str(error))
            for timer in timers:
                timer.at = present + _OTHERS
        finally:
            for timer in timers:
                self._done_with(timer)


def _as_both_see(stored: State | None, own: State) -> State:
    """Return what is stored, where it is of the trigger as this daemon sees it too; else what it has seen itself."""
    if stored is None or (stored.meaning, stored.paused) != (own.meaning, own.paused):
        return own
    return stored
