"""What sorts as CouchDB sorts the keys of a view."""

from __future__ import annotations

from typing import Any

from couchjobs.jobs.places import HIGHEST, order_of

SORTED: list[Any] = [
    None, False, True, -1, 0, 2.5, 10,
    "", "-", "2026-11-29", "2026-11-29t22:50:00Z", "2026-11-29T22:50:00Z", "2026-11-29t22:51:00Z", "a", "A", "aa", "b",
    "B", "ba", "bb",
    [], ["a"], ["b"], ["b", "c"], ["b", "c", "a"], ["b", "d"],
    {}, {"a": 1}, {"a": 2}, {"b": 1}, {"b": 2}, {"b": 2, "c": 2}, HIGHEST,
]  # fmt: skip
"""As the documentation of CouchDB has it, ddocs/views/collation, and as CouchDB 3.5 has sorted them."""


def test_order_when_values_are_sorted_then_as_couchdb_does() -> None:
    """All kinds of JSON that somebody may write for a time."""
    shuffled = SORTED[::-1]
    shuffled.sort(key=order_of)
    assert shuffled == SORTED
