"""@at TIME and @in D: one tick, after which the trigger is deleted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from couchjobs.errors import MalformedTriggerError
from couchjobs.timestamps import format_time, parse_time
from couchjobs.triggers.dialects import time_advice
from couchjobs.triggers.every import duration, in_seconds

LATEST = timedelta(hours=24)
"""How late a single tick may still fire, where its trigger has no `grace`."""


@dataclass(frozen=True, slots=True)
class AtTrigger:
    """One tick, at a time."""

    time: datetime
    once: bool = True

    @property
    def meaning(self) -> str:
        """Return its time."""
        return f"at {format_time(self.time)}"

    @property
    def family(self) -> str:
        """Return that it is none of a calendar."""
        return "at"

    def slot(self, tick: datetime) -> str:  # noqa: ARG002  the protocol's
        """Return nothing: there is one tick."""
        return ""

    def next(self, after: datetime, anchor: datetime) -> datetime | None:  # noqa: ARG002  the protocol's
        """Return the tick, where it is later than `after`."""
        return self.time if self.time > after else None

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:  # noqa: ARG002
        """Return the tick, where it has come and is not older than a day."""
        return self.time if self.time <= until <= self.time + LATEST else None

    def count(self, after: datetime, until: datetime, anchor: datetime, most: int) -> int:  # noqa: ARG002
        """Return 1 where the tick lies between, else 0."""
        return int(after < self.time <= until)


@dataclass(frozen=True, slots=True)
class InTrigger:
    """One tick, a while after the trigger was first seen."""

    delay: timedelta
    once: bool = True

    @property
    def meaning(self) -> str:
        """Return its delay."""
        return f"in {in_seconds(self.delay)}"

    @property
    def family(self) -> str:
        """Return that it is none of a calendar."""
        return "in"

    def slot(self, tick: datetime) -> str:  # noqa: ARG002  the protocol's
        """Return nothing: there is one tick."""
        return ""

    def next(self, after: datetime, anchor: datetime) -> datetime | None:
        """Return the tick, where it is later than `after`."""
        return self._from(anchor).next(after, anchor)

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:
        """Return the tick, where it has come and is not older than a day."""
        return self._from(anchor).latest(until, anchor, since)

    def count(self, after: datetime, until: datetime, anchor: datetime, most: int) -> int:
        """Return 1 where the tick lies between, else 0."""
        return self._from(anchor).count(after, until, anchor, most)

    def _from(self, anchor: datetime) -> AtTrigger:
        try:
            return AtTrigger(anchor + self.delay)
        except OverflowError:
            return AtTrigger(datetime.max.replace(tzinfo=anchor.tzinfo))


def parse_at(arguments: str) -> AtTrigger:
    """Return the schedule of `@at` with these arguments: an RFC 3339 time.

    Raises:
        MalformedTriggerError: it is no such time.
    """
    try:
        time = parse_time(arguments.strip())
    except ValueError as error:
        instead = f"; {found}" if (found := time_advice(arguments)) else ""
        raise MalformedTriggerError(f"@at: {error}{instead}") from None
    if time is None:
        raise MalformedTriggerError("@at: the zero time never comes")
    return AtTrigger(time)


def parse_in(arguments: str) -> InTrigger:
    """Return the schedule of `@in` with these arguments: a duration.

    Raises:
        MalformedTriggerError: it is no duration, or none above zero.
    """
    return InTrigger(timedelta(seconds=duration("@in", arguments)))
