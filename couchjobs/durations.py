"""Durations as people write them: seconds, or text in Go's form such as 1h30m."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_MAX_S = float(2**63) / 1e9
_MAX_LENGTH = 100
_DAYS = re.compile(r"(?:(\d{1,6})w)?(?:(\d{1,6})d)?", re.ASCII)
_FORM = "is not a duration: write seconds, or text such as 90s, 1m30s, 1.5h, 300ms, 2d, 1w"


def parse_duration(text: str) -> float:
    """Return the seconds that a text in Go's form names: `300ms`, `1.5h`, `2h45m`, `-10s`, `0`.

    Source: Go, package time, ParseDuration.

    Raises:
        ValueError: it is not in that form, or longer than 292 years.
    """
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    if len(rest) <= _MAX_LENGTH and rest.isascii() | ("µ" in rest) | ("μ" in rest):
        while part := _PART.match(rest, at):
            total += float(part[1]) * _UNITS[part[2]]
            at = part.end()
    if at == 0 or at != len(rest):
        raise ValueError(f"{text[:_MAX_LENGTH]!r} {_FORM}")
    if total > _MAX_S:
        raise ValueError(f"{text!r} is too long for a duration")
    return sign * total


def _with_days(text: str) -> float:
    found = _DAYS.match(text)
    if not found or not found.end():
        return parse_duration(text)
    days = 7.0 * float(found[1] or 0) + float(found[2] or 0)
    try:
        return 86_400.0 * days + (parse_duration(text[found.end() :]) if found.end() < len(text) else 0.0)
    except ValueError:
        raise ValueError(f"{text[:_MAX_LENGTH]!r} {_FORM}") from None


def read_seconds(value: object) -> float:
    """Return the seconds that a setting or option gives: a number of seconds, or text in Go's form.

    Before Go's form there may be weeks and days: `2w`, `1d12h`. A day has 24 hours.

    Raises:
        ValueError: it is neither, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} {_FORM}")  # noqa: TRY004  pydantic takes ValueError for a reason
    if isinstance(value, str):
        text = value.strip()
        seconds = float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text) else _with_days(text)
    else:
        seconds = float(value) if abs(value) < _MAX_S else _MAX_S
    if not 0 <= seconds < _MAX_S:
        raise ValueError(f"{value!r} is not a duration from 0 to 292 years")
    return seconds


def read_age(value: object) -> float:
    """Return the seconds of a duration that says what is old enough to be removed: text with a unit, such as `2w`.

    That 30 means days to one and seconds to another is nothing to find out by what is gone.

    Raises:
        ValueError: it is none, or has no unit.
    """
    seconds = read_seconds(value)
    if not isinstance(value, str) or value.strip()[-1:].isdigit():
        raise ValueError(f"{value!r} has no unit: is it '{value}s', '{value}h' or '{value}d'?")
    return seconds


def format_age(seconds: float) -> str:
    """Return the text of a duration, in the largest unit of which it is a whole number: `14d`, `36h`, `90s`."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


Seconds = Annotated[float, BeforeValidator(read_seconds)]
"""A field that holds a duration in seconds and reads Go's text form too."""
