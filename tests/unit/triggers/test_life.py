"""How schedules live: each row of the table in `triggers/life.py`, and all of them at random."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from couchjobs.scheduler.states import document_of, state_of
from couchjobs.timestamps import format_time
from couchjobs.triggers.cron import CronTrigger
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos, is_disabled
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.life import Life, State, seen
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.periodic import PeriodicTrigger
from couchjobs.triggers.prospects import coming_times, life_of, notes_on
from couchjobs.triggers.schedule import Schedule

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def schedule_of(infos: TriggerInfos) -> Schedule:
    """Its schedule."""
    parsed = parse_trigger(infos)
    assert not isinstance(parsed, EventRules | OnDemand)
    return parsed


class Trigger:
    """A trigger, its stored state, and a daemon that may run or not."""

    def __init__(self, now: datetime = NOON, **fields: Any) -> None:
        self.now = now
        self.fields: dict[str, Any] = {"type": "@every", "arguments": "1h", **fields}
        self.state: State | None = None
        self.fired: list[datetime] = []
        self.ended = ""
        self.watched_since = now
        self.look()

    @property
    def infos(self) -> TriggerInfos:
        """The document."""
        return TriggerInfos.from_document({"_id": "t", "_rev": "1-a", "worker": "w", "message": None, **self.fields})

    @property
    def life(self) -> Life:
        """The schedule as it lives."""
        assert self.state is not None
        return Life(schedule_of(self.infos), self.infos, self.state)

    def look(self) -> list[datetime]:
        """What a daemon does that sees the trigger now: the ticks that it fires."""
        found = seen(self.state, schedule_of(self.infos), self.infos, self.now)
        self.state = state_of(document_of(found, self.infos))
        assert self.state == found, "stored as it was"
        began = len(self.fired)
        while True:
            plan = self.life.plan(self.now, self.watched_since)
            self.state, self.ended = plan.then, self.ended or plan.ended
            if plan.tick is None:
                return self.fired[began:]
            if plan.tick not in self.fired:
                self.fired.append(plan.tick)
            if self.life.schedule.once:
                self.fields["disabled"] = True
                return self.fired[began:]

    def edit(self, **fields: Any) -> list[datetime]:
        """Edit the trigger under a daemon."""
        self.fields.update(fields)
        return self.look()

    def wait(self, time: timedelta, *, watched: bool = True) -> list[datetime]:
        """Let time go by, under a daemon that watches or that sleeps."""
        if watched:
            end, fired = self.now + time, len(self.fired)
            while self.now < end:
                tick = self.life.look(self.now)
                self.now = min(end, tick) if tick is not None and tick > self.now else end
                self.look()
            return self.fired[fired:]
        self.now += time
        self.watched_since = self.now
        return self.look()


def test_edit_when_its_schedule_means_the_same_then_nothing_fires_and_the_rhythm_stays() -> None:
    """A message, a space, a zone that is the default, another way to say an hour."""
    for kind, arguments, other in (
        ("@every", "1h", "60m"),
        ("@hourly", "", " "),
        ("@daily", "before 5am", "before  5am"),
        ("@cron", "0 3 * * *", "0  3 * * * "),
        ("@monthly", "on the 1-5,16", "on the 16,1-5"),
    ):
        trigger = Trigger(type=kind, arguments=arguments)
        trigger.wait(40 * DAY)
        upcoming = trigger.life.coming(trigger.now)
        for edit in ({"message": {"a": 1}}, {"worker": "other"}, {"timezone": "UTC"}, {"arguments": other}):
            assert trigger.edit(**edit) == []
            assert trigger.life.coming(trigger.now) == upcoming, (kind, edit)


def test_daily_when_edited_at_noon_then_nothing_fires_outside_its_window_nor_twice_a_day() -> None:
    """Whatever the message."""
    for number in range(50):
        trigger = Trigger(NOON - 3 * DAY, type="@daily", arguments="before 5am", message=number)
        trigger.wait(3 * DAY)
        trigger.edit(message=-number, arguments="before 6am")
        trigger.wait(3 * DAY)
        assert all(tick.hour < 6 for tick in trigger.fired)
        days = [tick.date() for tick in trigger.fired]
        assert len(days) == len(set(days))


def test_every_when_its_long_period_changes_a_little_then_that_is_another_one() -> None:
    """Thirty days are not thirty days and four seconds; what older versions have stored is the same."""
    trigger = Trigger(arguments="30d")
    trigger.wait(31 * DAY)
    assert trigger.edit(arguments="30d4s") == []
    assert trigger.life.coming(trigger.now) == NOON + 60 * DAY + timedelta(seconds=4)
    assert trigger.state is not None
    trigger.state = replace(trigger.state, meaning="every 2.592e+06s")
    assert trigger.wait(30 * DAY, watched=False) == [NOON + 60 * DAY + timedelta(seconds=4)]
    assert trigger.state.note == ""


def test_missed_when_all_are_wanted_with_a_grace_then_not_more_than_the_limit() -> None:
    """The latest ones."""
    trigger = Trigger(arguments="1s", misfire="all", misfire_limit=3, grace="5s")
    trigger.wait(timedelta(seconds=10))
    before = trigger.now
    late = trigger.wait(timedelta(seconds=12), watched=False)
    assert late == [before + timedelta(seconds=10 + number) for number in range(3)]


def test_daily_when_it_is_something_else_for_a_while_then_still_once_a_day() -> None:
    """As where somebody tries a shorter period for a moment."""
    trigger = Trigger(NOON.replace(hour=0), type="@daily", arguments="before 5am")
    assert len(trigger.wait(6 * HOUR)) == 1
    trigger.edit(type="@every", arguments="5h")
    trigger.edit(type="@daily", arguments="")
    assert trigger.wait(18 * HOUR) == []
    assert len(trigger.wait(DAY)) == 1


def test_prospects_when_disabled_then_none() -> None:
    """Whoever asks."""
    trigger = Trigger(arguments="1h", disabled=True)
    trigger.look()
    assert coming_times(trigger.life, trigger.now, 3) == []


def test_every_when_its_period_changes_then_counted_from_its_last_tick() -> None:
    """And nothing fires at once."""
    trigger = Trigger(arguments="1h")
    trigger.wait(90 * timedelta(minutes=1))
    assert trigger.edit(arguments="24h") == []
    assert trigger.life.coming(trigger.now) == NOON + HOUR + DAY
    assert trigger.edit(arguments="20m") == []
    assert trigger.life.coming(trigger.now) == NOON + HOUR + timedelta(minutes=40)


def test_in_when_mistyped_and_mended_then_counted_from_when_it_was_first_seen() -> None:
    """It takes three days all the same."""
    trigger = Trigger(type="@in", arguments="72h")
    trigger.wait(DAY)
    trigger.edit(arguments="720h")
    trigger.edit(arguments="72h")
    assert trigger.wait(3 * DAY) == [NOON + 3 * DAY]


def test_disabled_when_enabled_again_then_nothing_late_and_the_old_rhythm() -> None:
    """Whether or not a daemon ran when it was disabled."""
    trigger = Trigger(arguments="1h")
    trigger.wait(HOUR)
    trigger.edit(disabled=True)
    assert trigger.wait(150 * timedelta(minutes=1), watched=False) == []
    assert trigger.edit(disabled=False) == []
    assert trigger.life.coming(trigger.now) == NOON + 4 * HOUR


def test_single_tick_when_its_time_passes_while_disabled_then_it_ends_and_says_why() -> None:
    """It does not fire when it is enabled."""
    trigger = Trigger(type="@at", arguments=format_time(NOON + HOUR))
    trigger.edit(disabled=True)
    trigger.wait(2 * HOUR)
    assert trigger.edit(disabled=False) == []
    assert "while it was disabled" in trigger.ended


@pytest.mark.parametrize(
    ("fields", "late", "fires"),
    [
        ({}, 23 * HOUR, True),
        ({}, 25 * HOUR, False),
        ({"grace": "30h"}, 25 * HOUR, True),
        ({"grace": "1h"}, 2 * HOUR, False),
        ({"misfire": "skip"}, timedelta(seconds=4), True),
        ({"misfire": "skip"}, timedelta(seconds=6), False),
    ],
)
def test_single_tick_when_late_then_fires_or_ends_visibly(fields: dict[str, Any], late: timedelta, fires: bool) -> None:
    """It never becomes a ghost."""
    trigger = Trigger(type="@at", arguments=format_time(NOON - late), **fields)
    assert (trigger.fired == [NOON - late]) is fires
    assert bool(trigger.ended) is not fires


@pytest.mark.parametrize(("fields", "fires"), [({"misfire": "skip"}, True), ({"grace": "1s"}, False)])
def test_single_tick_when_a_daemon_watched_and_is_late_then_it_fires(fields: dict[str, Any], fires: bool) -> None:
    """Another one had the first right and has died, or CouchDB did not answer; what somebody says of that holds."""
    trigger = Trigger(type="@at", arguments=format_time(NOON + HOUR), **fields)
    trigger.now += HOUR + timedelta(seconds=20)
    assert (trigger.look() == [NOON + HOUR]) is fires
    assert bool(trigger.ended) is not fires


def test_missed_when_a_laptop_sleeps_then_one_late_job_and_the_others_counted() -> None:
    """Eight hours of ticks each quarter of an hour."""
    trigger = Trigger(arguments="15m")
    trigger.wait(HOUR)
    assert trigger.wait(8 * HOUR + timedelta(minutes=1), watched=False) == [NOON + 9 * HOUR]
    assert trigger.state is not None
    assert trigger.state.missed == 31
    assert trigger.wait(timedelta(minutes=15)) == [NOON + 9 * HOUR + timedelta(minutes=15)]


def test_missed_when_skip_all_or_grace_then_as_they_say() -> None:
    """`skip` none, `all` each one but at most so many, `grace` none that is later."""
    asleep = 5 * HOUR + timedelta(minutes=1)
    assert Trigger(misfire="skip").wait(asleep, watched=False) == []
    assert Trigger(misfire="all").wait(asleep, watched=False) == [NOON + number * HOUR for number in range(1, 6)]
    limited = Trigger(misfire="all", misfire_limit=2)
    assert limited.wait(asleep, watched=False) == [NOON + 4 * HOUR, NOON + 5 * HOUR]
    assert limited.state is not None
    assert limited.state.missed == 3
    assert Trigger(grace="30s").wait(asleep, watched=False) == []
    assert Trigger(misfire="all", grace="90m").wait(asleep, watched=False) == [NOON + 4 * HOUR, NOON + 5 * HOUR]
    assert Trigger(misfire="skip", grace="10m").wait(asleep, watched=False) == [NOON + 5 * HOUR]


def test_outage_when_somebody_watched_then_every_tick_fires() -> None:
    """Late, but not missed."""
    trigger = Trigger(arguments="10s")
    trigger.now += timedelta(seconds=45)
    assert len(trigger.look()) == 4


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), DAY])
def test_state_when_ahead_of_the_clock_then_told_and_begun_anew(ahead: timedelta) -> None:
    """A daemon's clock was wrong for a while."""
    for kind, arguments in (("@every", "1m"), ("@cron", "* * * * *"), ("@daily", "")):
        trigger = Trigger(NOON + ahead, type=kind, arguments=arguments)
        trigger.wait(2 * DAY)
        trigger.now = trigger.watched_since = NOON
        trigger.look()
        assert trigger.state is not None
        assert "ahead of the clock" in trigger.state.note
        assert trigger.life.coming(trigger.now) is not None
        assert trigger.life.coming(trigger.now) <= NOON + DAY


def test_local_time_when_zone_data_of_daemons_differ_then_fires_once() -> None:
    """The second daemon believes that summer time begins an hour off."""
    trigger = Trigger(type="@cron", arguments="0 9 * * *", timezone="Europe/Paris")
    trigger.wait(DAY)
    assert len(trigger.fired) == 1
    trigger.fields["timezone"] = "Europe/London"
    stored = document_of(trigger.life.state, trigger.infos)
    london = schedule_of(trigger.infos)
    stored.update(schedule=london.meaning, family=london.family)
    trigger.state = state_of(stored)
    assert trigger.wait(2 * HOUR) == []


def test_bounds_and_anchor_when_given_then_kept() -> None:
    """`starts`, `ends`, and every second week from a day of one's own."""
    monday = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
    trigger = Trigger(
        arguments="2w",
        anchor=format_time(monday),
        starts=format_time(NOON + 10 * DAY),
        ends=format_time(NOON + 40 * DAY),
    )
    assert trigger.wait(100 * DAY) == [monday + 28 * DAY, monday + 42 * DAY]
    assert trigger.life.coming(trigger.now) is None
    assert trigger.edit(starts=format_time(NOON)) == []


@pytest.mark.parametrize(("field", "garbage"), [("slot", "zzzz"), ("slot", "~~"), ("schedule", " "), ("missed", -5)])
def test_state_when_one_field_is_garbage_then_its_trigger_fires_all_the_same(field: str, garbage: Any) -> None:
    """Nothing that somebody writes there silences it."""
    for kind, arguments in (("@cron", "0 9 * * *"), ("@hourly", ""), ("@every", "1h")):
        trigger = Trigger(type=kind, arguments=arguments)
        trigger.wait(2 * DAY)
        trigger.state = state_of({**document_of(trigger.life.state, trigger.infos), field: garbage})
        trigger.look()
        upcoming = trigger.life.coming(trigger.now)
        assert upcoming is not None
        assert upcoming <= trigger.now + DAY
        assert trigger.life.state.missed == 0


def test_prospects_when_enabled_and_no_daemon_has_seen_it_then_the_next_times_and_no_complaint() -> None:
    """What is stored says still that it is paused."""
    trigger = Trigger(type="@cron", arguments="0 9 * * *")
    trigger.edit(disabled=True)
    assert notes_on(life_of(schedule_of(trigger.infos), trigger.infos, trigger.state, NOON), NOON) == ["it is disabled"]
    trigger.fields["disabled"] = False
    life = life_of(schedule_of(trigger.infos), trigger.infos, trigger.state, NOON)
    assert notes_on(life, NOON) == []
    assert len(coming_times(life, NOON, 3)) == 3


@pytest.mark.parametrize("said", [True, 1, "yes"])
def test_disabled_when_said_otherwise_then_disabled(said: Any) -> None:
    """As the field is read."""
    assert is_disabled({"disabled": said})
    assert not is_disabled({"disabled": {"odd": 1}})
    assert not is_disabled({})


def test_previous_tick_when_fired_then_the_one_before() -> None:
    """It is stored."""
    trigger = Trigger()
    trigger.wait(3 * HOUR)
    assert trigger.state is not None
    assert trigger.state.fired == NOON + 3 * HOUR


def test_local_times_when_two_daemons_take_turns_over_a_change_of_clocks_then_each_once(tmp_path: Path) -> None:
    """200 triggers of all kinds; the data of one of them know of no summer time."""
    kinds = [("@cron", f"{minute} {hour} * * *") for minute in (0, 30) for hour in range(24)]
    kinds += [("@daily", f"after {hour}am") for hour in range(1, 12)] + [
        ("@hourly", ""),
        ("@weekly", ""),
        ("@daily", ""),
    ]
    winter = resources.files("tzdata").joinpath("zoneinfo", "Africa", "Algiers").read_bytes()  # CET, all year
    (tmp_path / "zone").write_bytes(winter)
    with (tmp_path / "zone").open("rb") as file:
        other = ZoneInfo.from_file(file, key="Europe/Paris")
    turns = random.Random(1)  # noqa: S311  not a secret
    for number in range(200):
        kind, arguments = kinds[number % len(kinds)]
        begin = datetime(2026, 3, 27, 12, tzinfo=UTC)
        trigger = Trigger(begin, type=kind, arguments=arguments, timezone="Europe/Paris", message=number)
        slots: list[str] = []
        while trigger.now < begin + 5 * DAY:
            schedule = trigger.life.schedule
            assert isinstance(schedule, CronTrigger)
            if turns.random() < 0.5:
                schedule = replace(schedule, zone=other)
            trigger.now += timedelta(minutes=30)
            life = Life(schedule, trigger.infos, trigger.life.state)
            life.schedule = schedule
            while (plan := life.plan(trigger.now, begin)).tick is not None:
                slots.append(schedule.slot(plan.tick) or format_time(plan.tick))
                life.state = plan.then
            trigger.state = state_of(document_of(life.state, trigger.infos))
        assert len(slots) == len(set(slots)), (kind, arguments)
        assert kind != "@cron" or len(slots) in (4, 5, 6), (arguments, slots)


@pytest.mark.parametrize("no_gap_first", [True, False])
def test_local_time_when_it_is_in_a_gap_and_another_daemon_knows_of_none_then_fires_once(
    tmp_path: Path, no_gap_first: bool
) -> None:
    """One fires it at its time, the other behind the gap, which is another time, and the same tick."""
    (tmp_path / "zone").write_bytes(resources.files("tzdata").joinpath("zoneinfo", "Africa", "Algiers").read_bytes())
    with (tmp_path / "zone").open("rb") as file:
        other = ZoneInfo.from_file(file, key="Europe/Paris")
    begin = datetime(2026, 3, 28, 12, tzinfo=UTC)
    trigger = Trigger(begin, type="@cron", arguments="0 30 2 * * *", timezone="Europe/Paris")
    schedule = trigger.life.schedule
    assert isinstance(schedule, CronTrigger)
    without_gap = replace(schedule, zone=other)
    first, second = (without_gap, schedule) if no_gap_first else (schedule, without_gap)
    plan = Life(first, trigger.infos, trigger.life.state).plan(begin + 14 * HOUR, begin)
    assert plan.tick == datetime(2026, 3, 29, 1, 30 if no_gap_first else 0, tzinfo=UTC)
    later = Life(second, trigger.infos, plan.then)
    assert later.plan(begin + 20 * HOUR, begin).tick is None
    following = later.next(begin + 20 * HOUR)
    assert following is not None
    assert following.day == 30


def test_prospects_when_an_hour_is_in_a_gap_then_as_it_fires() -> None:
    """What was moved behind the gap and what comes in that hour anyway are one tick, foretold as one."""
    begin = datetime(2026, 3, 28, 12, tzinfo=UTC)
    trigger = Trigger(begin, type="@hourly", arguments="between 2am and 5am", timezone="Europe/Paris")
    told = coming_times(trigger.life, begin, 4)
    trigger.wait(44 * HOUR)
    assert trigger.fired[:4] == told
    assert len({tick.replace(minute=0, second=0) for tick in told}) == 4


SCHEDULES = st.sampled_from(
    [
        ("@every", "1h"),
        ("@every", "60m"),
        ("@every", "7h"),
        ("@hourly", "between 8am and 6pm"),
        ("@daily", ""),
        ("@daily", "before 5am"),
        ("@weekly", "on mon,thu"),
        ("@monthly", "on the 29-31"),
        ("@cron", "30 2 * * *"),
        ("@cron", "0 */3 * * *"),
        ("@cron", "0 9 L * *"),
    ]
)
TIMES = st.integers(1, 72 * 60).map(lambda minutes: timedelta(minutes=minutes))


class Lives(RuleBasedStateMachine):
    """A trigger in the hands of people, daemons and clocks."""

    def __init__(self) -> None:
        super().__init__()
        self.clock_stepped = False

    @initialize(
        schedule=SCHEDULES,
        misfire=st.sampled_from(["once", "skip", "all"]),
        zone=st.sampled_from([None, "Europe/Paris", "America/New_York"]),
    )
    def begin(self, schedule: tuple[str, str], misfire: str, zone: str | None) -> None:
        self.trigger = Trigger(
            datetime(2026, 3, 27, 20, 17, tzinfo=UTC),
            type=schedule[0],
            arguments=schedule[1],
            misfire=misfire,
            timezone=zone,
        )
        self.garbage = False
        self.gone_until: datetime | None = None
        self.slots: set[tuple[str, str]] = set()
        self.check([])

    def check(self, fired: list[datetime]) -> None:
        """What must hold of each tick."""
        schedule = self.trigger.life.schedule
        for tick in fired:
            assert tick <= self.trigger.now
            assert self.gone_until is None or tick > self.gone_until, "of a time when it did not live or was disabled"
            if isinstance(schedule, PeriodicTrigger):
                assert schedule.window.after <= schedule.local(tick).hour < schedule.window.before
            slot = schedule.slot(tick)
            if slot and not self.clock_stepped:
                assert (schedule.family, slot) not in self.slots, "twice in a period"
            self.slots.add((schedule.family, slot))
        assert self.trigger.fields.get("disabled") or self.trigger.life.overdue(self.trigger.now) is None, "left behind"

    @precondition(lambda self: not self.garbage)
    @rule(time=TIMES)
    def watched(self, time: timedelta) -> None:
        """Each tick fires, none is missed."""
        began, life = self.trigger.now, self.trigger.life
        fired = self.trigger.wait(time)
        self.check(fired)
        if not self.trigger.fields.get("disabled"):
            expected: list[datetime] = []
            tick = life.next(max(began, life.state.passed))
            while tick is not None and tick <= self.trigger.now:
                expected.append(tick)
                life.state = Life(life.schedule, life.infos, life.state)._fire(tick).then
                tick = life.next(tick)
            assert set(expected) <= set(self.trigger.fired), "lost"

    @precondition(lambda self: not self.garbage)
    @rule(time=TIMES, edit=st.sampled_from(["", "message", "space"]))
    def asleep(self, time: timedelta, edit: str) -> None:
        """No daemon runs, or its host sleeps; somebody edits the trigger meanwhile, but for its schedule."""
        life = self.trigger.life
        missed = life._latest(self.trigger.now + time)
        if edit == "message":
            self.trigger.fields["message"] = time.total_seconds()
        elif edit == "space":
            self.trigger.fields["arguments"] += " "
        fired = self.trigger.wait(time, watched=False)
        self.check(fired)
        if self.trigger.fields.get("disabled"):
            assert fired == []
        elif self.trigger.fields["misfire"] == "once":
            assert fired == ([missed] if missed is not None else []) or self.clock_stepped
        elif self.trigger.fields["misfire"] == "all":
            assert missed is None or missed in self.trigger.fired
        else:
            assert all(self.trigger.now - tick <= timedelta(seconds=5) for tick in fired)

    @precondition(lambda self: not self.garbage)
    @rule(
        edit=st.sampled_from(
            [{"message": 1}, {"message": {"a": [2]}}, {"worker": "other"}, {"misfire": "once"}, {"misfire": "all"}]
        )
    )
    def edited(self, edit: dict[str, Any]) -> None:
        """Anything but its schedule."""
        upcoming = self.trigger.life.coming(self.trigger.now)
        assert self.trigger.edit(**edit) == []
        assert self.trigger.life.coming(self.trigger.now) == upcoming, "an edit moves nothing"

    @precondition(lambda self: not self.garbage)
    @rule(schedule=SCHEDULES)
    def rescheduled(self, schedule: tuple[str, str]) -> None:
        """Another schedule: it goes on from now."""
        assert self.trigger.edit(type=schedule[0], arguments=schedule[1]) == []
        self.check([])

    @rule(time=TIMES)
    def mistyped(self, time: timedelta) -> None:
        """Nobody can read it for a while: the daemon keeps what is stored."""
        self.trigger.now += time
        self.trigger.watched_since = self.trigger.now
        self.check(self.trigger.look())

    @precondition(lambda self: not self.garbage)
    @rule(time=TIMES, watched=st.booleans())
    def disabled(self, time: timedelta, watched: bool) -> None:
        """For a while: what comes meanwhile does not fire."""
        assert self.trigger.edit(disabled=True) == []
        self.trigger.wait(time, watched=watched)
        self.gone_until = self.trigger.now
        assert self.trigger.edit(disabled=False) == []

    @rule()
    def made_again(self) -> None:
        """Removed and made again: another life."""
        self.trigger.state = None
        self.gone_until = self.trigger.now
        self.slots.clear()
        assert self.trigger.look() == []

    @rule(ahead=st.sampled_from([timedelta(minutes=10), HOUR, DAY, 40 * DAY]))
    def stepped(self, ahead: timedelta) -> None:
        """A clock that is ahead for a while, and set right."""
        right = self.trigger.now
        self.trigger.now += ahead
        self.trigger.watched_since = self.trigger.now
        self.trigger.look()
        self.trigger.now = self.trigger.watched_since = right + timedelta(minutes=1)
        self.clock_stepped = True
        self.gone_until = None
        self.trigger.look()
        upcoming = self.trigger.life.coming(self.trigger.now)
        fresh = Trigger(self.trigger.now, **self.trigger.fields).life.coming(self.trigger.now)
        assert fresh is None or upcoming is None or upcoming <= fresh + 32 * DAY, "waits for a clock of long ago"


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=int(os.environ.get("COUCHJOBS_TEST_LIVES", "60")), stateful_step_count=20, deadline=None
)
