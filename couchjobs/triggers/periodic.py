"""@hourly, @daily, @weekly and @monthly: one moment in each period, inside a window.

    @hourly  between 8am and 6pm      each hour from 8 to 17
    @daily   before 5am               each day, from 0:00 to 4:59
    @weekly  on mon,wed-fri after 10pm
    @monthly on the 1-5,16

The moment is chosen by a digest of tenant, id, worker and message as they were when the trigger was first seen: the
same on every daemon, after every restart and after every edit, and spread evenly over many triggers. Where a month is
too short for each of the days of @monthly, its last day is meant. A later clause overrules an earlier one of its kind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.cron import CronTrigger
from couchjobs.triggers.cron_fields import CronFields, Day
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.zones import parse_zone

_HOUR = re.compile(r"^(1[0-2]|[1-9])(am|pm)$")
_WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_GROUPS = {"weekday": (1, 2, 3, 4, 5), "weekend": (6, 0)}
_ALL = {
    "second": tuple(range(60)),
    "minute": tuple(range(60)),
    "hour": tuple(range(24)),
    "day_of_month": tuple(range(1, 32)),
    "month": tuple(range(1, 13)),
    "day_of_week": tuple(range(7)),
}
_LAST_DAY_OF_EVERY_MONTH = 28
PERIODIC = ("@hourly", "@daily", "@weekly", "@monthly")


@dataclass(frozen=True, slots=True)
class Window:
    """Hours from `after` up to, and without, `before`; days of the week from Sunday, 0; days of the month."""

    after: int = 0
    before: int = 24
    days_of_week: tuple[int, ...] = tuple(range(7))
    days_of_month: tuple[int, ...] = tuple(range(1, _LAST_DAY_OF_EVERY_MONTH + 1))


def parse_window(kind: str, arguments: str) -> Window:
    """Return the window that the arguments of a trigger of that kind name; all of the period where there are none.

    Raises:
        MalformedTriggerError: a word that is not understood, or a window with no hour in it.
    """
    words = arguments.split()
    window = Window()
    while words:
        window = _parse_clause(kind, words, window)
    if window.after >= window.before:
        raise MalformedTriggerError(f"{kind} {arguments!r}: the window ends before it begins")
    return window


def _parse_clause(kind: str, words: list[str], window: Window) -> Window:
    word = words.pop(0)
    match word:
        case "before":
            return replace(window, before=_hour(kind, words) or 24)
        case "after":
            return replace(window, after=_hour(kind, words))
        case "between":
            window = replace(window, after=_hour(kind, words))
            if words[:1] == ["and"]:
                words.pop(0)
                window = replace(window, before=_hour(kind, words) or 24)
            return window
        case "on" if kind == "@weekly":
            return replace(window, days_of_week=_list(kind, words, _weekdays))
        case "on" if kind == "@monthly" and words[:1] == ["the"]:
            words.pop(0)
            return replace(window, days_of_month=_list(kind, words, _days_of_month))
        case _:
            raise MalformedTriggerError(f"{kind}: {word!r} is not understood here: {_HELP[kind]}")


_HOURS_HELP = "before 5am, after 10pm, between 8am and 6pm"
_HELP = {
    "@hourly": _HOURS_HELP,
    "@daily": _HOURS_HELP,
    "@weekly": f"{_HOURS_HELP}, on mon,wed-fri, on weekday, on weekend",
    "@monthly": f"{_HOURS_HELP}, on the 1-5,16",
}


def _hour(kind: str, words: list[str]) -> int:
    word = words.pop(0) if words else ""
    found = _HOUR.match(word)
    if not found:
        raise MalformedTriggerError(f"{kind}: {word!r} is no hour: write one such as 5am, 12pm")
    return int(found[1]) % 12 + (12 if found[2] == "pm" else 0)


def _list(kind: str, words: list[str], parse: Callable[[str], tuple[int, ...] | None]) -> tuple[int, ...]:
    word = words.pop(0) if words else ""
    days: set[int] = set()
    for part in word.split(","):
        found = parse(part)
        if found is None:
            raise MalformedTriggerError(f"{kind}: {part!r} in {word!r} is no day: {_HELP[kind]}")
        days.update(found)
    return tuple(sorted(days))


def _weekdays(text: str) -> tuple[int, ...] | None:
    if text in _GROUPS:
        return _GROUPS[text]
    ends = [_weekday(name) for name in text.split("-")]
    if len(ends) == 1 and ends[0] is not None:
        return (ends[0],)
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return tuple(day % 7 for day in range(ends[0], ends[1] + (7 if ends[1] < ends[0] else 0) + 1))


def _weekday(text: str) -> int | None:
    for number, name in enumerate(_WEEKDAYS):
        if text in (name, name[:3]):
            return number
    return None


def _days_of_month(text: str) -> tuple[int, ...] | None:
    found = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", text, re.ASCII)
    if not found:
        return None
    low, high = int(found[1]), int(found[2] or found[1])
    return tuple(range(low, high + 1)) if 1 <= low <= high <= 31 else None


@dataclass(frozen=True, slots=True)
class PeriodicTrigger(CronTrigger):
    """One tick in each period; `seed` chooses the moment, and is stored, so that an edit of a message moves nothing."""

    kind: str = "@daily"
    window: Window = Window()
    seed: str = ""

    @property
    def meaning(self) -> str:
        """Return its window, without the moment that was chosen."""
        return f"{self.kind[1:]} {self.window} {self.zone.key}"

    @property
    def family(self) -> str:
        """Return its kind, and its zone."""
        return f"{self.kind} {self.zone.key}"

    def slot(self, tick: datetime) -> str:
        """Return the period."""
        local = self.local(tick)
        if self.kind == "@hourly":
            return (tick - timedelta(minutes=local.minute)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M")
        return local.strftime({"@daily": "%Y-%m-%d", "@weekly": "%G-W%V", "@monthly": "%Y-%m"}[self.kind])


def parse_periodic(infos: TriggerInfos, seed: str = "") -> PeriodicTrigger:
    """Return the schedule of an @hourly, @daily, @weekly or @monthly trigger.

    Args:
        infos: the trigger.
        seed: 64 hexadecimal digits that choose the moment; where empty, a digest of tenant, id, worker and message.

    Raises:
        MalformedTriggerError: the window or the time zone cannot be understood.
    """
    window = parse_window(infos.type, infos.arguments)
    seed = seed or _digest_of(infos)
    pick = _Picker(seed)
    chosen: dict[str, Any] = {"minute": (pick(range(60)),), "second": (pick(range(60)),)}
    hours = tuple(range(window.after, window.before))
    chosen["hour"] = hours if infos.type == "@hourly" else (pick(hours),)
    if infos.type == "@weekly":
        chosen["day_of_week"] = (pick(window.days_of_week),)
    elif infos.type == "@monthly":
        in_every_month = [day for day in window.days_of_month if day <= _LAST_DAY_OF_EVERY_MONTH]
        day = pick(in_every_month or window.days_of_month)
        if in_every_month:
            chosen["day_of_month"] = (day,)
        else:  # no month may be left out
            chosen |= {"day_of_month": (), "days": (Day("until", day),)}
    zone = parse_zone(infos.timezone)
    fields = CronFields(**(_ALL | chosen), both_days=True)
    return PeriodicTrigger(fields, zone, kind=infos.type, window=window, seed=seed)


def _digest_of(infos: TriggerInfos) -> str:
    identity = [infos.prefix or "", infos.id, infos.worker, infos.message]
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()


class _Picker:
    """Picks from sequences, evenly, by a large number."""

    def __init__(self, seed: str) -> None:
        self._number = int(seed, 16)

    def __call__(self, choices: range | list[int] | tuple[int, ...]) -> int:
        self._number, index = divmod(self._number, len(choices))
        return choices[index]
