"""Structured rules of @event triggers."""

from __future__ import annotations

from typing import Any

import pytest

from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger

PAID, OPEN = {"_id": "o", "status": "paid", "total": 5}, {"_id": "o", "status": "open", "total": 5}


def rules_of(*rules: Any, arguments: str = "") -> EventRules:
    """The rules of a trigger with these."""
    document = {"_id": "t", "type": "@event", "arguments": arguments, "worker": "w", "message": None, "rules": [*rules]}
    parsed = parse_trigger(TriggerInfos.from_document(document))
    assert isinstance(parsed, EventRules)
    return parsed


@pytest.mark.parametrize(
    ("rule", "verb", "doc", "old", "fires"),
    [
        ({"became": {"status": "paid"}}, "UPDATED", PAID, OPEN, True),
        ({"became": {"status": "paid"}}, "UPDATED", {**PAID, "total": 6}, PAID, False),
        ({"became": {"status": "paid"}}, "UPDATED", OPEN, PAID, False),
        ({"became": {"status": "paid"}}, "CREATED", PAID, None, True),
        ({"became": {"status": "paid"}}, "DELETED", {"_id": "o"}, PAID, False),
        ({"selector": {"total": {"$gt": 4}}}, "UPDATED", PAID, OPEN, True),
        ({"selector": {"total": {"$gt": 5}}}, "UPDATED", PAID, OPEN, False),
        ({"selector": {"status": "paid"}}, "DELETED", {"_id": "o"}, PAID, True),
        ({"selector": {"status": "paid"}}, "DELETED", {"_id": "o"}, OPEN, False),
        ({"changed": ["status"]}, "UPDATED", PAID, OPEN, True),
        ({"changed": ["total"]}, "UPDATED", PAID, OPEN, False),
        ({"changed": ["lines.0.sku"]}, "UPDATED", {"lines": [{"sku": 1}]}, {"lines": [{"sku": True}]}, True),
        ({"changed": [r"log\.name"]}, "UPDATED", {"log.name": 1}, {"log.name": 2}, True),
        ({"ids": ["part:7"]}, "UPDATED", {"_id": "part:7"}, None, True),
        ({"ids": ["part:8"]}, "UPDATED", {"_id": "part:7"}, None, False),
        ({"verbs": ["CREATED"]}, "UPDATED", PAID, OPEN, False),
        ({"verbs": None, "selector": None}, "UPDATED", PAID, OPEN, True),
        ({"became": {"status": "paid"}, "selector": {"total": 6}}, "UPDATED", PAID, OPEN, False),
    ],
)
def test_rule_when_given_then_all_of_it_must_hold(
    rule: dict[str, Any], verb: str, doc: dict[str, Any], old: dict[str, Any] | None, fires: bool
) -> None:
    """`became`, `selector`, `changed`, `ids`, `verbs`."""
    assert rules_of({"doctype": "orders", **rule}).matches("orders", verb, doc, old) is fires


def test_rule_when_compaction_took_the_old_document_then_fires() -> None:
    """Nobody can tell any more."""
    rules = rules_of({"doctype": "orders", "became": {"status": "paid"}}, {"doctype": "a", "selector": {"x": 1}})
    assert rules.matches("orders", "UPDATED", PAID, None, lost=True)
    assert rules.matches("a", "DELETED", {"_id": "o"}, None, lost=True)


def test_rules_when_beside_arguments_then_either_fires() -> None:
    """The text form stays."""
    rules = rules_of({"doctype": "orders", "ids": ["x"]}, arguments="invoices:CREATED")
    assert rules.doctypes == {"orders", "invoices"}
    assert rules.matches("invoices", "CREATED", {"_id": "i"}, None)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("orders", r"rules\[0\]: a rule is an object"),
        ({"became": {}}, "doctype is missing"),
        ({"doctype": "Orders"}, "no doctype"),
        ({"doctype": "orders", "when": 1}, "when: no field of a rule"),
        ({"doctype": "orders", "verbs": ["MADE"]}, "MADE: write CREATED"),
        ({"doctype": "orders", "verbs": []}, "at least one"),
        ({"doctype": "orders", "verbs": ["DELETED"], "became": {"a": 1}}, "never fire"),
        ({"doctype": "orders", "selector": {"a": {"$foo": 1}}}, r"\$foo is no operator"),
        ({"doctype": "orders", "selector": {"a": {"$in": 1}}}, r"\$in takes a list"),
        ({"doctype": "orders", "selector": {"a": {"$mod": [0, 1]}}}, r"\$mod takes two whole numbers"),
        ({"doctype": "orders", "selector": {"a": {"$regex": "("}}}, "no regular expression"),
        ({"doctype": "orders", "selector": {"$or": []}}, "at least one"),
        ({"doctype": "orders", "changed": ["a..b"]}, "no name of a field"),
        ({"doctype": "orders", "ids": "x"}, "ids is a list of texts"),
    ],
)
def test_rule_when_it_cannot_be_understood_then_told_which_and_why(rule: Any, told: str) -> None:
    """Where it is written."""
    with pytest.raises(MalformedTriggerError, match=told):
        rules_of(rule)


def test_selector_when_its_regex_takes_for_ever_then_it_does_not_match() -> None:
    """One trigger must not hold up a daemon."""
    rules = rules_of({"doctype": "orders", "selector": {"a": {"$regex": "^(a|aa)+$"}}})
    assert not rules.matches("orders", "CREATED", {"_id": "o", "a": "a" * 60 + "!"}, None)
