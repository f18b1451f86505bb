"""The syntax of cron expressions, as robfig/cron v3 reads them, expanded into plain sets of numbers.

Six fields with seconds first; five mean second 0. In a field: `*` or `?`, numbers, names of months and weekdays,
ranges, steps, lists. `N/step` means from N to the end; ranges do not wrap; Sunday is 0. A day field that is `*`, `?` or
`*/1` is free; where neither is free, a day that satisfies one of them is enough.
Source: robfig/cron v3, package documentation, "CRON Expression Format".
"""

from __future__ import annotations

from dataclasses import dataclass

from couchjobs.errors import MalformedTriggerError

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_WEEKDAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_LONGEST = 1000


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
class CronFields:
    """The numbers that each field allows, ascending; `both_days`: a day must satisfy both day fields, else either."""

    second: tuple[int, ...]
    minute: tuple[int, ...]
    hour: tuple[int, ...]
    day_of_month: tuple[int, ...]
    month: tuple[int, ...]
    day_of_week: tuple[int, ...]
    both_days: bool

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
    numbers, free = [], []
    for part, kind in zip(parts, _KINDS, strict=True):
        allowed, is_free = _parse_field(part, kind)
        numbers.append(tuple(sorted(allowed)))
        free.append(is_free)
    second, minute, hour, day_of_month, month, day_of_week = numbers
    return CronFields(second, minute, hour, day_of_month, month, day_of_week, both_days=free[3] or free[5])


def _parse_field(text: str, kind: _Kind) -> tuple[set[int], bool]:
    allowed: set[int] = set()
    free = False
    for part in text.split(","):
        if part:
            numbers, is_free = _parse_range(part, kind)
            allowed.update(numbers)
            free = free or is_free
    if not allowed:
        raise MalformedTriggerError(f"cron field {text!r} ({kind.name}): nothing in it")
    return allowed, free


def _parse_range(text: str, kind: _Kind) -> tuple[range, bool]:
    where = f"cron field {text!r} ({kind.name})"
    span, *steps = text.split("/")
    if len(steps) > 1:
        raise MalformedTriggerError(f"{where}: more than one step")
    free = span in ("*", "?")
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
