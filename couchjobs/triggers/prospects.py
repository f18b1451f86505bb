"""What is to come of a trigger that fires by the clock, and what is odd about it, for people to see."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

from couchjobs.timestamps import format_time
from couchjobs.triggers.every import EveryTrigger, is_finer
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.life import Life, State, seen
from couchjobs.triggers.schedule import Schedule

LATE = timedelta(seconds=60)
"""How long after its time a tick is called one that did not come."""


def life_of(schedule: Schedule, infos: TriggerInfos, state: State | None, now: datetime) -> Life:
    """Return the life of a schedule as a daemon would go on with it that sees the trigger now."""
    return Life(schedule, infos, seen(state, schedule, infos, now))


def coming_times(life: Life, now: datetime, count: int) -> list[datetime]:
    """Return the next times at which it fires, at most so many."""
    return [*islice(each_coming(life, now), count)]


def each_coming(life: Life, now: datetime) -> Iterator[datetime]:
    """Yield the times at which it fires from now on; one may take milliseconds to find. None while it is disabled."""
    if life.infos.disabled:
        return
    tick = life.coming(now)
    while tick is not None:
        yield tick
        life = life.after(tick)
        tick = None if life.schedule.once else life.next(tick)


def notes_on(life: Life, now: datetime, *, is_stored: bool = True) -> list[str]:
    """Return what a person should know of the schedule, each in a sentence; `is_stored`: a daemon has its state."""
    infos, state = life.infos, life.state
    notes: list[str] = [f"ended: {infos.ended}"] if infos.ended else []
    if infos.arguments.startswith(("TZ=", "CRON_TZ=")) and infos.timezone:
        notes.append(f"its timezone, {infos.timezone}, is not used: the arguments name one")
    if isinstance(life.schedule, EveryTrigger) and infos.type == "@every" and is_finer(infos.arguments):
        notes.append("it fires once a second: no schedule is finer")
    if infos.disabled:
        return [*notes, "it is disabled"]
    plan = life.plan(now)
    if plan.ended:
        notes.append(f"it never fires: {plan.ended}")
    elif life.schedule.once and plan.tick is not None:
        notes.append(f"its time, {format_time(plan.tick)}, is over: it fires at once")
    elif life.look(now) is None:
        notes.append(_why_never(infos, now))
    overdue = life.overdue(now)
    if is_stored and overdue is not None and now - overdue > LATE:
        notes.append(f"a tick did not come: {format_time(overdue)}")
    if state.missed and state.missed_at is not None:
        notes.append(f"{state.missed} ticks were missed, the last time at {format_time(state.missed_at)}")
    if state.note:
        notes.append(state.note)
    return notes


def _why_never(infos: TriggerInfos, now: datetime) -> str:
    if infos.ends is None:
        return "it never fires: there is no such time within five years"
    return "it is over" if infos.ends <= now else "it never fires: there is no such time until it ends"
