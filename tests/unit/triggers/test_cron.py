"""@cron and the periodic triggers, compared with reference answers and with their definition."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couchjobs.errors import MalformedTriggerError
from couchjobs.timestamps import parse_time
from couchjobs.triggers.cron import CronTrigger, parse_cron
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.periodic import parse_periodic, parse_window
from couchjobs.triggers.schedule import Schedule

DATA = Path(__file__).parents[2] / "data"
ZONES = ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia", "America/St_Johns"]
YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of reference answers."""
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def ticks(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    """The next ticks, at most so many."""
    found: list[datetime] = []
    tick: datetime | None = after
    while len(found) < count and (tick := schedule.next(tick, after)) is not None:
        found.append(tick)
    return found


def test_cron_when_compared_with_the_reference_then_all_equal() -> None:
    """1,000 rows, made by robfig/cron v3."""
    for row in rows("cron_oracle.jsonl"):
        try:
            schedule = parse_cron(row["spec"], None)
        except MalformedTriggerError:
            assert row["error"], row
            continue
        assert not row["error"], row
        after = parse_time(row["after"])
        assert after is not None
        assert [f"{tick:%Y-%m-%dT%H:%M:%SZ}" for tick in ticks(schedule, after, 4)] == row["next"], row


def test_periodic_when_compared_with_the_reference_then_windows_are_equal_and_ticks_inside() -> None:
    """150 rows; one tick in each period."""
    for row in rows("periodic.jsonl"):
        infos = TriggerInfos(type=row["type"], arguments=row["arguments"], worker="w", domain="d")
        try:
            window = parse_window(row["type"], row["arguments"])
        except MalformedTriggerError:
            assert row["error"], row
            continue
        assert not row["error"], row
        assert (window.after, window.before) == (row["after_hour"], row["before_hour"])
        found = ticks(parse_periodic(infos), YEAR, 10)
        assert len(found) == 10
        for tick in found:
            assert row["after_hour"] <= tick.hour < row["before_hour"]
            assert row["type"] != "@weekly" or tick.isoweekday() % 7 in row["days_of_week"]
            assert row["type"] != "@monthly" or tick.day in row["days_of_month"]
        periods = {"@hourly": "%Y%m%d%H", "@daily": "%Y%m%d", "@weekly": "%G%V", "@monthly": "%Y%m"}
        assert len({tick.strftime(periods[row["type"]]) for tick in found}) == 10


def test_periodic_when_there_are_many_triggers_then_spread_evenly() -> None:
    """10,000 of them over the hours of a day."""
    hours = Counter(
        parse_periodic(TriggerInfos(type="@daily", worker="w", domain="d", message=n)).fields.hour[0]
        for n in range(10_000)
    )
    assert len(hours) == 24
    assert min(hours.values()) > 330
    assert max(hours.values()) < 510


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("* * *", "3 fields"),
        ("60 * * * * *", "outside of 0 to 59"),
        ("* * * * * 7", "outside of 0 to 6"),
        ("5-2 * * * * *", "goes upwards"),
        ("*/0 * * * * *", "a step of 0"),
        ("a * * * * *", "no number"),
        ("1-2-3 * * * * *", "more than one hyphen"),
        ("1/2/3 * * * * *", "more than one step"),
        (", * * * * *", "nothing in it"),
        ("@fortnightly", "no descriptor"),
        ("TZ=Mars/Phobos * * * * *", "no time zone"),
    ],
)
def test_cron_when_malformed_then_which_field_and_why(spec: str, reason: str) -> None:
    """The reason names the field."""
    with pytest.raises(MalformedTriggerError, match=reason):
        parse_cron(spec, None)


@given(st.text(alphabet="0123456789*/-,? @TZ=adhlmnoruwy", max_size=40) | st.text(max_size=60))
def test_cron_when_any_text_then_a_schedule_or_malformed(text: str) -> None:
    """Nothing else is ever raised, neither by parsing nor by asking for a tick."""
    try:
        schedule = parse_cron(text, None)
    except MalformedTriggerError:
        return
    tick = schedule.next(YEAR, YEAR)
    assert tick is None or tick > YEAR


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("spec", ["0 30 2 * * *", "0 0 2,14 * * *", "0 15 1 * * *", "0 45 23 * * *", "0 0 0 * * *"])
def test_cron_when_clocks_change_then_each_local_time_once(zone: str, spec: str) -> None:
    """Over a year: one tick a local time, in order; one that does not exist comes right after the gap."""
    schedule = parse_cron(spec, zone)
    assert isinstance(schedule, CronTrigger)
    info = ZoneInfo(zone)
    found: list[datetime] = []
    tick: datetime | None = YEAR
    while (tick := schedule.next(tick, YEAR)) is not None and tick < YEAR + timedelta(days=365):
        found.append(tick)
    days = Counter(tick.astimezone(info).date() for tick in found)
    per_day = len(schedule.fields.hour)
    assert len(days) >= 364
    assert all(count == per_day for day, count in list(days.items())[1:-1])
    for tick in found:
        local = tick.astimezone(info)
        in_schedule = local.hour in schedule.fields.hour and local.minute in schedule.fields.minute
        just_before = (tick - timedelta(seconds=1)).astimezone(info)
        after_a_gap = local.replace(tzinfo=None) - just_before.replace(tzinfo=None) > timedelta(minutes=10)
        assert in_schedule or after_a_gap
        meant = datetime.fromisoformat(schedule.slot(tick))  # the local time that the gap has swallowed
        assert meant.hour in schedule.fields.hour
        assert meant.minute in schedule.fields.minute


@pytest.mark.parametrize("zone", ZONES)
def test_cron_when_hourly_then_every_real_hour(zone: str) -> None:
    """Gaps and repetitions of local time change nothing but, where offsets are of half an hour, the minute."""
    schedule = parse_cron("0 0 * * * *", zone)
    found = ticks(schedule, YEAR, 365 * 24)
    gaps = {(later - earlier).total_seconds() for earlier, later in pairwise(found)}
    assert gaps <= {3600.0, 1800.0, 5400.0}
    if zone != "Australia/Lord_Howe":
        assert gaps == {3600.0}


@settings(max_examples=60)
@given(
    st.sampled_from(["*/7 * * * * *", "0 30 2 * * *", "0 0 * * * *", "0 0 0 1 * *", "5 4 3 * * 1-5"]),
    st.sampled_from(ZONES),
    st.integers(0, 365 * 86400),
)
def test_cron_when_asked_for_the_latest_then_no_tick_is_between_it_and_now(spec: str, zone: str, offset: int) -> None:
    """`latest` and `next` agree."""
    schedule = parse_cron(spec, zone)
    time = YEAR + timedelta(seconds=offset)
    anchor = time - timedelta(days=40)
    latest = schedule.latest(time, anchor)
    assert latest is not None
    assert anchor < latest <= time
    following = schedule.next(latest, anchor)
    assert following is not None
    assert following > time
    assert schedule.latest(time, time) is None


def test_kinds_when_fired_on_demand_then_no_schedule() -> None:
    """@webhook and @client; a @client trigger has the worker of clients, whatever it names, or nothing."""
    assert isinstance(parse_trigger(TriggerInfos(type="@webhook", worker="w")), OnDemand)
    for named in ({"worker": "client"}, {"worker": "w"}, {}):
        infos = TriggerInfos.from_document({"_id": "t", "type": "@client", **named})
        assert isinstance(parse_trigger(infos), OnDemand)
        assert infos.worker == "client"
        assert infos.document() == {"_id": "t", "type": "@client", **named}
