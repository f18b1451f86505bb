"""Rows of the feed that are left to their owners."""

from __future__ import annotations

from couchjobs.broker.left_rows import LeftRows


def test_left_rows_when_their_time_has_come_then_the_oldest_are_taken_once() -> None:
    """A newer row of a job makes its time begin anew; forgotten ones are gone."""
    rows = LeftRows(delay_s=0.25)
    for number, job_id in enumerate(("a", "b", "c", "d")):
        rows.note(job_id, 10 + number / 100)
    rows.note("a", 10.2)
    rows.forget("c")
    assert rows.take_ripe(5, 10.1) == []
    assert rows.take_ripe(1, 10.3) == ["b"]
    assert rows.take_ripe(5, 10.3) == ["d"]
    assert rows.take_ripe(5, 10.5) == ["a"]
    assert rows.take_ripe(5, 99) == []


def test_left_rows_when_a_job_changes_hands_then_taken_at_once() -> None:
    """Without waiting for anything."""
    rows = LeftRows(delay_s=0.25)
    rows.note("a", 10)
    rows.note("b", 10)
    assert rows.take_if(lambda job_id: job_id == "b") == ["b"]
    assert rows.take_ripe(5, 11) == ["a"]


def test_left_rows_when_too_many_then_the_oldest_are_dropped() -> None:
    """Memory is bounded; the sweep finds them."""
    rows = LeftRows(delay_s=0)
    for number in range(30_000):
        rows.note(str(number), 10)
    taken = rows.take_ripe(100_000, 10)
    assert len(taken) == 20_000
    assert taken[-1] == "29999"
