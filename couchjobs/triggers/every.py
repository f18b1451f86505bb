"""@every D: each D from the moment at which the trigger was first seen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from couchjobs.durations import parse_duration, read_seconds
from couchjobs.errors import MalformedTriggerError

_SHORTEST_S = 1.0


@dataclass(frozen=True, slots=True)
class EveryTrigger:
    """Ticks at anchor + period, anchor + 2 periods, ..."""

    period: timedelta
    once: bool = False

    def next(self, after: datetime, anchor: datetime) -> datetime | None:
        """Return the first tick later than `after`."""
        periods = max(0, (after - anchor) // self.period) + 1
        return _at(anchor, self.period, periods)

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:  # noqa: ARG002
        """Return the last tick not later than `until`."""
        periods = (until - anchor) // self.period
        return _at(anchor, self.period, periods) if periods >= 1 else None


def _at(anchor: datetime, period: timedelta, periods: int) -> datetime | None:
    try:
        return anchor + periods * period
    except OverflowError:
        return None


def parse_every(arguments: str) -> EveryTrigger:
    """Return the schedule of `@every` with these arguments: a duration; one under a second is a second.

    Raises:
        MalformedTriggerError: it is no duration, or none above zero.
    """
    return EveryTrigger(timedelta(seconds=max(_SHORTEST_S, duration("@every", arguments))))


def every_descriptor(arguments: str) -> EveryTrigger:
    """Return the schedule of the cron descriptor `@every D`: whole seconds, one where the duration is less.

    Source: robfig/cron v3, ConstantDelaySchedule.

    Raises:
        MalformedTriggerError: it is no duration in Go's form.
    """
    try:
        period = timedelta(seconds=int(parse_duration(arguments.strip())))
    except (ValueError, OverflowError) as error:
        raise MalformedTriggerError(f"@every {arguments[:100]!r}: {error}") from None
    return EveryTrigger(max(period, timedelta(seconds=_SHORTEST_S)))


def duration(kind: str, arguments: str) -> float:
    """Return the seconds that the arguments of a trigger name.

    Raises:
        MalformedTriggerError: it is no duration, or none above zero.
    """
    try:
        seconds = read_seconds(arguments)
        timedelta(seconds=seconds)
    except (ValueError, OverflowError) as error:
        raise MalformedTriggerError(f"{kind} {arguments[:100]!r}: {error}") from None
    if seconds <= 0:
        raise MalformedTriggerError(f"{kind} {arguments!r}: the duration must be more than zero")
    return seconds
