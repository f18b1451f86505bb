"""Durations, times, ids, names and messages: what they read, what they refuse."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from couchjobs.durations import parse_duration, read_seconds
from couchjobs.errors import ConfigurationError, MessageNilError, MessageUnmarshalError
from couchjobs.jobs.ids import event_id, new_id, tick_id
from couchjobs.jobs.message import decode_message, new_message, unmarshal
from couchjobs.log import redact
from couchjobs.prefixer import Prefixer, escape
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.event import parse_event


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("300ms", 0.3),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("2h45m", 9900),
        ("-10s", -10),
        ("+.5s", 0.5),
        ("1m0.5s", 60.5),
        ("100ns", 1e-7),
    ],
)
def test_duration_when_in_gos_form_then_seconds(text: str, seconds: float) -> None:
    """Source: Go, time.ParseDuration."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "h", "1x", "1 h", "s1", "1h ", "--1h", "9999999999h", "1e3s", "∞"])
def test_duration_when_malformed_then_value_error(text: str) -> None:
    """What Go refuses, we refuse."""
    with pytest.raises(ValueError, match=r"."):
        parse_duration(text)


@given(st.text(max_size=300))
def test_duration_when_any_text_then_number_or_value_error(text: str) -> None:
    """Nothing else is ever raised."""
    try:
        assert isinstance(parse_duration(text), float)
    except ValueError:
        pass


@pytest.mark.parametrize(("value", "seconds"), [(5, 5), (0.5, 0.5), ("90", 90), ("1m30s", 90), (" 2s ", 2)])
def test_seconds_when_number_or_text_then_seconds(value: Any, seconds: float) -> None:
    """Options hold either."""
    assert read_seconds(value) == seconds


@pytest.mark.parametrize("value", [True, None, [], "soon", -1, "-1s", float("nan"), 1e300])
def test_seconds_when_senseless_then_value_error(value: Any) -> None:
    """And the reason says what can be written."""
    with pytest.raises(ValueError, match="duration"):
        read_seconds(value)


def test_time_when_formatted_then_text_order_is_time_order() -> None:
    """Always with microseconds and Z."""
    assert format_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02T03:04:05.000000Z"
    one, other = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    assert format_time(one) < format_time(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
        ("2026-01-02T03:04:05.123456789Z", "2026-01-02T03:04:05.123456Z"),
        ("2026-01-02T03:04:05.5+02:00", "2026-01-02T01:04:05.500000Z"),
        ("2026-01-02 03:04:05-0530", "2026-01-02T08:34:05.000000Z"),
        ("2026-01-02T03:04:05.000001Z", "2026-01-02T03:04:05.000001Z"),
    ],
)
def test_time_when_rfc3339_then_read(text: str, expected: str) -> None:
    """Nanoseconds and zones included."""
    time = parse_time(text)
    assert time is not None
    assert format_time(time) == expected


def test_time_when_gos_zero_then_absent() -> None:
    """A cozy-stack writes it where there is no time."""
    assert parse_time("0001-01-01T00:00:00Z") is None


@pytest.mark.parametrize(
    "text", ["", "today", "2026-01-02", "2026-13-02T00:00:00Z", "2026-02-30T00:00:00.000000Z", "2026-01-02T03:04:05"]
)
def test_time_when_not_rfc3339_then_value_error(text: str) -> None:
    """A time without a zone is none."""
    with pytest.raises(ValueError, match="time"):
        parse_time(text)


@given(st.text(max_size=60) | st.from_regex(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"))
def test_time_when_any_text_then_time_or_value_error(text: str) -> None:
    """Nothing else is ever raised."""
    try:
        time = parse_time(text)
    except ValueError:
        return
    assert time is None or time.tzinfo is not None


@given(st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_time_when_written_and_read_then_the_same(time: datetime) -> None:
    """To the microsecond."""
    assert parse_time(format_time(time)) == time


def test_new_id_when_made_in_order_then_ordered() -> None:
    """CouchDB's b-tree wants that."""
    ids = [new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)
    assert uuid.UUID(ids[0]).version == 7


def test_tick_id_when_same_tick_then_same_id() -> None:
    """And another for another tick or trigger; all in the order of time."""
    time = now()
    assert tick_id("t", time) == tick_id("t", time)
    assert len({tick_id("t", time), tick_id("u", time), tick_id("t", time + timedelta(seconds=1))}) == 3
    assert tick_id("z", time) < tick_id("a", time + timedelta(seconds=1))
    assert uuid.UUID(tick_id("t", time)).version == 7


@pytest.mark.parametrize("doc_id", ["a", "x" * 500, "with space", "a/b", "é", "\ud800", "-1", "a:b"])
def test_event_id_when_document_id_is_odd_then_still_one_that_couchdb_takes(doc_id: str) -> None:
    """Long and odd ones are digested."""
    made = event_id("orders", doc_id, "1-abc", "trigger")
    assert made == event_id("orders", doc_id, "1-abc", "trigger")
    assert made != event_id("orders", doc_id, "2-abc", "trigger")
    assert made != event_id("bills", doc_id, "1-abc", "trigger")
    assert len(made) < 200
    assert made.isascii()
    assert not made.startswith("_")


@pytest.mark.parametrize(
    ("prefixer", "doctype", "database"),
    [
        (Prefixer("a.example"), "jobs", "jobs"),
        (Prefixer("a.example", "shop"), "io.cozy.jobs", "shop/io-cozy-jobs"),
        (Prefixer("a.example", "cozy.LOCAL:8080"), "jobs", "cozy-local-8080/jobs"),
    ],
)
def test_database_when_named_then_escaped(prefixer: Prefixer, doctype: str, database: str) -> None:
    """Lower case, dots and colons as dashes."""
    assert prefixer.database(doctype) == database


@pytest.mark.parametrize("prefix", ["1st", "_x", "a b", "é", "x" * 300])
def test_database_when_couchdb_allows_no_such_name_then_configuration_error(prefix: str) -> None:
    """Before any request."""
    with pytest.raises(ConfigurationError, match="no name for a database"):
        Prefixer("d", prefix).database("jobs")
    assert escape("A.b:c") == "a-b-c"


class Mail(BaseModel):
    """A message."""

    to: str


def test_message_when_in_the_old_form_then_decoded() -> None:
    """`{"Type": "json", "Data": base64}`, and only that."""
    assert decode_message({"Type": "json", "Data": "eyJ0byI6ICJhbm4ifQ=="}) == {"to": "ann"}
    assert decode_message({"Type": "json", "Data": 5}) == {"Type": "json", "Data": 5}
    assert decode_message([1, {"a": None}]) == [1, {"a": None}]
    with pytest.raises(MessageUnmarshalError, match="base64"):
        decode_message({"Type": "json", "Data": "%"})


def test_unmarshal_when_it_fits_then_a_model() -> None:
    """A pydantic model, or any type that pydantic reads."""
    assert unmarshal({"Type": "json", "Data": "eyJ0byI6ICJhbm4ifQ=="}, Mail) == Mail(to="ann")
    assert unmarshal([1, 2], list[int]) == [1, 2]
    with pytest.raises(MessageNilError):
        unmarshal(None, Mail)
    with pytest.raises(MessageUnmarshalError, match="to: "):
        unmarshal({"to": 5}, Mail)


def test_new_message_when_json_can_hold_it_then_plain() -> None:
    """Models, dataclasses, tuples."""
    assert new_message(Mail(to="ann")) == {"to": "ann"}
    assert new_message((1, "x")) == [1, "x"]
    with pytest.raises(MessageUnmarshalError):
        new_message(object())


def test_redact_when_text_is_long_then_quick_and_cut() -> None:
    """An error text of megabytes must not hold up the daemon."""
    began = time.monotonic()
    for text in ("A" * 10_000_000, "://" * 1_000_000, "http://" + "a" * 1_000_000, "basic " * 500_000):
        assert len(redact(text)) < 30_000
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text",
    [
        "GET http://admin:hush@127.0.0.1:5984/db",
        "Authorization: Basic YWRtaW46aHVzaA==hush",
        "Bearer hushhushhush",
        "AuthSession=hush; Path=/",
        "https://hush@host/",
    ],
)
def test_redact_when_credentials_are_in_it_then_not_any_more(text: str) -> None:
    """URLs, headers, cookies."""
    assert "hush" not in redact(text)


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ("orders:CREATED:paid", "fires for documents with these ids alone: for a field, orders:CREATED:paid:FIELD"),
        ("orders:CREATED:paid:status", ""),
        ("orders", ""),
    ],
)
def test_rule_when_it_may_not_mean_what_it_says_then_noted(arguments: str, note: str) -> None:
    """It is stored all the same: ids may be meant."""
    (told,) = parse_event(arguments).notes or [""]
    assert told == (f"{arguments} {note}" if note else "")
