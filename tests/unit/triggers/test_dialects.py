"""Expressions of other systems, as people write them: each is told what to write instead."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.cron import parse_cron
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger

TOLD = [
    ("0 0 * * 7", "write 0 0 * * 0"),
    ("0 0 * * 1,7", "write 0 0 * * 1,0"),
    ("0 0 * * 5-7", "write 0 0 * * 5,6,0"),
    ("0 0 * * fri-sun", "write 0 0 * * 5,6,0"),
    ("0 0 * * sat-mon", "write 0 0 * * 6,0,1"),
    ("0 0 * * monday", "write 0 0 * * mon"),
    ("0 0 * * Monday-Friday", "write 0 0 * * mon-fri"),
    ("0 0 * * SUNDAY", "write 0 0 * * sun"),
    ("0 0 1 january *", "write 0 0 1 jan *"),
    ("0 24 * * *", "write 0 0 * * *"),
    ("60 * * * *", "write 0 * * * *"),
    ("0 0 0 * *", "write 0 0 1 * *"),
    ("0 0 12 * * ? 2026", "write 0 0 12 * * *"),
    ("0 0 12 ? * MON-FRI *", "write 0 0 12 * * mon-fri"),
    ("0 15 10 ? * 6L 2026-2030", "write 0 15 10 * * 5l"),
    ("0 0 9 ? * 2#1 *", "write 0 0 9 * * 1#1"),
    ("0 12 * * ? *", "write 0 12 * * *"),
    ("15 10 ? * MON-FRI 2026", "write 15 10 * * mon-fri"),
    ("cron(0 12 * * ? *)", "0 12 * * *"),
    ("cron(15 10 ? * 2-6 *)", "15 10 * * 1-5"),
    ("cron(0 8 1 * ? *)", "0 8 1 * *"),
    ("cron(0 8)", "the fields alone"),
    ("rate(5 minutes)", "@every with the arguments 5m"),
    ("rate(1 day)", "@every with the arguments 1d"),
    ("every 12 hours", "@every with the arguments 12h"),
    ("every 5 minutes", "@every with the arguments 5m"),
    ("every 30 sec", "@every with the arguments 30s"),
    ("every hour", "@every with the arguments 1h"),
    ("each 2 days", "@every with the arguments 2d"),
    ("every day at 3am", "write 0 3 * * *"),
    ("every day at 11:30 pm", "write 30 23 * * *"),
    ("every day 00:00", "write 0 0 * * *"),
    ("every monday 09:00", "write 0 9 * * 1"),
    ("every sunday", "write 0 0 * * 0"),
    ("every month", "write 0 0 1 * *"),
    ("5m", "@every with the arguments 5m"),
    ("12 hours", "@every with the arguments 12h"),
    ("PT1H", "@every with the arguments 1h"),
    ("P1D", "@every with the arguments 1d"),
    ("R/PT15M", "@every with the arguments 15m"),
    ("@every 1d", "type @every with the arguments 1d"),
    ("@every5m", "@every with the arguments 5m"),
    ("RRULE:FREQ=DAILY;INTERVAL=2", "recurrence rule"),
    ("*-*-* 06:25:00", "write 0 25 6 * * *"),
    ("Mon *-*-* 00:00:00", "write 0 0 0 * * mon"),
    ("Mon..Fri *-*-* 09:30", "write 0 30 9 * * mon-fri"),
    ("*-*-01 04:00:00", "write 0 0 4 1 * *"),
    ("09:00", "write 0 9 * * *"),
    ("Mon 09:00", "write 0 9 * * 1"),
    ("H H * * *", "Jenkins"),
    ("H/15 * * * *", "Jenkins"),
    ("daily", "write @daily"),
    ("hourly", "write @hourly"),
    ("@weekdays", "write 0 0 * * 1-5"),
    ("@minutely", "write * * * * *"),
    ("@quarterly", "write 0 0 1 1,4,7,10 *"),
    ("@fortnightly", "@every with the arguments 2w"),
    ("@reboot", "push a job"),
    ('"0 0 * * *"', "without quotes: 0 0 * * *"),
    ("0 5 * * * /usr/bin/backup", "without a command: 0 5 * * *"),
    ("0 5 * * * root /usr/bin/backup -x", "without a command: 0 5 * * *"),
    ("30 2 * * * America/New_York", "the field timezone: 30 2 * * *"),
    ("* * * *", "the fields alone"),
    ("? * * * *", "write *"),
]


@pytest.mark.parametrize(("text", "told"), TOLD)
def test_expression_when_of_another_system_then_told_what_to_write(text: str, told: str) -> None:
    """And what is told, where it is an expression, is understood."""
    with pytest.raises(MalformedTriggerError) as error:
        parse_cron(text, None)
    assert told in str(error.value)
    if found := re.search(r"(?:write|:) ((?:[\d*][^ ,]* ){4,5}[^ ,;]+(?:,[^ ]+)?)$", str(error.value)):
        parse_cron(found[1], None)


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("@every", "12 hours", "write 12h"),
        ("@every", "every 5 minutes", "write 5m"),
        ("@in", "PT90M", "write 90m"),
        ("@at", "2026-12-24 18:00", "write 2026-12-24T18:00:00Z, if that is meant in UTC"),
    ],
)
def test_arguments_when_of_another_form_then_told_what_to_write(kind: str, arguments: str, told: str) -> None:
    """Durations and times, too."""
    with pytest.raises(MalformedTriggerError, match=told):
        parse_trigger(TriggerInfos(type=kind, arguments=arguments, worker="w"))


@pytest.mark.parametrize("name", ["localtime", "posixrules", "right/Europe/Paris", "Factory", "posix/UTC"])
def test_zone_when_another_on_each_machine_then_refused(name: str) -> None:
    """It would fire at different times."""
    with pytest.raises(MalformedTriggerError, match="not the same on every machine"):
        parse_cron("0 0 * * *", name)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("0 9 L * *", ["01-31", "02-28", "03-31", "04-30"]),
        ("0 9 L-3 * *", ["01-28", "02-25", "03-28", "04-27"]),
        ("0 9 LW * *", ["01-30", "02-27", "03-31", "04-30"]),
        ("0 9 15W * *", ["01-15", "02-16", "03-16", "04-15"]),
        ("0 9 1W * *", ["01-01", "02-02", "03-02", "04-01"]),
        ("0 9 31W * *", ["01-30", "03-31", "05-29", "07-31"]),
        ("0 9 * * 5#3", ["01-16", "02-20", "03-20", "04-17"]),
        ("0 9 * * fri#3", ["01-16", "02-20", "03-20", "04-17"]),
        ("0 9 * * 5L", ["01-30", "02-27", "03-27", "04-24"]),
        ("0 9 * * 1#5", ["03-30", "06-29", "08-31", "11-30"]),
        ("0 9 1,L * *", ["01-01", "01-31", "02-01", "02-28"]),
        ("0 9 L * 1", ["01-05", "01-12", "01-19", "01-26"]),
    ],
)
def test_day_when_of_the_calendar_then_found(text: str, days: list[str]) -> None:
    """Those of 2026, looked up in a calendar."""
    schedule = parse_cron(text, None)
    tick, found = datetime(2025, 12, 31, 12, tzinfo=UTC), []
    while len(found) < 4:
        following = schedule.next(tick, tick)
        assert following is not None
        tick = following
        found.append(f"{tick:%m-%d}")
    assert found == days
    assert schedule.latest(tick, datetime(2025, 1, 1, tzinfo=UTC)) == tick


def test_monthly_when_the_days_are_not_in_every_month_then_once_a_month_all_the_same() -> None:
    """Its last day, where a month is too short."""
    for number in range(20):
        infos = TriggerInfos(type="@monthly", arguments="on the 29-31", worker="w", message=number)
        schedule = parse_trigger(infos)
        tick, months = datetime(2026, 1, 1, tzinfo=UTC), []
        for _ in range(24):
            tick = schedule.next(tick, tick)  # type: ignore[union-attr,assignment]
            months.append((tick.year, tick.month))
            assert tick.day >= 28
        assert months == [(year, month) for year in (2026, 2027) for month in range(1, 13)]


def test_next_when_time_ends_then_none() -> None:
    """The year 9999."""
    end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    for text in ("0 0 * * *", "* * * * *", "0 9 L * *"):
        assert parse_cron(text, "Asia/Tokyo").next(end, end) is None
