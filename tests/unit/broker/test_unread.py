"""Jobs that are to be read, now or later."""

from __future__ import annotations

from couchjobs.broker.unread import Unread


def test_unread_when_rows_are_left_long_enough_then_the_oldest_are_taken_once() -> None:
    """By spare slots alone; a newer row of a job makes its time begin anew; forgotten ones are gone."""
    unread = Unread(delay_s=0.25)
    for number, job_id in enumerate(("a", "b", "c", "d")):
        unread.set_aside(job_id, "1-a", 10 + number / 100)
    unread.set_aside("a", "1-b", 10.2)
    unread.forget_row("c")
    assert unread.next_in(0, 10.1) is None
    assert unread.take(5, 10.1) == []
    assert unread.take(1, 10.3) == ["b"]
    assert unread.take(5, 10.3) == ["d"]
    assert unread.take(0, 10.5) == []
    assert unread.take(5, 10.5) == ["a"]
    assert unread.take(5, 99) == []


def test_unread_when_a_row_changes_hands_then_read_at_once() -> None:
    """Without waiting for anything, or for a slot."""
    unread = Unread(delay_s=0.25)
    unread.set_aside("a", "1-a", 10)
    unread.set_aside("b", "3-a", 10)
    unread.reassign(lambda job_id: job_id == "b", 10.1)
    assert unread.next_in(0, 10.1) == 0
    assert unread.take(0, 10.1) == ["b"]
    assert unread.take(5, 11) == ["a"]


def test_unread_when_too_many_rows_then_the_oldest_are_dropped() -> None:
    """Memory is bounded; the sweep finds them."""
    unread = Unread(delay_s=0)
    for number in range(30_000):
        unread.set_aside(str(number), "1-a", 10)
    taken: list[str] = []
    while some := unread.take(100_000, 10):
        taken += some
    assert len(taken) == 10_000
    assert taken[-1] == "29999"


def test_unread_when_few_rows_are_worth_it_then_few_are_read() -> None:
    """Each time twice as many while most are jobs to run, as of the others; few again once they are not."""
    unread = Unread(delay_s=0)
    for number in range(10_000):
        unread.set_aside(str(number), "1-a", 10)
    looks: list[int] = []
    for useful in (True, True, True, True, True, True, False, False, True, True):
        looks.append(len(unread.take(50, 10)))
        unread.judge(lambda _, useful=useful: useful)  # type: ignore[misc]
    assert looks == [50, 100, 200, 400, 800, 1000, 1000, 50, 50, 100]


def test_unread_when_most_rows_are_of_jobs_that_were_claimed_then_new_ones_do_not_wait_for_them() -> None:
    """A job that nobody has claimed is read in the first look, whatever came before it."""
    unread = Unread(delay_s=0)
    for number in range(9_000):
        unread.set_aside(f"claimed-{number}", "2-a", 10)
    unread.set_aside("new", "1-a", 11)
    unread.set_aside("was new", "1-a", 11)
    unread.set_aside("was new", "2-a", 11)
    assert unread.take(30, 11) == ["new", *(f"claimed-{number}" for number in range(30))]
    assert unread.take(50, 11) == [f"claimed-{number}" for number in range(30, 80)]


def test_unread_when_a_job_is_to_be_read_again_then_at_the_time_that_was_said_last() -> None:
    """Once, and with the time until then told exactly."""
    unread = Unread(delay_s=0.25)
    unread.read_again("a", 12)
    unread.read_again("b", 11)
    unread.read_again("a", 10.5)
    unread.read_again("b", 13)
    assert unread.next_in(0, 10) == 0.5
    assert unread.take(0, 10.5) == ["a"]
    assert unread.next_in(0, 11) == 2
    assert unread.take(0, 12) == []
    assert unread.take(0, 13) == ["b"]
    assert unread.next_in(9, 13) is None
