"""What all triggers that fire by the clock have in common."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

INSTANT = timedelta(microseconds=1)
BEGINNING = datetime.min.replace(tzinfo=UTC)


class Schedule(Protocol):
    """The moments at which a trigger fires: its ticks. All times are in UTC.

    `anchor` is the moment at which the trigger was first seen; it is stored, so that the ticks are the same on every
    daemon and after every restart.
    """

    @property
    def once(self) -> bool:
        """Return whether there is one tick, after which the trigger is deleted."""

    @property
    def meaning(self) -> str:
        """Return what the schedule means, its kind first: those that mean the same have the same ticks."""

    @property
    def family(self) -> str:
        """Return the schedules among which slots are compared: a kind, and its zone."""

    def slot(self, tick: datetime) -> str:
        """Return what there is one tick of at most: a period, or a local time; as text, in order. Empty: the tick."""

    def next(self, after: datetime, anchor: datetime) -> datetime | None:
        """Return the first tick later than `after`, None where there is none."""

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:
        """Return the last tick not later than `until`, None where there is none; one before `since` is of no use."""

    def count(self, after: datetime, until: datetime, anchor: datetime, most: int) -> int:
        """Return how many ticks are later than `after` and not later than `until`; at most so many."""


def latest_by_search(schedule: Schedule, until: datetime, anchor: datetime, since: datetime | None) -> datetime | None:
    """Return the last tick not later than `until` and later than the anchor, and `since`, for ticks on whole seconds.

    The first tick after a moment never comes before the first tick after an earlier one: so the moment is halved.
    """
    found = schedule.next(max(anchor, since or anchor), anchor)
    if found is None or found > until:
        return None
    low, high = found, until
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        tick = schedule.next(middle, anchor)
        if tick is not None and tick <= until:
            low, found = middle, tick
        else:
            high = middle
    return found


def count_by_walking(schedule: Schedule, after: datetime, until: datetime, anchor: datetime, most: int) -> int:
    """Return how many ticks are later than `after` and not later than `until`; at most so many."""
    tick, number = schedule.next(after, anchor), 0
    while tick is not None and tick <= until and number < most:
        number += 1
        tick = schedule.next(tick, anchor)
    return number
