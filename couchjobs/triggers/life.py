"""How a schedule lives: what fires, and what is stored of it, whatever people do to its trigger. Pure.

| what happens | what comes of it |
|---|---|
| a trigger is seen for the first time | its ticks begin now; only a single one may be over already, and fires late |
| it is edited, and its schedule means the same | nothing: neither anchor, nor moment, nor last tick change |
| its schedule means something else | it goes on from now; a period that had its tick has no other |
| `@every` with another period | counts on from its last tick |
| `@in` with another delay | counts on from when it was first seen |
| it cannot be understood for a while | it lives on; what came meanwhile was missed |
| it is disabled | ticks that come do not fire, then or later; the rhythm stays |
| it is removed, or removed and made again | its state is no more |
| ticks were missed | as `misfire` says: one late job, none, or all of them, but at most `misfire_limit` |
| a tick is later than `grace` | it does not fire |
| a single tick will never fire | its trigger ends: disabled, with the reason in `ended` |
| a stored time is ahead of the clock | it is somebody's wrong clock: told, and begun anew |
| zone data of daemons differ | a local time fires once: the last one is stored as clocks showed it |

A tick was missed where it came before `noticed`: nobody watched the clock then. What CouchDB did not take in time is
late, and was not missed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from couchjobs.timestamps import format_time
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.once import LATEST
from couchjobs.triggers.periodic import PeriodicTrigger, parse_periodic
from couchjobs.triggers.schedule import BEGINNING, INSTANT, Schedule

AHEAD = timedelta(seconds=60)
"""How far a stored time may be ahead of the clock: clocks of hosts differ by less."""
_FAR_AHEAD = timedelta(days=2)
"""No local time and no period of a tick that has come is so far ahead, whatever the zone data of others."""
ON_TIME = timedelta(seconds=5)
"""How late a tick may be and is not missed, for `misfire: skip` without a `grace`."""
SINGLE = ("at", "in")
"""The kinds of schedules with a single tick."""
_LIMIT = 100
"""Ticks that `misfires: all` makes up for, where the trigger names no number."""
_MOST_COUNTED = 1000
"""Ticks that are counted one by one; of more it says so."""
_MOST_REPEATED = 4000
"""Ticks that are passed over for they were there already: an hour of seconds, where zone data differ by an hour."""


@dataclass(frozen=True, slots=True)
class State:
    """What is stored of a schedule."""

    meaning: str
    family: str
    anchor: datetime
    """When it was first seen."""
    passed: datetime
    """What came until then is done with."""
    last: datetime | None = None
    """The last tick that is done with: fired, or missed and given up."""
    fired: datetime | None = None
    """The last tick that fired."""
    slot: str = ""
    """Of the last tick that fired: its period, or its local time."""
    former: str = ""
    """The family of periods that the schedule was of before, and the last of them that fired: it may be so again."""
    seed: str = ""
    """What chooses the moment of a periodic schedule."""
    paused: bool = False
    firing: datetime | None = None
    """A late tick whose job may be stored already."""
    missed: int = 0
    missed_at: datetime | None = None
    note: str = ""
    """What was wrong with the state, and when it was begun anew."""
    rev: str = field(default="", compare=False)
    """The revision of the trigger that this was made of."""


class Plan(NamedTuple):
    """What is to be done about a schedule now."""

    tick: datetime | None
    """To be fired."""
    then: State
    """To be stored: after the job, or now where there is none."""
    look: datetime | None
    """When to look again; None: there are no further ticks."""
    first: State | None = None
    """To be stored before the job."""
    ended: str = ""
    """Why its single tick never fires; empty where it may."""


def begun(schedule: Schedule, infos: TriggerInfos, now: datetime) -> State:
    """Return the state of a schedule that is seen for the first time."""
    seed = schedule.seed if isinstance(schedule, PeriodicTrigger) else ""
    state = State(meaning_of(schedule, infos), schedule.family, anchor=now, passed=now, seed=seed, rev=infos.rev)
    return replace(state, paused=True) if infos.disabled else state


def seen(state: State | None, schedule: Schedule, infos: TriggerInfos, now: datetime) -> State:
    """Return the state after the trigger was seen as it is now; None: it is seen for the first time."""
    if state is None:
        return begun(schedule, infos, now)
    state = _without_future(state, now)
    if state.meaning != (meaning := meaning_of(schedule, infos)):
        is_same = state.rev == infos.rev and state.meaning == _rounded(meaning)
        state = replace(state, meaning=meaning) if is_same else _changed(state, schedule, meaning, now)
    if state.slot and state.slot > schedule.slot(now + _FAR_AHEAD):
        state = replace(
            state, slot="", note=f"begun anew at {format_time(now)}: its last slot, {state.slot:.40}, is none"
        )
    if not state.seed and isinstance(schedule, PeriodicTrigger):
        state = replace(state, seed=schedule.seed)
    if infos.disabled:
        state = replace(state, paused=True, passed=max(now, state.passed), last=None, firing=None)
    elif state.paused:
        state = replace(state, paused=False, passed=now)
    return replace(state, rev=infos.rev)


def _rounded(meaning: str) -> str:
    """Return the meaning as versions until 0.1 have stored it: of long periods, six digits."""
    kind, seconds, *more = meaning.split(" ")
    try:
        return " ".join([kind, f"{float(seconds.removesuffix('s')):g}s", *more])
    except ValueError:
        return meaning


def meaning_of(schedule: Schedule, infos: TriggerInfos) -> str:
    """Return what the schedule of a trigger means, with the bounds that the trigger sets to it."""
    bounds = [f" {name} {format_time(time)}" for name in ("starts", "ends") if (time := getattr(infos, name))]
    return schedule.meaning + "".join(bounds)


def _changed(state: State, schedule: Schedule, meaning: str, now: datetime) -> State:
    """Return the state of a schedule that means something else from now on."""
    kind = meaning.split(maxsplit=1)[0]
    anchor = now
    if state.meaning.split(maxsplit=1)[0] == kind:
        anchor = (state.fired or state.anchor) if kind == "every" else state.anchor
    slot, former = state.slot, state.former
    if state.family != schedule.family:
        family, _, slot = state.former.partition("\n")
        slot = slot if family == schedule.family else ""
        former = f"{state.family}\n{state.slot}" if state.slot else state.former
    changed = replace(state, meaning=meaning, family=schedule.family, anchor=anchor, slot=slot, former=former)
    return replace(changed, passed=anchor if schedule.once else now, firing=None, note="")


def _without_future(state: State, now: datetime) -> State:
    """Return the state without times that have not come yet: they are those of a wrong clock."""
    limit = now + AHEAD
    ahead = {
        name: value
        for name in ("anchor", "passed", "last", "fired", "firing")
        if (value := getattr(state, name)) is not None and value > limit
    }
    if not ahead:
        return state
    name, value = max(ahead.items(), key=lambda one: one[1])
    note = f"begun anew at {format_time(now)}: what is stored as {name}, {format_time(value)}, was ahead of the clock"
    anchor = now if "anchor" in ahead else state.anchor
    last = None if "last" in ahead else state.last
    fired = None if "fired" in ahead else state.fired
    passed = anchor if state.meaning.split(maxsplit=1)[0] in SINGLE else now
    return replace(state, anchor=anchor, passed=passed, last=last, fired=fired, slot="", firing=None, note=note)


def chosen(schedule: Schedule, infos: TriggerInfos, state: State | None) -> Schedule:
    """Return the schedule with the moment that is stored, where it is one that has a choice."""
    if isinstance(schedule, PeriodicTrigger) and state is not None and state.seed not in ("", schedule.seed):
        return parse_periodic(infos, state.seed)
    return schedule


class Life:
    """The schedule of one trigger, as it is now."""

    def __init__(self, schedule: Schedule, infos: TriggerInfos, state: State) -> None:
        self.schedule = chosen(schedule, infos, state)
        self.infos = infos
        self.state = state

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick later than `after` that this trigger may have, None where there is none."""
        infos, schedule = self.infos, self.schedule
        if infos.starts is not None and infos.starts > after:
            after = infos.starts - INSTANT
        tick = schedule.next(after, self.state.anchor)
        for _ in range(_MOST_REPEATED):
            if tick is None or not self.state.slot or self._slot(tick) > self.state.slot:
                break
            tick = schedule.next(tick, self.state.anchor)
        return tick if tick is not None and (infos.ends is None or tick <= infos.ends) else None

    def coming(self, now: datetime) -> datetime | None:
        """Return the next tick to come, for people to see; None where there is none."""
        state = self.state
        if self.schedule.once:
            tick = self.next(BEGINNING)
            return tick if tick is not None and tick > now else None
        return self.next(max(now, state.passed))

    def after(self, tick: datetime) -> Life:
        """Return the life once that tick has fired."""
        return Life(self.schedule, self.infos, self._fire(tick).then)

    def look(self, now: datetime) -> datetime | None:
        """Return when there is something to be done: a time that is over already, or the next tick; None for never."""
        if self.state.paused or self.infos.disabled:
            return None
        return self.state.firing or self.overdue(now) or self.coming(now)

    def plan(self, now: datetime, noticed: datetime | None = None) -> Plan:
        """Return what is to be done now; ticks that came before `noticed` were missed, None being now."""
        state = self.state
        if state.paused or self.infos.disabled:
            return Plan(None, state, None)
        if self.schedule.once:
            return self._plan_single(now, now if noticed is None else noticed)
        if state.firing is not None:
            return self._fire(state.firing)
        first = self.next(self._floor())
        if first is None or first > now:
            return Plan(None, state, first)
        if first >= (now if noticed is None else noticed):
            return self._fire(first)
        return self._plan_missed(first, now, min(now, noticed or now))

    def overdue(self, now: datetime) -> datetime | None:
        """Return the first tick that has come and is not done with, for people to see; None where there is none."""
        if self.state.paused or self.infos.disabled:
            return None
        first = self.next(BEGINNING if self.schedule.once else self._floor())
        return first if first is not None and first <= now else None

    def _floor(self) -> datetime:
        return max(self.state.passed, self.state.last or self.state.passed)

    def _slot(self, tick: datetime) -> str:
        return self.schedule.slot(tick) or "~"  # which comes after all of them

    def _fire(self, tick: datetime, missed: int = 0, first: State | None = None) -> Plan:
        then = replace(
            self._missing(missed, tick), last=tick, fired=tick, passed=tick, slot=self.schedule.slot(tick), firing=None
        )
        return Plan(tick, then, tick, first)

    def _missing(self, missed: int, at: datetime) -> State:
        if missed <= 0:
            return self.state
        return replace(self.state, missed=self.state.missed + missed, missed_at=at)

    def _plan_single(self, now: datetime, noticed: datetime) -> Plan:
        infos, state = self.infos, self.state
        tick = self.schedule.next(BEGINNING, state.anchor)
        if tick is None:
            return Plan(None, state, None)
        told = format_time(tick)
        if (infos.starts is not None and tick < infos.starts) or (infos.ends is not None and tick > infos.ends):
            return Plan(None, state, None, ended=f"its time, {told}, is not between starts and ends")
        if tick > now:
            return Plan(None, state, tick)
        if infos.firing != tick:
            if tick <= state.passed and state.passed > state.anchor:  # which only enabling moves on
                return Plan(None, state, None, ended=f"its time, {told}, passed while it was disabled")
            late = ON_TIME if infos.misfire == "skip" else LATEST
            if (tick < noticed or infos.grace is not None) and now - tick > (
                late if infos.grace is None else timedelta(seconds=infos.grace)
            ):
                return Plan(None, state, None, ended=f"its time, {told}, was missed")
        return self._fire(tick)._replace(look=None)

    def _plan_missed(self, first: datetime, now: datetime, noticed: datetime) -> Plan:
        """Return the plan where at least one tick was missed, `first` being the first of them."""
        infos = self.infos
        grace = None if infos.grace is None else timedelta(seconds=infos.grace)
        if infos.misfire == "skip":
            return self._plan_from(first, now, now - (ON_TIME if grace is None else grace))
        if infos.misfire == "all":
            limit = infos.misfire_limit or _LIMIT
            edges = [now - grace] if grace is not None and now - first > grace else []
            if self._count(now, limit + 1) > limit:
                edges.append(self._last_but(limit, now))
            return self._plan_from(first, now, max(edges)) if edges else self._fire(first)
        latest = self._latest(noticed)
        if latest is None or (grace is not None and now - latest > grace):
            return self._plan_from(first, now, noticed)
        missed = min(_MOST_COUNTED, self._count(latest, _MOST_COUNTED + 1) - 1)
        begun_with = replace(self.state, firing=latest)
        return self._fire(latest, missed, begun_with)

    def _plan_from(self, first: datetime, now: datetime, edge: datetime) -> Plan:
        """Return the plan where ticks before `edge` do not fire."""
        begin = self.next(max(self._floor(), edge - INSTANT))
        until = min(now, edge - INSTANT)
        missed = self._count(until, _MOST_COUNTED)
        if begin is not None and begin <= now:
            return self._fire(begin, missed)
        given_up = replace(self._missing(missed, first), passed=max(until, self.state.passed))
        return Plan(None, replace(given_up, last=self._latest(until) or self.state.last), begin)

    def _count(self, until: datetime, most: int) -> int:
        infos = self.infos
        after = self._floor()
        if infos.starts is not None:
            after = max(after, infos.starts - INSTANT)
        if infos.ends is not None:
            until = min(until, infos.ends)
        return self.schedule.count(after, until, self.state.anchor, most) if until > after else 0

    def _latest(self, until: datetime) -> datetime | None:
        """Return the last tick not later than `until` that is not done with."""
        infos, floor = self.infos, self._floor()
        if infos.ends is not None:
            until = min(until, infos.ends)
        latest = self.schedule.latest(until, self.state.anchor, floor)
        if latest is None or latest <= floor or (infos.starts is not None and latest < infos.starts):
            return None
        return latest if not self.state.slot or self._slot(latest) > self.state.slot else None

    def _last_but(self, number: int, now: datetime) -> datetime:
        """Return the tick from which on there are so many until now."""
        tick = self._latest(now)
        for _ in range(number - 1):
            earlier = None if tick is None else self._latest(tick - INSTANT)
            if earlier is None:
                break
            tick = earlier
        return tick or now
