"""Structured rules of @event triggers."""

from __future__ import annotations

import json
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
        ({"doctype": "orders", "selector": {"a": {"$regex": "|".join(["a"] * 6000)}}}, "more than 10,000 letters"),
        (
            {"doctype": "orders", "selector": {"$and": [{"a": {"$elemMatch": {"$in": [*range(90)]}}}] * 20}},
            "more than 1,000 conditions",
        ),
        ({"doctype": "orders", "selector": {"$or": []}}, "at least one"),
        ({"doctype": "orders", "changed": ["a..b"]}, "no name of a field"),
        ({"doctype": "orders", "ids": "x"}, "ids is a list of texts"),
        ({"doctype": "orders\n"}, "no doctype"),
        ({"doctype": "orders", "selector": {"a": {"$regex": "(?V0)(?V1)a"}}}, "no regular expression"),
        ({"doctype": "orders", "selector": {"a": {"$in": [*range(2000)]}}}, "more than 1,000 conditions"),
        ({"doctype": "orders", "selector": json.loads('{"a":' * 100 + "1" + "}" * 100)}, "nested too deep"),
        (
            {"doctype": "orders", "selector": {"a": {"$regex": "(" * 5000 + ")" * 5000}}},
            "cannot be understood|no regular",
        ),
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


def test_rules_when_numbers_are_long_then_understood() -> None:
    """As CouchDB keeps them."""
    rules = rules_of({"doctype": "orders", "selector": {"n": {"$gt": 10**20}}})
    assert rules.matches("orders", "CREATED", {"_id": "o", "n": 10**21}, None)


@pytest.mark.parametrize("rules", [{}, 0, "", False])
def test_rules_when_no_list_then_told(rules: Any) -> None:
    """Nothing is taken for none."""
    document = {"_id": "t", "type": "@event", "arguments": "orders", "worker": "w", "message": None, "rules": rules}
    with pytest.raises(MalformedTriggerError, match="rules is a list"):
        parse_trigger(TriggerInfos.from_document(document))


def test_rules_when_of_another_type_then_told() -> None:
    """They would be ignored."""
    infos = TriggerInfos(type="@every", arguments="1h", worker="w", rules=[])
    with pytest.raises(MalformedTriggerError, match="rules: are for @event"):
        parse_trigger(infos)


def test_selector_when_lists_are_long_then_tested_in_no_time() -> None:
    """A thousand wanted ones against ten thousand there: one that looked at each pair took a minute."""
    wanted, there = [f"w{number}" for number in range(900)], [f"x{number}" for number in range(10_000)]
    rules = rules_of({"doctype": "orders", "selector": {"tags": {"$in": wanted}}})
    classic = rules_of(arguments=f"orders:CREATED:{','.join(wanted)}:tags")
    for document in ({"_id": "o", "tags": there}, {"_id": "o", "tags": [*there, "w1"]}):
        for one in (rules, classic):
            assert one.matches("orders", "CREATED", document, None) is ("w1" in document["tags"])


def test_changed_when_nested_deep_then_compared() -> None:
    """However deep."""
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert not rules_of({"doctype": "o", "changed": ["x"]}).matches("o", "UPDATED", {"x": deep}, {"x": deep})
    assert rules_of({"doctype": "o", "changed": ["x"]}).matches("o", "UPDATED", {"x": deep}, {"x": [deep]})


@pytest.mark.parametrize(
    ("pattern", "is_taken"),
    [
        ("hello {name}", True),
        (r"\{\{ item \}\}", True),
        (r"^[{(]\d+[)}]$", True),
        ("[{]end[}]", True),
        ("a{2,3}b", True),
        (r"\\m", True),
        ("(?:ABD){e<=1}", False),
        ("(?:ABD){2i+1s<=3}", False),
        (r"\mword", False),
        ("a{,3}b", False),
    ],
)
def test_regex_when_couchdb_reads_it_in_another_way_then_refused(pattern: str, is_taken: bool) -> None:
    """So many mistakes, ends of words: of Python's `regex` alone."""
    rule = {"doctype": "orders", "selector": {"name": {"$regex": pattern}}}
    if is_taken:
        rules_of(rule)
        return
    with pytest.raises(MalformedTriggerError, match="means something else"):
        rules_of(rule)
