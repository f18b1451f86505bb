"""What goes in comes out, or is refused by the path to what JSON cannot say."""

from __future__ import annotations

import dataclasses
import time
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_serializer

from couchjobs.couch.codec import decode, encode
from couchjobs.errors import BadDocumentError, MessageNilError, MessageUnmarshalError
from couchjobs.jobs.job import Job
from couchjobs.jobs.message import new_message, unmarshal
from couchjobs.jobs.request import JobRequest, new_job
from couchjobs.jobs.transitions import unreadable
from couchjobs.jobs.values import to_json
from couchjobs.memory.broker import MemBroker
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now
from couchjobs.triggers.event import parse_event
from couchjobs.triggers.infos import TriggerInfos

DB = Prefixer("d")


class Currency(Enum):
    """An Enum."""

    EUR = "EUR"
    USD = "USD"


class Line(BaseModel):
    """A nested model."""

    sku: str
    price: float = 0.0


class Order(BaseModel):
    """A strict model of everything."""

    model_config = ConfigDict(strict=True)

    amount: int = 0
    currency: Currency = Currency.EUR
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    day: date | None = None
    key: uuid.UUID = uuid.UUID(int=1)
    pair: tuple[int, str] = (1, "a")
    lines: list[Line] = []
    wanted: Annotated[str, Field(alias="Wanted")] = "x"
    large: int = 2**70


class Pay(BaseModel):
    """A model whose fields are at their defaults."""

    amount: int = 0
    currency: str = "EUR"


class Secret(BaseModel):
    """A model that holds a secret."""

    name: str = "n"
    token: SecretStr = SecretStr("t")


class Told(Secret):
    """A model that says how its secret is written."""

    @field_serializer("token")
    def _tell(self, token: SecretStr) -> str:
        return token.get_secret_value()


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int
    inner: Line


ORDERS = st.builds(
    Order,
    amount=st.integers(),
    currency=st.sampled_from(Currency),
    at=st.datetimes(timezones=st.just(UTC)),
    day=st.none() | st.dates(),
    key=st.uuids(),
    pair=st.tuples(st.integers(), st.text()),
    lines=st.lists(st.builds(Line, sku=st.text(), price=st.floats(allow_nan=False, allow_infinity=False)), max_size=3),
    Wanted=st.text(),
)


@given(ORDERS)
def test_model_when_pushed_and_read_then_the_same(order: Order) -> None:
    """As a message, a payload, a trigger's message and a result."""
    job = Job.from_document(new_job(DB, JobRequest(worker_type="w", message=order, payload=order)).document())
    assert unmarshal(job.message, Order) == order
    assert unmarshal(job.payload, Order) == order
    trigger = TriggerInfos(type="@every", arguments="1h", worker="w", message=order).document()
    assert unmarshal(TriggerInfos.from_document({"_id": "t", **trigger}).message, Order) == order
    assert unmarshal(new_message([order])[0], Order) == order


class Loose(BaseModel):
    """A model that takes further fields."""

    model_config = ConfigDict(extra="allow")


class Private(BaseModel):
    """A model that keeps something for itself."""

    a: int = 1
    _cache: float = PrivateAttr(default_factory=time.monotonic)


class Outer(BaseModel):
    """A model that holds others."""

    parts: list[Private | Loose] = []


@pytest.mark.parametrize("extra", [Decimal("1.5"), SecretStr("s"), float("nan"), {1}, b"x"])
def test_model_when_a_further_field_is_no_json_then_refused(extra: Any) -> None:
    """As a declared one is; at whatever depth."""
    for value in (Loose(x=extra), Outer(parts=[Loose(x=extra)]), [Loose(x=extra)]):  # type: ignore[call-arg]
        with pytest.raises(MessageUnmarshalError, match="x"):
            new_message(value)


def test_model_when_it_keeps_something_for_itself_then_taken() -> None:
    """What is private is no field."""
    assert new_message(Outer(parts=[Private(a=2)])) == {"parts": [{"a": 2}]}


def test_model_when_it_cannot_be_written_then_told() -> None:
    """Whatever its class raises."""

    class Loop(BaseModel):
        inner: Any = None

    loop = Loop()
    loop.inner = loop
    for value in (loop, Line.model_construct(), {Currency.EUR: 1, "EUR": 2}):
        with pytest.raises(MessageUnmarshalError):
            new_message(value)


@pytest.mark.parametrize("message", [{"Type": "photo", "Data": "MTIz"}, {"Type": "image", "Data": "aGVsbG8="}])
def test_message_when_its_keys_are_those_of_the_old_form_and_its_type_is_not_then_itself(message: Any) -> None:
    """Only `json` is the old form."""
    assert Job.from_document({"_id": "j", "worker": "w", "message": message, "state": "queued"}).message == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_when_pushed_then_the_same(value: Any) -> None:
    """Numbers of any size."""
    assert to_json(value) == value
    document = new_job(DB, JobRequest(worker_type="w", message=value, payload=value)).document()
    assert document["message"] == value
    assert document.get("payload") == value


def test_model_when_its_fields_are_at_their_defaults_then_whole() -> None:
    """It is no empty object."""
    whole = {"amount": 0, "currency": "EUR"}
    assert new_job(DB, JobRequest(worker_type="w", message=Pay())).document()["message"] == whole
    assert Job(worker="w", message=Pay()).document()["message"] == whole
    assert TriggerInfos(type="@webhook", worker="w", message=Pay()).document()["message"] == whole
    assert new_message({"one": [Pay()]}) == {"one": [whole]}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"items": [1, {"price": float("nan")}]}, r"message\.items\[1\]\.price: nan: JSON has no such number"),
        ([1e400], r"message\[0\]: inf"),
        ({"a": {1, 2}}, r"message\.a: set is not JSON: .*sorted"),
        ({"a": b"x"}, r"message\.a: bytes is not JSON: .*base64"),
        ({"a": Decimal("1.5")}, r"message\.a: Decimal is not JSON"),
        ({1: "a"}, r"message: the key 1 is not text"),
        ({"a": "\ud800"}, r"message\.a: it holds text that is none"),
        (Secret(), r"message\.token: SecretStr is not JSON: .*look it up"),
        ({"deep": object()}, r"message\.deep: object is not JSON"),
    ],
)
def test_value_when_json_cannot_say_it_then_refused_by_its_path(value: Any, told: str) -> None:
    """By the memory broker as by the other one."""
    with pytest.raises(BadDocumentError, match=told):
        new_job(DB, JobRequest(worker_type="w", message=value))
    with pytest.raises(MessageUnmarshalError, match=told):
        new_message(value)


async def test_memory_broker_when_couchdb_would_refuse_then_refuses() -> None:
    """Too large, or no JSON."""
    broker = MemBroker(auto=False)
    with pytest.raises(BadDocumentError, match="bytes"):
        await broker.push_job(DB, JobRequest(worker_type="w", message="x" * 2_000_000))
    with pytest.raises(BadDocumentError, match=r"payload\[0\]"):
        await broker.push_job(DB, JobRequest(worker_type="w", payload=[float("inf")]))


@pytest.mark.parametrize("text", ["{}", " {}", "[ {}]", '{{"a": {}}}', '{{"a":\n{}}}', "[1,\t{}\r]", "[-{}]", "-{}"])
def test_number_when_it_is_longer_than_64_bits_then_exact_whatever_stands_before_it(text: str) -> None:
    """Most writers of JSON put a space there."""
    number = "123456789012345678901234567890"
    assert encode(decode(text.format(number).encode())).decode().count(number) == 1


def test_secret_when_its_model_says_how_then_written_so() -> None:
    """It is the user's decision."""
    assert unmarshal(new_message(Told()), Told) == Told()


def test_dataclass_and_tuple_when_pushed_then_their_fields() -> None:
    """With what is in them."""
    assert to_json(Point(1, Line(sku="s"))) == {"x": 1, "inner": {"sku": "s", "price": 0.0}}
    assert to_json((1, (2,))) == [1, [2]]


def test_unmarshal_when_null_is_allowed_then_none() -> None:
    """Where it is not, there is no message."""
    assert unmarshal(None, Line | None) is None  # type: ignore[arg-type]
    with pytest.raises(MessageNilError):
        unmarshal(None, Line)


def test_documents_when_other_languages_write_null_and_floats_then_as_meant() -> None:
    """Seven fields of a job and four of a trigger."""
    names = (
        "domain",
        "manual_execution",
        "debounced",
        "forward_logs",
        "errors",
        "cancel_requested",
        "options",
        "claim",
    )
    job = Job.from_document(
        {
            **dict.fromkeys(names),
            "_id": "j",
            "_rev": "1-a",
            "worker": "w",
            "message": None,
            "state": "queued",
            "exec_count": 1.0,
            "priority": 5.0,
            "payload": None,
            "event": None,
        }
    )
    assert (job.exec_count, job.priority, job.manual_execution, job.errors) == (1, 5, False, [])
    options = {"max_exec_count": 3.0, "timeout": None}
    job = Job.from_document({"_id": "j", "worker": "w", "message": None, "state": "queued", "options": options})
    assert job.options is not None
    assert job.options.max_exec_count == 3
    names = ("domain", "debounce", "options", "misfire", "disabled", "timezone", "arguments", "grace")
    trigger = {**dict.fromkeys(names), "_id": "t", "type": "@webhook", "worker": "w", "message": None}
    assert TriggerInfos.from_document(trigger).misfire == "once"


def test_refusal_when_error_is_somebodys_own_field_then_it_stays() -> None:
    """The reason goes to `errors`."""
    marked = unreadable({"_id": "j", "error": {"code": 5}}, now(), "no worker")
    assert marked["error"] == {"code": 5}
    assert "no worker" in marked["errors"][0]["error"]
    assert "no worker" in unreadable({"_id": "j", "error": "old"}, now(), "no worker")["error"]


@pytest.mark.parametrize(
    ("rule", "old", "new", "fires"),
    [
        ("orders:UPDATED:!=:paid", {"paid": 1}, {"paid": True}, True),
        ("orders:UPDATED:!=:paid", {"paid": 0}, {"paid": False}, True),
        ("orders:UPDATED:!=:paid", {"paid": 1}, {"paid": 1.0}, False),
        ("orders:UPDATED:!=:paid", {"paid": {"a": [1]}}, {"paid": {"a": [True]}}, True),
        ("orders:UPDATED:10:price", {}, {"price": 10.0}, True),
        ("orders:UPDATED:10:price", {}, {"price": 10}, True),
        ("orders:UPDATED:1.5:price", {}, {"price": 1.5}, True),
        (r"orders:UPDATED:part\:7", {}, {"_id": "part:7"}, True),
        (r"orders:UPDATED:a\,b:name", {}, {"name": "a,b"}, True),
        (r"orders:UPDATED:two\ words:name", {}, {"name": "two words"}, True),
        (r"orders:UPDATED:x:log\.name", {}, {"log.name": "x"}, True),
        (r"orders:UPDATED:x:log.name", {}, {"log.name": "x"}, False),
        (r"orders:UPDATED:a\\b:name", {}, {"name": r"a\b"}, True),
    ],
)
def test_rule_when_values_are_json_then_compared_as_such(
    rule: str, old: dict[str, Any], new: dict[str, Any], fires: bool
) -> None:
    """And there is a way to write each mark."""
    assert parse_event(rule).matches("orders", "UPDATED", {"_id": "o", **new}, {"_id": "o", **old}) is fires


def test_rule_when_a_deleted_document_has_lost_its_body_then_fires() -> None:
    """Nobody can tell what it was, and it has no other chance; where it can be had, it decides."""
    rules, gone = parse_event("orders:DELETED:paid:status"), {"_id": "o", "_deleted": True}
    assert rules.matches("orders", "DELETED", gone, None, lost=True)
    assert not rules.matches("orders", "DELETED", gone, {"_id": "o", "status": "open"})
    assert rules.matches("orders", "DELETED", gone, {"_id": "o", "status": "paid"})
