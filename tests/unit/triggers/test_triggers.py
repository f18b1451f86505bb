"""Triggers, with the present time as an argument."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchjobs.errors import BadDocumentError, MalformedTriggerError, UnknownTriggerError
from couchjobs.triggers.event import EventRules, parse_event
from couchjobs.triggers.every import parse_every
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_new_trigger, parse_trigger
from couchjobs.triggers.once import parse_at, parse_in

DATA = Path(__file__).parents[2] / "data"
ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds: float) -> datetime:
    """So many seconds after the anchor."""
    return ANCHOR + timedelta(seconds=seconds)


def test_event_rules_when_compared_with_the_reference_then_all_equal() -> None:
    """300 rows, made by the reference implementation."""
    for line in (DATA / "event_rules.jsonl").read_text().splitlines():
        row = json.loads(line)
        event = row["event"]
        try:
            rules = parse_event(row["arguments"])
        except MalformedTriggerError:
            assert row["error"], row
            continue
        assert not row["error"], row
        assert rules.matches(event["type"], event["verb"], event["doc"], event.get("old")) == row["match"], row


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "at least one rule"),
        ("Orders", "no doctype"),
        (".a", "no doctype"),
        ("a..b", "no doctype"),
        ("a.", "no doctype"),
        ("orders:MADE", "no verb"),
        ("orders:CREATED:a:b:c", "more than four parts"),
        ("orders:CREATED::status", "needs values"),
    ],
)
def test_event_when_rule_can_never_fire_then_malformed_with_the_reason(arguments: str, reason: str) -> None:
    """It must not be silent."""
    with pytest.raises(MalformedTriggerError, match=reason):
        parse_event(arguments)


@pytest.mark.parametrize(
    ("arguments", "doc", "matches"),
    [
        ("o::1:n", {"n": 1}, True),
        ("o::1.5:n", {"n": 1.5}, True),
        ("o::true:n", {"n": True}, True),
        ("o::1:n", {"n": "1"}, True),
        ("o::a:n", {"n": ["b", "a"]}, True),
        ("o::a:n.m", {"n": {"m": "a"}}, True),
        ("o::a:n.m", {"n": "a"}, False),
        ("o::null:n", {"n": None}, False),
        ("o::files/1:referenced_by", {"referenced_by": [{"type": "files", "id": "1"}]}, True),
        ("o:ALL", {}, True),
        ("o:", {}, True),
    ],
)
def test_event_when_values_are_compared_then_as_text(arguments: str, doc: dict[str, Any], matches: bool) -> None:
    """Strings as they are, numbers and booleans as JSON writes them, lists by element."""
    assert parse_event(arguments).matches("o", "CREATED", doc, None) is matches


def test_event_when_old_is_gone_then_counts_as_changed() -> None:
    """Compaction took it."""
    assert parse_event("o:UPDATED:!=:n").matches("o", "UPDATED", {"n": 1}, None)
    assert not parse_event("o:UPDATED:!=:n").matches("o", "UPDATED", {"n": 1}, {"n": 1})


@given(st.text(max_size=200))
def test_event_when_any_text_then_rules_or_malformed(text: str) -> None:
    """Nothing else is ever raised."""
    try:
        assert isinstance(parse_event(text), EventRules)
    except MalformedTriggerError:
        pass


def test_every_when_asked_then_ticks_are_periods_from_the_anchor() -> None:
    """The first is one period after it."""
    every = parse_every("2s")
    assert every.next(ANCHOR, ANCHOR) == after(2)
    assert every.next(after(1.9), ANCHOR) == after(2)
    assert every.next(after(2), ANCHOR) == after(4)
    assert every.next(after(-100), ANCHOR) == after(2)
    assert every.latest(after(1.9), ANCHOR) is None
    assert every.latest(after(2), ANCHOR) == after(2)
    assert every.latest(after(9), ANCHOR) == after(8)


@pytest.mark.parametrize(("text", "seconds"), [("300ms", 1), ("90", 90), ("1h30m", 5400)])
def test_every_when_under_a_second_then_a_second(text: str, seconds: float) -> None:
    """A number is of seconds."""
    assert parse_every(text).period.total_seconds() == seconds


@given(st.floats(1, 1e6), st.floats(0, 1e8))
def test_every_when_any_time_then_next_and_latest_agree(period: float, offset: float) -> None:
    """No tick between the latest one and the next one."""
    every = parse_every(f"{period:.3f}")
    time = after(offset)
    latest, following = every.latest(time, ANCHOR), every.next(time, ANCHOR)
    assert following is not None
    assert following > time
    assert following - (latest or ANCHOR) == every.period


@pytest.mark.parametrize("parse", [parse_every, parse_in])
@pytest.mark.parametrize("text", ["", "often", "0s", "-1s", "5 minutes"])
def test_durations_when_senseless_then_malformed(parse: Any, text: str) -> None:
    """With the kind of trigger in the reason."""
    with pytest.raises(MalformedTriggerError, match="@"):
        parse(text)


def test_once_when_its_time_has_come_then_for_a_day() -> None:
    """Later than that it does not fire."""
    at = parse_at("2026-01-01T01:00:00+01:00")
    assert at.next(after(-1), ANCHOR) == ANCHOR
    assert at.next(ANCHOR, ANCHOR) is None
    assert at.latest(after(-1), ANCHOR) is None
    assert at.latest(after(86400), ANCHOR) == ANCHOR
    assert at.latest(after(86401), ANCHOR) is None
    assert parse_in("10s").latest(after(10), ANCHOR) == after(10)
    for text in ("", "tomorrow", "0001-01-01T00:00:00Z", "2026-01-01"):
        with pytest.raises(MalformedTriggerError, match="@at"):
            parse_at(text)


def test_infos_when_read_then_fields_and_unknown_ones() -> None:
    """A document that a cozy-stack wrote."""
    document = {
        "_id": "t",
        "_rev": "1-a",
        "domain": "d",
        "type": "@every",
        "worker": "w",
        "arguments": "1h",
        "debounce": "",
        "message": {"Type": "json", "Data": "eyJ0byI6ICJhbm4ifQ=="},
        "cozyMetadata": {"createdAt": "2026"},
    }
    infos = TriggerInfos.from_document(document)
    assert infos.message == {"to": "ann"}
    assert infos.document() == document
    assert infos.clone().document() == document
    assert infos.match("worker", "w")
    assert infos.match("type", "@every")
    assert not infos.match("type", "@cron")
    assert infos.job_request_with_event({"verb": "CREATED"}).event == {"verb": "CREATED"}
    with pytest.raises(BadDocumentError, match="misfire"):
        TriggerInfos.from_document({**document, "misfire": "sometimes"})


def test_kind_when_unknown_then_says_which_there_are() -> None:
    """Never imported, only looked up."""
    with pytest.raises(UnknownTriggerError, match="@every"):
        parse_trigger(TriggerInfos(type="os.system", worker="w"))


async def test_trigger_objects_when_made_then_the_names_of_the_specification() -> None:
    """`schedule` yields requests until `unschedule`."""
    from couchjobs import Event, EventTrigger, Prefixer, Trigger, new_trigger

    db = Prefixer("d.example", "p")
    event = new_trigger(db, TriggerInfos(id="e", type="@event", arguments="orders:CREATED", worker="w"), {"a": 1})
    assert isinstance(event, EventTrigger)
    assert (event.id, event.type, event.doc_type, event.infos.worker, event.infos.domain) == (
        "e",
        "@event",
        "triggers",
        "w",
        "d.example",
    )
    assert event.match("worker", "w")
    assert event.notify("orders", Event(verb="CREATED", doc={"_id": "x"}))
    assert not event.notify("orders", Event(verb="DELETED", doc={"_id": "x"}))
    event.unschedule()
    (request,) = [request async for request in event.schedule()]
    assert (request.message, request.trigger_id) == ({"a": 1}, "e")
    assert request.event == {"domain": "", "verb": "CREATED", "doc": {"_id": "x"}}
    hook = new_trigger(db, TriggerInfos(id="h", type="@webhook", worker="w"))
    assert type(hook) is Trigger
    hook.fire({"b": 2}, manual=True)
    hook.unschedule()
    assert [(request.payload, request.manual) async for request in hook.schedule()] == [({"b": 2}, True)]
    clock = new_trigger(db, TriggerInfos(id="c", type="@at", arguments="2099-01-01T00:00:00Z", worker="w"))
    clock.unschedule()
    assert [request async for request in clock.schedule()] == []
    soon = new_trigger(db, TriggerInfos(id="s", type="@in", arguments="10ms", worker="w"))
    assert len([request async for request in soon.schedule()]) == 1


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("@every", "5s"), ("@at", "2030-01-01T00:00:00Z"), ("@in", "5s"), ("@cron", "* * * * *"), ("@daily", "")],
)
def test_trigger_when_its_time_zone_is_none_then_refused_by_all_kinds_alike(kind: str, arguments: str) -> None:
    """Also where it would not matter: what a command refuses, it must not have stored."""
    given = {"_id": "t", "type": kind, "arguments": arguments, "worker": "w", "message": None}
    with pytest.raises(MalformedTriggerError, match="no time zone 'Mars/X'"):
        parse_new_trigger(TriggerInfos.from_document({**given, "timezone": "Mars/X"}))
