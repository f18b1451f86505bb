"""What is told of values that do not fit, and of arguments of a push that are none."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from couchjobs.errors import BadDocumentError, ConfigurationError
from couchjobs.jobs.request import JobRequest, moment_of, new_job
from couchjobs.prefixer import Prefixer
from couchjobs.reasons import reasons
from couchjobs.settings import load_settings


class Size(StrEnum):
    """One of a few."""

    SMALL = "small"


class Part(BaseModel):
    """What is in another."""

    model_config = ConfigDict(extra="forbid", strict=True)
    count: int = 1


class Order(BaseModel):
    """Of each kind one."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(default="x", min_length=1, max_length=5)
    count: int = Field(default=1, ge=1, le=9)
    price: float = Field(default=1.0, gt=0, lt=10, allow_inf_nan=False)
    is_paid: bool = False
    kind: Literal["a", "b"] = "a"
    size: Size = Size.SMALL
    parts: list[Part] = []
    more: dict[str, int] = {}
    part: Part | None = None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"name": 5}, "name: must be text, and is a number"),
        ({"name": None}, "name: must be text, and is null"),
        ({"name": ""}, "name: must not be empty"),
        ({"name": "xxxxxx"}, "name: is longer than 5 characters"),
        ({"count": "many"}, "count: must be a whole number, and is text"),
        ({"count": 1.5}, "count: must be a whole number, and has a fraction"),
        ({"count": 0}, "count: must be at least 1"),
        ({"count": 10}, "count: must be at most 9"),
        ({"count": [1]}, "count: must be a whole number, and is a list"),
        ({"price": 0}, "price: must be greater than 0.0"),
        ({"price": 10}, "price: must be less than 10.0"),
        ({"price": {}}, "price: must be a number, and is an object"),
        ({"price": float("inf")}, "price: must be a finite number"),
        ({"is_paid": "perhaps"}, "is_paid: must be true or false, and is text"),
        ({"kind": "c"}, "kind: must be 'a' or 'b'"),
        ({"size": "huge"}, "size: must be 'small'"),
        ({"parts": 1}, "parts: must be a list, and is a number"),
        ({"parts": [{}, {"count": True}]}, "parts.1.count: must be a whole number, and is a boolean"),
        ({"parts": [{"cuont": 1}]}, "parts.0.cuont: there is no such field"),
        ({"parts": ["x"]}, "parts.0: must be an object, and is text"),
        ({"more": []}, "more: must be an object, and is a list"),
    ],
)
def test_reasons_when_a_value_does_not_fit_then_where_and_what_in_plain_words(value: Any, told: str) -> None:
    """No word of pydantic's, and no value."""
    with pytest.raises(ValidationError) as caught:
        Order.model_validate(value)
    assert reasons(caught.value) == told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"worker_type": ""}, "worker: must not be empty"),
        ({"worker_type": None}, "worker: must be text, and is null"),
        ({"worker_type": "w" * 201}, "worker: is longer than 200 characters"),
        ({"priority": "high"}, "priority: must be a whole number, and is text"),
        ({"priority": 1.5}, "priority: must be a whole number, and has a fraction"),
        ({"priority": 10**400}, "priority: must be from -1,000,000,000 to 1,000,000,000"),
        ({"id": 5}, "id: must be text, and is a number"),
        ({"id": ""}, "id: must not be empty"),
        ({"options": {"timeout": 5}}, "options: JobOptions"),
        ({"message": object()}, "message: object is not JSON"),
    ],
)
def test_request_when_an_argument_is_none_then_told_which_and_why(wrong: dict[str, Any], told: str) -> None:
    """As an error of couchjobs, which names the argument."""
    with pytest.raises(BadDocumentError, match=told):
        new_job(Prefixer("", None), JobRequest(**{"worker_type": "w", **wrong}))


@pytest.mark.parametrize("at", ["tomorrow", 5, date(2026, 1, 1), datetime(2026, 1, 1)])  # noqa: DTZ001  that is it
def test_moment_when_at_is_no_time_with_a_zone_then_told(at: Any) -> None:
    """Text and numbers are no times."""
    with pytest.raises(ConfigurationError, match=r"^at"):
        moment_of(None, at)
    assert moment_of(None, datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, tzinfo=UTC)


def test_settings_when_one_is_none_then_told_without_its_value() -> None:
    """It may be a URL with a password."""
    with pytest.raises(ConfigurationError, match=r"^settings: shards: must be a whole number, and is text$"):
        load_settings(shards="secret")
