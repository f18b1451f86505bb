"""What a daemon does now and then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.jobs.retention import Retention, read_rules
from couchjobs.recovery import duties as module
from couchjobs.recovery.duties import Duties


async def test_retention_when_its_rules_change_meanwhile_then_no_more_is_removed_by_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is purged is gone for good, and a rule may say hours where weeks were meant."""
    rules = read_rules([{"worker": "*", "keep": "2h"}])
    removed: list[Retention] = []

    class Endless:
        refused = 0

        def __init__(self, _store: object) -> None:
            pass

        async def steps(self, given: Retention, _now: object) -> AsyncIterator[int]:
            while True:
                removed.append(given)
                yield 100

    async def stored(*_: object) -> Retention:
        return rules if len(removed) < 10 else Retention()

    monkeypatch.setattr(module, "Remover", Endless)
    monkeypatch.setattr(module, "stored_rules", stored)
    monkeypatch.setattr(module, "_RULES_EACH_S", 0.0)
    store = SimpleNamespace(db=None, database=SimpleNamespace(name="jobs"))
    some: Any = Duties.__new__(Duties)
    some._store, some._connection, some._worker_types = store, None, ("w",)
    some._daemon = SimpleNamespace(answers_for=lambda *_: True)
    some._settings = SimpleNamespace(sweep_interval=300.0)
    some._claims = SimpleNamespace(held=set())
    await some._remove_finished()
    assert removed == [rules] * 10
    some._daemon.answers_for = lambda *_: False
    await some._remove_finished()
    assert len(removed) == 10
