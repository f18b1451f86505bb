"""The syntax of cron expressions, as robfig/cron v3 reads them, expanded into plain sets of numbers.

Six fields with seconds first; five mean second 0. In a field: `*` or `?`, numbers, names of months and weekdays,
ranges, steps, lists. `N/step` means from N to the end; ranges do not wrap; Sunday is 0. A day field that is `*`, `?` or
`*/1` is free; where neither is free, a day that satisfies one of them is enough.
Source: robfig/cron v3, package documentation, "CRON Expression Format".

Beyond it, in day fields: `L` (the last day of the month), `L-3` (three days before it), `15W` (the weekday, Monday to
Friday, nearest to the 15th in the same month), `LW`, `5#3` (the third Friday), `5L` (the last Friday). And `?` is
understood in day fields alone, for elsewhere it is the mark of another dialect.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import date, timedelta

from couchjobs.errors import MalformedTriggerError

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_WEEKDAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_LONGEST = 1000
_ONE_DAY = timedelta(days=1)
_OF_MONTH = re.compile(r"L|L-(?P<before>[12]?\d|30)|LW|(?P<near>\d{1,2})W", re.ASCII)
_OF_WEEK = re.compile(r"(?P<day>[0-9]|[A-Z]{3})(?:L|#(?P<nth>[1-5]))", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    low: int
    high: int
    names: dict[str, int]


_KINDS = (
    _Kind("second", 0, 59, {}),
    _Kind("minute", 0, 59, {}),
    _Kind("hour", 0, 23, {}),
    _Kind("day of month", 1, 31, {}),
    _Kind("month", 1, 12, _MONTHS),
    _Kind("day of week", 0, 6, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Day:
    """One day of each month that is not always the same number.

    `what`: `last`, so many days before the last (`number`); `weekday`, the one nearest to the day `number`, 0 being the
    last; `nth`, the day of the week `number` for the `nth` time, 0 being the last; `until`, the day `number`, or the
    last one of a shorter month.
    """

    what: str
    number: int
    nth: int = 0

    def of(self, year: int, month: int) -> int:
        """Return the day of that month; 0 where it has none."""
        first, days = calendar.monthrange(year, month)
        match self.what:
            case "last":
                return max(0, days - self.number)
            case "until":
                return min(self.number, days)
            case "weekday":
                if self.number > days:
                    return 0
                day = self.number or days
                of_week = (first + day - 1) % 7
                if of_week == 5:
                    return day - 1 if day > 1 else day + 2
                if of_week == 6:
                    return day + 1 if day < days else day - 2
                return day
        begin = 1 + (self.number - 1 - first) % 7
        if not self.nth:
            return begin + 7 * ((days - begin) // 7)
        day = begin + 7 * (self.nth - 1)
        return day if day <= days else 0


@dataclass(frozen=True, slots=True)
class CronFields:
    """The numbers that each field allows, ascending; `both_days`: a day must satisfy both day fields, else either."""

    second: tuple[int, ...]
    minute: tuple[int, ...]
    hour: tuple[int, ...]
    day_of_month: tuple[int, ...]
    month: tuple[int, ...]
    day_of_week: tuple[int, ...]
    both_days: bool
    days: tuple[Day, ...] = ()
    """Further days that the field day of month allows."""
    weekdays: tuple[Day, ...] = ()
    """Further days that the field day of week allows."""

    @property
    def has_calendar(self) -> bool:
        """Return whether some of its days differ from month to month."""
        return bool(self.days or self.weekdays)

    def allows(self, day: date) -> bool:
        """Return whether there may be ticks on that day."""
        if day.month not in self.month:
            return False
        by_month = day.day in self.day_of_month or any(one.of(day.year, day.month) == day.day for one in self.days)
        by_week = day.isoweekday() % 7 in self.day_of_week or any(
            one.of(day.year, day.month) == day.day for one in self.weekdays
        )
        return (by_month and by_week) if self.both_days else (by_month or by_week)

    def next_day(self, day: date, years: int) -> date | None:
        """Return the first day, this one or a later one, on which there may be ticks; None within so many years."""
        for _ in range(366 * years):
            if self.allows(day):
                return day
            if day == date.max:
                return None
            day += _ONE_DAY
        return None

    def at_any_day(self) -> CronFields:
        """Return the same times of the day, on all days."""
        every = tuple(range(1, 32)), tuple(range(1, 13)), tuple(range(7))
        return CronFields(self.second, self.minute, self.hour, *every, both_days=True)

    @property
    def every_hour(self) -> bool:
        """Return whether the schedule is hourly or finer."""
        return len(self.hour) == 24

    def expression(self) -> str:
        """Return the fields as lists of numbers, seconds first, and `*` where all are allowed."""
        fields = (self.second, self.minute, self.hour, self.day_of_month, self.month, self.day_of_week)
        texts = [
            "*" if len(numbers) == kind.high - kind.low + 1 else ",".join(map(str, numbers))
            for numbers, kind in zip(fields, _KINDS, strict=True)
        ]
        if not self.both_days and "*" in (texts[3], texts[5]):
            texts[3] = texts[5] = "*"
        return " ".join(texts)


def parse_fields(text: str) -> CronFields:
    """Return the fields of an expression.

    Raises:
        MalformedTriggerError: which field is wrong, and why.
    """
    parts = text.split()
    if len(text) > _LONGEST or len(parts) not in (5, 6):
        raise MalformedTriggerError(f"cron expression {text[:80]!r}: {len(parts)} fields, 5 or 6 are needed")
    if len(parts) == 5:
        parts = ["0", *parts]
    numbers, days, free = [], [], []
    for part, kind in zip(parts, _KINDS, strict=True):
        allowed, special, is_free = _parse_field(part, kind)
        numbers.append(tuple(sorted(allowed)))
        days.append(tuple(special))
        free.append(is_free)
    second, minute, hour, day_of_month, month, day_of_week = numbers
    both_days = free[3] or free[5]
    return CronFields(second, minute, hour, day_of_month, month, day_of_week, both_days, days[3], days[5])


def _parse_field(text: str, kind: _Kind) -> tuple[set[int], list[Day], bool]:
    allowed: set[int] = set()
    days: list[Day] = []
    free = False
    for part in text.split(","):
        if day := _parse_day(part.upper(), kind):
            days.append(day)
        elif part:
            numbers, is_free = _parse_range(part, kind)
            allowed.update(numbers)
            free = free or is_free
    if not allowed and not days:
        raise MalformedTriggerError(f"cron field {text!r} ({kind.name}): nothing in it")
    return allowed, days, free


def _parse_day(text: str, kind: _Kind) -> Day | None:
    """Return the day that `L`, `L-3`, `15W`, `LW` or `5#3`, `5L` mean in that field; None where it is none of these."""
    if kind.name == "day of month":
        if found := _OF_MONTH.fullmatch(text):
            if found["before"] is not None or text == "L":
                return Day("last", int(found["before"] or 0))
            number = 0 if text == "LW" else int(found["near"])
            if text == "LW" or 1 <= number <= 31:
                return Day("weekday", number)
    elif kind.name == "day of week" and (found := _OF_WEEK.fullmatch(text)):
        name = found["day"].lower()
        number = _WEEKDAYS[name] if name in _WEEKDAYS else int(name) if name.isdigit() else 7
        nth = int(found["nth"] or 0)
        if number < 7 and (nth or found["nth"] is None):
            return Day("nth", number, nth)
    return None


def _parse_range(text: str, kind: _Kind) -> tuple[range, bool]:
    where = f"cron field {text!r} ({kind.name})"
    span, *steps = text.split("/")
    if len(steps) > 1:
        raise MalformedTriggerError(f"{where}: more than one step")
    free = span in ("*", "?")
    if span == "?" and kind.name not in ("day of month", "day of week"):
        raise MalformedTriggerError(f"{where}: ? stands for a day that is not given, and there is none here: write *")
    if free:
        low, high = kind.low, kind.high
    else:
        ends = [_number(part, kind, where) for part in span.split("-")]
        if len(ends) > 2:
            raise MalformedTriggerError(f"{where}: more than one hyphen")
        low = ends[0]
        high = ends[1] if len(ends) == 2 else kind.high if steps else low
    step = _plain_number(steps[0], where) if steps else 1
    if step == 0:
        raise MalformedTriggerError(f"{where}: a step of 0")
    if low < kind.low or high > kind.high:
        raise MalformedTriggerError(f"{where}: outside of {kind.low} to {kind.high}")
    if low > high:
        raise MalformedTriggerError(f"{where}: a range goes upwards")
    return range(low, high + 1, step), free and step == 1


def _number(text: str, kind: _Kind, where: str) -> int:
    name = text.lower()
    return kind.names[name] if name in kind.names else _plain_number(text, where)


def _plain_number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise MalformedTriggerError(f"{where}: {text!r} is no number")
    return int(text)
