"""Tenants that are named no longer."""

from __future__ import annotations

import time

import pytest

from couchjobs.prefixer import Prefixer
from couchjobs.tenants.named import Missed


def test_missed_when_one_look_does_not_name_a_tenant_then_it_is_kept_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that is back may not know all of them yet; one that is named in between is not missed."""
    present = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: present)
    one, two = Prefixer("", "one"), Prefixer("", "two")
    served, missed = {db.key: db for db in (one, two)}, Missed(4.0)
    assert missed.too_shortly(served, [one, two]) == []
    assert missed.too_shortly(served, [one]) == [two]
    present += 3.0
    assert missed.too_shortly(served, [one, two]) == []
    assert missed.too_shortly(served, [one]) == [two]
    present += 4.0
    assert missed.too_shortly(served, [one]) == []
