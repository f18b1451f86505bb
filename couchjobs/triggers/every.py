"""@every D: each D from the moment at which the trigger was first seen, or from its `anchor`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from couchjobs.durations import parse_duration, read_seconds
from couchjobs.errors import MalformedTriggerError
from couchjobs.timestamps import format_time
from couchjobs.triggers.dialects import span

_SHORTEST_S = 1.0


@dataclass(frozen=True, slots=True)
class EveryTrigger:
    """Ticks at anchor + period, anchor + 2 periods, ...; an anchor of its own is one itself, as are those before it."""

    period: timedelta
    anchor: datetime | None = None
    once: bool = False

    @property
    def meaning(self) -> str:
        """Return its period, and its anchor."""
        seconds = f"every {in_seconds(self.period)}"
        return f"{seconds} from {format_time(self.anchor)}" if self.anchor is not None else seconds

    @property
    def family(self) -> str:
        """Return that it is none of a calendar."""
        return "every"

    def slot(self, tick: datetime) -> str:  # noqa: ARG002  the protocol's
        """Return nothing: each tick counts for itself."""
        return ""

    def next(self, after: datetime, anchor: datetime) -> datetime | None:
        """Return the first tick later than `after`."""
        begin = self.anchor or anchor
        periods = (after - begin) // self.period + 1
        return _at(begin, self.period, periods if self.anchor is not None else max(1, periods))

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:
        """Return the last tick not later than `until`."""
        begin = self.anchor or anchor
        tick = _at(begin, self.period, (until - begin) // self.period)
        if tick is None or tick <= (anchor if since is None else since):
            return None
        return tick

    def count(self, after: datetime, until: datetime, anchor: datetime, most: int) -> int:
        """Return how many ticks are later than `after` and not later than `until`."""
        begin = self.anchor or anchor
        low = (after - begin) // self.period
        if self.anchor is None:
            low = max(0, low)
        return min(most, max(0, (until - begin) // self.period - low))


def in_seconds(period: timedelta) -> str:
    """Return a duration as text, exactly: `90s`."""
    return f"{period.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"


def _at(anchor: datetime, period: timedelta, periods: int) -> datetime | None:
    try:
        return anchor + periods * period
    except OverflowError:
        return None


def parse_every(arguments: str, anchor: datetime | None = None) -> EveryTrigger:
    """Return the schedule of `@every` with these arguments: a duration; one under a second is a second.

    Raises:
        MalformedTriggerError: it is no duration, or none above zero.
    """
    return EveryTrigger(timedelta(seconds=max(_SHORTEST_S, duration("@every", arguments))), anchor)


def is_finer(arguments: str) -> bool:
    """Return whether these arguments of `@every`, which are some, name less than the second that is made of it."""
    return duration("@every", arguments) < _SHORTEST_S


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
        instead = f"; write {found}" if (found := span(arguments)) else ""
        raise MalformedTriggerError(f"{kind} {arguments[:100]!r}: {error}{instead}") from None
    if seconds <= 0:
        raise MalformedTriggerError(f"{kind} {arguments!r}: the duration must be more than zero")
    return seconds
