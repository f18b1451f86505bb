"""Times as text: RFC 3339 in UTC, always with microseconds and Z, so that text order is time order."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_RFC3339 = re.compile(
    r"^(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:[.,](\d+))?(?:([Zz])|([+-])(\d{2}):?(\d{2}))$",
    re.ASCII,
)
_OURS = re.compile(r"^[1-9]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", re.ASCII)
_ZERO_YEAR = 1
_last: tuple[object, str] = object(), ""
"""The time that was formatted last, and its text."""
_LONGEST = 64
"""Characters of a time: the longest with nine digits of a second and an offset has 35."""


class Moment(NamedTuple):
    """The present, by two clocks: durations are for the monotonic one, what people wrote for the other."""

    wall: float
    """Seconds since 1970; people set this clock."""
    monotonic: float
    """Seconds since some time or other; nobody sets this one."""


def moment() -> Moment:
    """Return the present."""
    return Moment(time.time(), time.monotonic())


def now() -> datetime:
    """Return the present time, in UTC."""
    return datetime.now(UTC)


def format_time(instant: datetime) -> str:
    """Return `2026-11-24T08:00:00.000000Z`."""
    global _last  # noqa: PLW0603  the fields that one change sets often hold the same object
    last = _last
    if last[0] is not instant:
        in_utc = instant if instant.tzinfo is UTC else instant.astimezone(UTC)
        last = _last = instant, in_utc.isoformat("T", "microseconds")[:-6] + "Z"
    return last[1]


def parse_time(text: str) -> datetime | None:
    """Return the time that any RFC 3339 text names, in UTC; None for Go's zero time, 0001-01-01T00:00:00Z.

    Nanoseconds are cut to microseconds.

    Raises:
        ValueError: it is not RFC 3339.
    """
    if _OURS.match(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a time: {error}") from error
    found = _RFC3339.match(text) if len(text) <= _LONGEST else None
    if not found:
        raise ValueError(f"{text[:_LONGEST]!r} is not an RFC 3339 time such as 2026-11-24T08:00:00Z")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    micro = int((found[7] or "0")[:6].ljust(6, "0"))
    zone: timezone = UTC
    if found[9]:
        offset = timedelta(hours=int(found[10]), minutes=int(found[11]))
        zone = timezone(offset if found[9] == "+" else -offset)
    if year == _ZERO_YEAR:
        return None
    try:
        return datetime(year, month, day, hour, minute, second, micro, tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a time: {error}") from error


def _read(value: object) -> datetime | None:
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs a zone")
        return value.astimezone(UTC)
    if isinstance(value, str):
        return parse_time(value)
    raise ValueError(f"{value!r} is not an RFC 3339 time such as 2026-11-24T08:00:00Z")


def _read_or_none(value: object) -> datetime | None:
    try:
        return _read(value)
    except ValueError:
        return None


Timestamp = Annotated[
    datetime | None,
    BeforeValidator(_read),
    PlainSerializer(lambda instant: None if instant is None else format_time(instant)),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A field of a document that holds a time, or nothing."""

TimestampOrNone = Annotated[
    datetime | None,
    BeforeValidator(_read_or_none),
    PlainSerializer(lambda instant: None if instant is None else format_time(instant)),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A field that only couchjobs writes: what others have put there is theirs, and says nothing."""
