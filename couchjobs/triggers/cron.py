"""@cron: the ticks of a cron expression, in a time zone.

In a zone whose clocks change, a local time that does not exist fires once, right after the gap, and one that comes
twice fires the first time; a schedule that is hourly or finer fires in every real hour. Nothing found within five
years means never. croniter finds the time; it is given plain lists, for it reads some ranges otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.cron_fields import CronFields, parse_fields
from couchjobs.triggers.every import every_descriptor
from couchjobs.triggers.schedule import Schedule, latest_by_search

_YEARS = 5
_SECOND = timedelta(seconds=1)
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

    def next(self, after: datetime, anchor: datetime) -> datetime | None:  # noqa: ARG002  the protocol's
        """Return the first tick later than `after`."""
        return self._next_real(after) if self.fields.every_hour else self._next_local(after)

    def latest(self, until: datetime, anchor: datetime, since: datetime | None = None) -> datetime | None:
        """Return the last tick not later than `until`, and later than the anchor."""
        return latest_by_search(self, until, anchor, since)

    def _next_local(self, after: datetime) -> datetime | None:
        """Walk through local times: one that does not exist is moved behind the gap, of two the first counts."""
        local: datetime | None = after.astimezone(self.zone).replace(tzinfo=None)
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
        if tick.astimezone(self.zone).replace(tzinfo=None) == local:
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
        try:
            found: datetime = croniter(
                self.fields.expression(),
                local,
                ret_type=datetime,
                day_or=not self.fields.both_days,
                max_years_between_matches=_YEARS,
                second_at_beginning=True,
            ).get_next(datetime)
        except (CroniterBadDateError, OverflowError, ValueError):
            return None
        return found


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
    if text.startswith("@every "):
        return every_descriptor(text.removeprefix("@every "))
    if text.startswith("@"):
        if text not in _DESCRIPTORS:
            raise MalformedTriggerError(f"{text[:80]!r} is no descriptor: {', '.join(_DESCRIPTORS)}, @every D")
        text = _DESCRIPTORS[text]
    return CronTrigger(parse_fields(text), zone)


def parse_zone(name: str | None) -> ZoneInfo:
    """Return the time zone of that IANA name, UTC where there is none.

    Raises:
        MalformedTriggerError: there is no such zone.
    """
    try:
        return ZoneInfo(name or "UTC")
    except (KeyError, ValueError, OSError):
        raise MalformedTriggerError(
            f"there is no time zone {str(name)[:80]!r}: write one such as Europe/Paris"
        ) from None
