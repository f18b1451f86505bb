"""Selectors, compared with what CouchDB itself finds; and structured rules, fired by a daemon."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import CouchError
from couchjobs.prefixer import Prefixer
from couchjobs.triggers.mango import compile_selector

WORDS = ["a", "B", "b", "paid", "Paid", "open", "x-1", "x_1", "10", "2", "", "zoo", "Zoo", "a b", "é", "e", "ä", "ab"]
FIELDS = ["a", "b", "c", "a.b", "a.0", "b.1.a", "c.c", r"a\.b", "b.a.c", "a.-1", "a.+0"]
COMPARED = ["$eq", "$ne", "$lt", "$lte", "$gt", "$gte"]
TYPES = ["null", "boolean", "number", "string", "array", "object"]


class Maker:
    """Makes documents and selectors at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  not a secret

    def value(self, depth: int = 0) -> Any:
        """Any JSON."""
        kind = self.random.random()
        if kind < 0.2:
            return self.random.choice([None, True, False])
        if kind < 0.4:
            return self.random.choice([0, 1, 2, 3, 10, -1, -7, 1.0, 2.5, -0.5, 100])
        if kind < 0.65 or depth > 2:
            return self.random.choice(WORDS)
        if kind < 0.83:
            return [self.value(depth + 1) for _ in range(self.random.randint(0, 3))]
        return {self.random.choice("abc"): self.value(depth + 1) for _ in range(self.random.randint(0, 2))}

    def operator(self, depth: int) -> dict[str, Any]:
        """One condition."""
        choose = self.random.choice
        inner = {"$elemMatch", "$allMatch", "$not"}
        name = choose(
            [
                *COMPARED,
                "$in",
                "$nin",
                "$exists",
                "$type",
                "$size",
                "$mod",
                "$regex",
                "$beginsWith",
                "$all",
                *sorted(inner),
            ]
        )
        if name in inner:
            return {
                name: self.operator(depth + 1)
                if depth > 1 or choose([1, 0])
                else {choose("abc"): self.operator(depth + 1)}
            }
        if name in ("$in", "$nin", "$all"):
            return {name: [self.value(1) for _ in range(self.random.randint(0, 3))]}
        given = {
            "$exists": choose([True, False]),
            "$type": choose(TYPES),
            "$size": choose([0, 1, 2, 3]),
            "$mod": [choose([2, 3, -2]), choose([0, 1, -1])],
            "$regex": choose(["^p", "a", "[0-9]+", "^$", "d$", "(?i)zoo"]),
            "$beginsWith": choose(["p", "a", "", "x"]),
        }
        return {name: given.get(name, self.value(1))}

    def selector(self, depth: int = 0) -> dict[str, Any]:
        """A selector."""
        kind, choose = self.random.random(), self.random.choice
        if kind < 0.25 and depth < 3:
            return {
                choose(["$and", "$or", "$nor"]): [self.selector(depth + 1) for _ in range(self.random.randint(1, 3))]
            }
        if kind < 0.35 and depth < 3:
            return {"$not": self.selector(depth + 1)}
        if kind < 0.45:
            return {choose(FIELDS): self.value()}
        if kind < 0.6:
            return {choose(FIELDS): self.operator(0), choose(FIELDS): self.operator(0)}
        return {choose(FIELDS): {choose("abc"): self.operator(0)} if kind < 0.7 else self.operator(0)}


async def test_selector_when_compared_with_couchdb_then_it_finds_the_same(connection: Connection, db: Prefixer) -> None:
    """3,000 of them with COUCHJOBS_TEST_SELECTORS; on a CouchDB, for the embedded server has another `_find`."""
    if "vendor" not in await connection.server.welcome() or "PouchDB" in str(await connection.server.welcome()):
        pytest.skip("not a CouchDB")
    orders, maker = await orders_of(connection, db), Maker(1)
    documents = [
        {"_id": f"d{number}", **{name: maker.value() for name in ("a", "b", "c", "a.b") if maker.random.random() < 0.7}}
        for number in range(100)
    ]
    body = json.dumps({"docs": documents}).encode()
    await connection.server.request("POST", f"{orders.path}/_bulk_docs", body=body, has=list)
    for _ in range(int(os.environ.get("COUCHJOBS_TEST_SELECTORS", "200"))):
        selector = maker.selector()
        body = json.dumps({"selector": selector, "limit": 1000, "fields": ["_id"]}).encode()
        try:
            answer = await connection.server.request("POST", f"{orders.path}/_find", body=body, has="docs")
        except CouchError:
            continue
        found = {document["_id"] for document in answer["docs"]}
        matches = compile_selector(selector)
        assert {document["_id"] for document in documents if matches(document)} == found, selector


async def test_structured_rule_when_a_document_becomes_what_it_says_then_fires_once(
    connection: Connection, db: Prefixer, start: Callable[..., Any]
) -> None:
    """One receipt for each order: at the edit that paid it, and at no other."""
    orders = await orders_of(connection, db)
    rule = {"doctype": "orders", "verbs": ["CREATED", "UPDATED"], "became": {"status": "paid"}}
    trigger = {"_id": "paid", "type": "@event", "rules": [rule], "worker": "note", "message": None}
    await triggers_of(connection, db).put(trigger)
    await start(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"))
    for number in range(5):
        document: dict[str, Any] = {"_id": f"o{number}", "status": "open"}
        for status in ("open", "paid", "paid", "shipped"):
            document = {**document, "status": status}
            document["_rev"] = await orders.put(document)
            if status == "paid":
                await eventually(lambda number=number: so_many_jobs_of(connection, db, "paid", number + 1))  # type: ignore[misc]
    await orders.put({"_id": "last", "status": "paid"})
    await eventually(lambda: so_many_jobs_of(connection, db, "paid", 6))
    assert len(await jobs_of(connection, db, "paid")) == 6
