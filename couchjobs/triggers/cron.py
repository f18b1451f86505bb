"""@cron: the ticks of a cron expression, in a time zone.

In a zone whose clocks change, a local time that does not exist fires once, right after the gap, and one that comes
twice fires the first time; a schedule that is hourly or finer fires in every real hour. Nothing found within five
years means never. croniter finds the time; it is given plain lists, for it reads some ranges otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.cron_fields import CronFields, parse_fields
from couchjobs.triggers.dialects import advice
from couchjobs.triggers.every import every_descriptor
from couchjobs.triggers.schedule import Schedule, count_by_walking, latest_by_search
from couchjobs.triggers.zones import parse_zone

_YEARS = 5
"""After which the search for a next time is given up: as in robfig/cron, whose syntax this is."""
_SECOND = timedelta(seconds=1)
_ANY_TIME = datetime.fromisoformat("2000-01-01")
_DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}


@dataclass(frozen=True, slots=True)
class CronTrigger:
    """The ticks that a cron expression allows."""

    fields: CronFields
    zone: ZoneInfo
    once: bool = False

    @property
    def meaning(self) -> str:
        """Return its fields as numbers, and its zone."""
        fields = self.fields
        days = "" if not fields.has_calendar else f" {fields.days} {fields.weekdays}"
        return f"cron {fields.expression()} {'and' if fields.both_days else 'or'}{days} {self.zone.key}"

    @property
    def family(self) -> str:
        """Return its zone; hourly and finer schedules have ticks in real time."""
        return "real" if self.fields.every_hour else f"local {self.zone.key}"

    def slot(self, tick: datetime) -> str:
        """Return the local time, which comes once whatever another daemon's zone data say; none where hourly.

        Of a tick that was moved behind a gap it is the one that was moved: to others there may be no gap.
        """
        return "" if self.fields.every_hour else self._meant(tick).isoformat()

    def _meant(self, tick: datetime) -> datetime:
        local = self.local(tick)
        gap = local - self.local(tick - _SECOND) - _SECOND
        found = self._next_naive(local - gap - _SECOND) if gap > timedelta() else None
        meant = local
        while found is not None and found <= local:
            meant, found = found, self._next_naive(found)
        return meant

    def local(self, tick: datetime) -> datetime:
        """Return the time that clocks of the zone show then, without a zone."""
        return tick.astimezone(self.zone).replace(tzinfo=None)

    def next(self, after: datetime, anchor: datetime) -> datetime | None:  # noqa: ARG002  the protocol's
        """Return the first tick later than `after`."""
        try:
            return self._next_real(after) if self.fields.every_hour else self._next_local(after)
        except OverflowError:
            return None

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:
        """Return the last tick not later than `until`, and later than the anchor."""
        return self._guessed(until, max(anchor, since or anchor)) or latest_by_search(self, until, anchor, since)

    def count(self, after: datetime, until: datetime, anchor: datetime, most: int) -> int:
        """Return how many ticks are later than `after` and not later than `until`; at most so many."""
        return count_by_walking(self, after, until, anchor, most)

    def _guessed(self, until: datetime, since: datetime) -> datetime | None:
        """Return the last tick as croniter sees it going backwards; None where going forwards does not confirm it."""
        if self.fields.has_calendar:
            return None
        try:
            local = _iterator(self.fields.expression(), self.fields.both_days).get_prev(
                datetime, start_time=self.local(until).replace(microsecond=0) + _SECOND
            )
            tick = self._real(local)
        except (CroniterBadDateError, OverflowError, ValueError):
            return None
        if not since < tick <= until or self.next(tick - _SECOND, since) != tick:
            return None
        later = self.next(tick, since)
        return tick if later is None or later > until else None

    def _next_local(self, after: datetime) -> datetime | None:
        """Walk through local times: one that does not exist is moved behind the gap, of two the first counts."""
        local: datetime | None = self.local(after)
        while local is not None:
            local = self._next_naive(local)
            if local is None:
                return None
            tick = self._real(local)
            if tick > after:
                return tick
        return None

    def _real(self, local: datetime) -> datetime:
        tick = local.replace(tzinfo=self.zone).astimezone(UTC)
        if self.local(tick) == local:
            return tick
        return self._change_of_offset(tick - timedelta(days=1), tick + timedelta(days=1))

    def _next_real(self, after: datetime) -> datetime | None:
        """Walk through real time: as long as the offset stays, local times are real times moved by it."""
        start = after
        for _ in range(4 * _YEARS):
            offset = self._offset(start)
            local = self._next_naive(start.replace(tzinfo=None) + offset)
            if local is None:
                return None
            tick = (local - offset).replace(tzinfo=UTC)
            if self._offset(tick) == offset:
                return tick
            change = self._change_of_offset(start, tick)
            start = change - _SECOND
            offset_after = self._offset(change)
            local = self._next_naive(start.replace(tzinfo=None) + offset_after)
            if local is not None:
                tick = (local - offset_after).replace(tzinfo=UTC)
                if self._offset(tick) == offset_after:
                    return tick
            start = change
        return None

    def _offset(self, time: datetime) -> timedelta:
        return time.astimezone(self.zone).utcoffset() or timedelta()

    def _change_of_offset(self, low: datetime, high: datetime) -> datetime:
        """Return the first second, later than `low`, at which another offset than that of `low` holds."""
        offset = self._offset(low)
        step = timedelta(hours=12)
        while low + step < high and self._offset(low + step) == offset:
            low += step
        high = min(high, low + step)
        low, high = low.replace(microsecond=0), high.replace(microsecond=0) + _SECOND * bool(high.microsecond)
        while high - low > _SECOND:
            middle = low + (high - low) // 2
            middle = middle.replace(microsecond=0)
            low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
        return high

    def _next_naive(self, local: datetime) -> datetime | None:
        if not self.fields.has_calendar:
            return _next_by(self.fields, local)
        times, day = self.fields.at_any_day(), self.fields.next_day(local.date(), _YEARS)
        while day is not None:
            start = max(local, datetime.combine(day, time()) - _SECOND)
            found = _next_by(times, start)
            if found is None or found.date() == day:
                return found
            day = self.fields.next_day(found.date(), _YEARS)
        return None


def _next_by(fields: CronFields, local: datetime) -> datetime | None:
    try:
        found: datetime = _iterator(fields.expression(), fields.both_days).get_next(datetime, start_time=local)
    except (CroniterBadDateError, OverflowError, ValueError):
        return None
    return found


@lru_cache(maxsize=512)
def _iterator(expression: str, both_days: bool) -> croniter:
    """Return what finds the times of an expression, from any start: to make one takes five times as long."""
    return croniter(
        expression,
        _ANY_TIME,
        ret_type=datetime,
        day_or=not both_days,
        max_years_between_matches=_YEARS,
        second_at_beginning=True,
    )


def parse_cron(arguments: str, timezone: str | None) -> Schedule:
    """Return the schedule of a cron expression or descriptor, in the zone that `TZ=` before it or `timezone` names.

    Raises:
        MalformedTriggerError: which field is wrong, and why; or there is no such zone.
    """
    text = arguments.strip()
    if text.startswith(("TZ=", "CRON_TZ=")):
        name, _, text = text.partition("=")[2].partition(" ")
        text = text.strip()
        zone = parse_zone(name)
    else:
        zone = parse_zone(timezone)
    try:
        return _parse(text, zone)
    except MalformedTriggerError as error:
        if instead := advice(text):
            raise MalformedTriggerError(f"{error}; {instead}") from None
        raise


def _parse(text: str, zone: ZoneInfo) -> Schedule:
    if text.startswith("@every "):
        return every_descriptor(text.removeprefix("@every "))
    if text.startswith("@"):
        if text not in _DESCRIPTORS:
            raise MalformedTriggerError(f"{text[:80]!r} is no descriptor: {', '.join(_DESCRIPTORS)}, @every D")
        text = _DESCRIPTORS[text]
    return CronTrigger(parse_fields(text), zone)
