"""How values are written on pages: times, durations, JSON, and what documents say, which is text and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import orjson
from markupsafe import Markup, escape

from couchjobs.log import plain
from couchjobs.timestamps import now, parse_time

_MOST_SHOWN = 20_000
"""Characters of a value that a page shows; the rest is in the document."""
_LEAST_S = 0.0001
_STEPS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def segment(value: object) -> str:
    """Return a value as one segment of a path."""
    return quote(str(value).encode("utf-8", "replace"), safe="")


def shown(value: object) -> str:
    """Return what a document says as text: control characters can be seen, and do nothing."""
    return plain(str(value))


def shown_lines(value: object) -> str:
    """Return a text of several lines, as `shown`."""
    return "\n".join(shown(line) for line in str(value).splitlines())


def moment(value: datetime | str | None) -> Markup:
    """Return a time: how far from now, the exact one at hand; the script tells the reader's own zone."""
    at = _read(value)
    if at is None:
        return escape(shown(value)) if value else Markup('<span class="none">none</span>')
    exact = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, distance(at))


def distance(at: datetime) -> str:
    """Return how far from now a moment is, in words."""
    seconds = (at - now()).total_seconds()
    if abs(seconds) < 1:
        return "now"
    length = duration(abs(seconds), whole=True)
    return f"in {length}" if seconds > 0 else f"{length} ago"


def _read(value: datetime | str | None) -> datetime | None:
    if isinstance(value, datetime):
        return value
    try:
        return parse_time(value) if isinstance(value, str) else None
    except ValueError:
        return None


def duration(seconds: float | None, *, whole: bool = False) -> str:
    """Return a duration with its unit, two of them where it is long."""
    if seconds is None:
        return ""
    if seconds < _LEAST_S and not whole:
        return "< 0.1 ms"
    if seconds < 1 and not whole:
        return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else "1 s"
    if seconds < 60 and not whole:
        return f"{seconds:.3g} s"
    parts: list[str] = []
    left = round(seconds)
    for size, unit in _STEPS:
        if left >= size or (parts and unit == "s" and left):
            parts.append(f"{left // size} {unit}")
            left %= size
        if len(parts) == (1 if whole else 2):
            break
    return " ".join(parts) or "0 s"


def number(value: float | None) -> str:
    """Return a number with its thousands apart."""
    return "" if value is None else f"{value:,}"


def as_json(value: Any) -> str:
    """Return a value as JSON, for reading; the beginning, where it is long."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except (TypeError, ValueError):
        text = repr(value)
    left = len(text) - _MOST_SHOWN
    return text if left <= 0 else f"{text[:_MOST_SHOWN]}\n... and {left:,} characters more"


def in_short(value: Any, most: int = 80) -> str:
    """Return a value in one line, its beginning where it is long."""
    try:
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
    except (TypeError, ValueError):
        text = repr(value)
    text = shown(text[: most + 1].replace("\n", " "))
    return text if len(text) <= most else f"{text[: most - 3]}..."


FILTERS = {
    "segment": segment,
    "shown": shown,
    "shown_lines": shown_lines,
    "moment": moment,
    "duration": duration,
    "number": number,
    "as_json": as_json,
    "in_short": in_short,
}
