"""What all triggers that fire by the clock have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Schedule(Protocol):
    """The moments at which a trigger fires: its ticks. All times are in UTC.

    `anchor` is the moment at which the trigger was first seen; it is stored, so that the ticks are the same on every
    daemon and after every restart.
    """

    @property
    def once(self) -> bool:
        """Return whether there is one tick, after which the trigger is deleted."""

    def next(self, after: datetime, anchor: datetime) -> datetime | None:
        """Return the first tick later than `after`, None where there is none."""

    def latest(self, until: datetime, anchor: datetime) -> datetime | None:
        """Return the last tick not later than `until`, None where there is none."""
