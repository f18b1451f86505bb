"""What to write instead, where an expression is that of another system: a sentence with the right form.

Nothing here makes an expression valid; it only helps to mend one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONG_DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_UNITS = {"second": "s", "minute": "m", "hour": "h", "day": "d", "week": "w", "sec": "s", "min": "m", "hr": "h"}
_ISO = re.compile(r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.IGNORECASE)
_EVERY = re.compile(
    r"(?:every|each)\s+(?P<unit>[a-z]+?)s?(?:\s+(?:at\s+)?(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s*(?P<half>am|pm)?)?"
)
_RATE = re.compile(r"rate\(\s*(\d+)\s+([a-z]+?)s?\s*\)")
_SYSTEMD = re.compile(
    r"(?:([a-z]{3}(?:(?:,|\.\.)[a-z]{3})*)\s+)?\*-\*-(\*|\d{1,2})(?:\s+(\d{1,2}|\*):(\d{2})(?::(\d{2}))?)?"
)
_QUOTES = "\"'`"
_WORDS = {
    "hourly": "@hourly, or the expression 0 * * * *",
    "daily": "@daily, or the expression 0 0 * * *",
    "nightly": "@daily, or the expression 0 2 * * *",
    "weekly": "@weekly, or the expression 0 0 * * 0",
    "monthly": "@monthly, or the expression 0 0 1 * *",
    "yearly": "0 0 1 1 *",
    "annually": "0 0 1 1 *",
    "quarterly": "0 0 1 1,4,7,10 *",
    "semiannually": "0 0 1 1,7 *",
    "minutely": "* * * * *",
    "weekdays": "0 0 * * 1-5",
    "workdays": "0 0 * * 1-5",
    "weekends": "0 0 * * 0,6",
    "every_minute": "* * * * *",
    "every_second": "@every 1s",
    "fortnightly": "a trigger of type @every with the arguments 2w, and an anchor",
    "biweekly": "a trigger of type @every with the arguments 2w, and an anchor",
}


def advice(text: str) -> str:
    """Return what to write instead of a cron expression that is not understood; empty where nothing comes to mind."""
    text = text.strip()
    if text[:1] in _QUOTES and text:
        return f"write it without quotes: {text.strip(_QUOTES)}"
    plain = " ".join(re.sub("[\u2010-\u2015]", "-", text).split())
    for look in (_word, _wrapped, _duration, _systemd, _calendar, _fields):
        if found := look(plain):
            return found
    return ""


def _word(text: str) -> str:
    word = text.lower().removeprefix("@").replace(" ", "_")
    if word in ("reboot", "restart", "startup"):
        return "nothing fires at a start: push a job from the program that starts"
    if word in ("manual", "none", "never", "off"):
        return "a trigger that only people fire is of type @client, or `disabled`"
    return f"write {_WORDS[word]}" if word in _WORDS else ""


def _wrapped(text: str) -> str:
    """AWS: `cron(0 12 * * ? *)`, minutes first, with a year; Sunday is 1."""
    found = re.fullmatch(r"cron\((.*)\)", text, re.IGNORECASE)
    if not found:
        return ""
    parts = found[1].split()
    if len(parts) == 6:
        parts = [*parts[:4], _from_one(parts[4])]
    fields = " ".join("*" if part == "?" else part for part in parts)
    return f"write the fields alone, minutes first, without the year: {fields}" if len(parts) == 5 else _ONLY_FIELDS


_ONLY_FIELDS = "write the fields alone: minute, hour, day of month, month, day of week; seconds may come first"


def span(text: str) -> str:
    """Return the duration that a text such as `every 12 hours`, `PT1H` or `rate(1 day)` means; empty for none."""
    lower = " ".join(text.lower().split()).removeprefix("@every_").removeprefix("@every").strip()
    if found := _RATE.fullmatch(lower):
        return found[1] + _UNITS.get(found[2], "") if found[2] in _UNITS else ""
    if (found := _ISO.fullmatch(text.strip().removeprefix("R/"))) and len(text.strip()) > 2:
        units = zip(found.groups(), ("w", "d", "h", "m", "s"), strict=True)
        return "".join(f"{number}{unit}" for number, unit in units if number)
    if found := re.fullmatch(r"(?:(?:every|each)\s+)?(?:(\d+)\s*)?([a-z]+?)s?", lower):
        number, unit = found.groups()
        short = _UNITS.get(unit) or (unit if number and unit in _UNITS.values() else None)
        return f"{number or 1}{short}" if short else ""
    return ""


def time_advice(text: str) -> str:
    """Return what to write instead of a time that is not RFC 3339; empty where nothing comes to mind."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return ""
    zone = "" if time.tzinfo is not None else "Z"
    return f"write {time.isoformat()}{zone}" + (", if that is meant in UTC" if zone else "")


def _duration(text: str) -> str:
    lower = text.lower()
    found = _EVERY.fullmatch(lower)
    unit = found["unit"] if found else ""
    if found and found["hour"] is not None and (unit == "day" or unit[:3] in _DAYS):
        half = found["half"]
        hour = int(found["hour"]) % 12 + 12 * (half == "pm") if half else int(found["hour"])
        return f"write {int(found['minute'] or 0)} {hour} * * {'*' if unit == 'day' else _DAYS.index(unit[:3])}"
    if unit in _LONG_DAYS or unit in _DAYS:
        return f"write 0 0 * * {_DAYS.index(unit[:3])}"
    if unit == "month":
        return "write 0 0 1 * *, or a trigger of type @monthly"
    if duration := span(text):
        return f"write a trigger of type @every with the arguments {duration}"
    if lower.startswith(("rrule:", "freq=")):
        return "a recurrence rule is not understood: write a cron expression, or @every with an anchor"
    return ""


def _systemd(text: str) -> str:
    found = _SYSTEMD.fullmatch(text.lower())
    if not found:
        return ""
    days, day, hour, minute, second = found.groups()
    week = "*" if days is None else days.replace("..", "-")
    fields = [str(int(second or 0)), str(int(minute or 0)), "*" if hour == "*" else str(int(hour or 0))]
    return f"write {' '.join([*fields, '*' if day == '*' else str(int(day)), '*', _unwrapped(week)])}"


def _calendar(text: str) -> str:
    """`09:00`, `Mon 09:00`, `monday at 9`."""
    found = re.fullmatch(r"(?:([a-z]+)\s+(?:at\s+)?)?(\d{1,2}):(\d{2})(?::(\d{2}))?", text.lower())
    if not found:
        return ""
    day, hour, minute, second = found.groups()
    if day is not None and day[:3] not in _DAYS:
        return ""
    week = "*" if day is None else str(_DAYS.index(day[:3]))
    seconds = [str(int(second))] if second and int(second) else []
    return f"write {' '.join([*seconds, str(int(minute)), str(int(hour)), '*', '*', week])}"


def _fields(text: str) -> str:
    parts = text.split()
    if re.search(r"\bH\b", text):
        return (
            "H is Jenkins' own: write a number, or a trigger of type @hourly or @daily, which are spread by themselves"
        )
    if len(parts) > 5 and re.fullmatch(r"[A-Z][A-Za-z_]+/[A-Za-z_/]+|UTC|GMT", parts[-1]):
        return f"write the zone into the field timezone: {' '.join(parts[:-1])}, and {parts[-1]}"
    if len(parts) > 5 and re.match(r"[/~.a-z]", parts[5]) and not re.match(r"[a-z]{3}([-,#L]|$)", parts[5]):
        return f"write the schedule alone, without a command: {' '.join(parts[:5])}"
    if len(parts) == 7:
        kept = ["*" if one == "?" else one for one in [*parts[:5], _from_one(parts[5])]]
        return f"a year cannot be given, and Sunday is 0 here: write {' '.join(kept)}"
    if len(parts) == 6 and re.fullmatch(r"\d{4}(-\d{4})?|\*", parts[5]) and "?" in parts[:5]:
        kept = ["*" if one == "?" else one for one in parts[:5]]
        return f"a year cannot be given: write {' '.join([*kept[:4], _from_one(kept[4])])}"
    if len(parts) not in (5, 6):
        return _ONLY_FIELDS if len(parts) > 1 else ""
    mended = [*parts[:-1], _unwrapped(parts[-1].lower())]
    ends: tuple[tuple[int, Callable[[str], str]], ...] = ((-3, _day), (-2, _month), (-4, _hour), (-5, _minute))
    for at, mend in ends:
        mended[at] = mend(mended[at].lower())
    return f"write {' '.join(mended)}" if [one.lower() for one in parts] != mended else ""


def _unwrapped(field: str) -> str:
    """Return the field of days of the week with Sunday as 0, names as such, and no range that goes over its end."""
    for number, name in enumerate(_LONG_DAYS):
        field = re.sub(rf"\b{name}s?\b", _DAYS[number], field)
    parts: list[str] = []
    for part in field.split(","):
        found = re.fullmatch(r"([0-7]|[a-z]{3})-([0-7]|[a-z]{3})", part)
        ends = [_number(one) for one in found.groups()] if found else []
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None and (ends[0] > ends[1] or 7 in ends):
            last = ends[1] if ends[1] >= ends[0] else ends[1] + 7
            parts += [str(day % 7) for day in range(ends[0], last + 1)]
        else:
            parts.append(re.sub(r"(?<![\d/#])7(?!\d)", "0", part))
    return ",".join(parts)


def _number(day: str) -> int | None:
    return int(day) if day.isdigit() else _DAYS.index(day) if day in _DAYS else None


def _from_one(field: str) -> str:
    """Return the field of days of the week of a system in which Sunday is 1, as it is here."""
    return re.sub(r"(?<![\d/#])[1-7](?!\d)", lambda found: str(int(found[0]) - 1), field.lower())


def _day(field: str) -> str:
    return re.sub(r"\b(?:0|00)\b", "1", field) if re.fullmatch(r"0+", field) else field


def _month(field: str) -> str:
    for name in _MONTHS:
        field = re.sub(rf"\b{name}\b", name[:3], field)
    return field


def _hour(field: str) -> str:
    return re.sub(r"(?<![-/\d])24(?![-/\d])", "0", field)


def _minute(field: str) -> str:
    return re.sub(r"(?<![-/\d])60(?![-/\d])", "0", field)
