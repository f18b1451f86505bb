"""@at TIME and @in D: one tick, after which the trigger is deleted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from couchjobs.errors import MalformedTriggerError
from couchjobs.timestamps import parse_time
from couchjobs.triggers.every import duration

LATEST = timedelta(hours=24)
"""How late a single tick may still fire."""


@dataclass(frozen=True, slots=True)
class AtTrigger:
    """One tick, at a time."""

    time: datetime
    once: bool = True

    def next(self, after: datetime, anchor: datetime) -> datetime | None:  # noqa: ARG002  the protocol's
        """Return the tick, where it is later than `after`."""
        return self.time if self.time > after else None

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:  # noqa: ARG002
        """Return the tick, where it has come and is not older than a day."""
        return self.time if self.time <= until <= self.time + LATEST else None


@dataclass(frozen=True, slots=True)
class InTrigger:
    """One tick, a while after the trigger was first seen."""

    delay: timedelta
    once: bool = True

    def next(self, after: datetime, anchor: datetime) -> datetime | None:
        """Return the tick, where it is later than `after`."""
        return AtTrigger(anchor + self.delay).next(after, anchor)

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:  # noqa: ARG002
        """Return the tick, where it has come and is not older than a day."""
        return AtTrigger(anchor + self.delay).latest(until, anchor)


def parse_at(arguments: str) -> AtTrigger:
    """Return the schedule of `@at` with these arguments: an RFC 3339 time.

    Raises:
        MalformedTriggerError: it is no such time.
    """
    try:
        time = parse_time(arguments.strip())
    except ValueError as error:
        raise MalformedTriggerError(f"@at: {error}") from None
    if time is None:
        raise MalformedTriggerError("@at: the zero time never comes")
    return AtTrigger(time)


def parse_in(arguments: str) -> InTrigger:
    """Return the schedule of `@in` with these arguments: a duration.

    Raises:
        MalformedTriggerError: it is no duration, or none above zero.
    """
    return InTrigger(timedelta(seconds=duration("@in", arguments)))
