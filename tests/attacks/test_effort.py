"""Rules and documents that take for ever together: none holds up an event loop."""

from __future__ import annotations

import time
from typing import Any

import pytest

from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.event_jobs import event_of
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.triggers.effort import LONGEST_S, TakesTooLongError, effort
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger

SLOW = {"$regex": "^(a|aa)+$"}
TAG = "a" * 40 + "!"
COUNTED = [{"a": number} for number in range(900)]
NESTED = [{"a": [number, {"b": number}]} for number in range(400)]


def trigger_of(*rules: dict[str, Any], arguments: str = "") -> EventTrigger:
    """An @event trigger with these rules."""
    document = {"_id": "t", "type": "@event", "arguments": arguments, "worker": "w", "message": None}
    infos = TriggerInfos.from_document({**document, **({"rules": [*rules]} if rules else {})})
    return EventTrigger(Prefixer(), infos, parse_trigger(infos))  # type: ignore[arg-type]


def of(selector: dict[str, Any]) -> dict[str, Any]:
    """A rule on orders."""
    return {"doctype": "orders", "selector": selector}


@pytest.mark.parametrize(
    ("trigger", "doc"),
    [
        (trigger_of(of({"tags": {"$elemMatch": SLOW}})), {"tags": [TAG] * 5000}),
        (trigger_of(of({"tags": {"$allMatch": {"$not": SLOW}}})), {"tags": [TAG] * 5000}),
        (trigger_of(of({"$or": [{"tag": SLOW}] * 450})), {"tag": TAG}),
        (trigger_of(*[of({"tag": SLOW})] * 199), {"tag": TAG}),
        (trigger_of(of({"tags": {"$in": NESTED}})), {"tags": [[1, [2, [3]]]] * 50_000}),
        (trigger_of(of({"tags": {"$all": [*NESTED, {"z": 1}]}})), {"tags": [{"a": [0, {}]}] * 40_000 + NESTED}),
        (
            trigger_of(of({"tags": {"$elemMatch": {"$or": [{"a": n} for n in range(900)]}}})),
            {"tags": [{"a": -1}] * 9000},
        ),
        (trigger_of(arguments=" ".join(["orders:CREATED:x:tags"] * 199)), {"tags": ["y"] * 200_000}),
    ],
    ids=["elemMatch", "allMatch", "or", "rules", "in", "all", "conditions", "text"],
)
def test_rules_when_they_take_long_for_a_document_then_given_up_within_moments(
    trigger: EventTrigger, doc: dict[str, Any]
) -> None:
    """Without a limit each takes from 4 s to as many minutes; ten seconds are for machines that do other things."""
    began = time.monotonic()
    assert event_of(trigger, "orders", ("CREATED",), {"_id": "d", **doc}, None) is None
    trigger.rules.explain("CREATED", {"_id": "d", **doc})
    assert time.monotonic() - began < 10


def test_effort_when_it_is_over_then_the_next_document_has_its_own() -> None:
    """Whoever does not limit it has all the time."""
    for _ in range(2):
        with effort:
            time.sleep(LONGEST_S)
            effort.left_s()  # a process that stood still has not worked
            began = time.thread_time()
            while time.thread_time() - began < LONGEST_S:
                pass
            with pytest.raises(TakesTooLongError):
                effort.left_s()
    for _ in range(1000):
        effort.step()
    assert trigger_of(of({"tag": SLOW})).rules.matches("orders", "CREATED", {"tag": "aaa"}, None)
