"""The look ahead of a daemon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchjobs.broker.backlog import Backlog
from couchjobs.broker.type_queue import Candidate
from couchjobs.timestamps import Moment


def candidate(
    job_id: str,
    due: float = 0,
    priority: int = 0,
    not_before: float = 0,
    rev: str = "1-a",
    assigned: bool = True,
    worker: str = "w",
) -> Candidate:
    """A candidate, of worker w unless another one is given."""
    return Candidate(job_id, rev, worker, due, priority, None, not_before, assigned)


def at(seconds: float) -> Moment:
    """A moment at which both clocks say the same."""
    return Moment(seconds, seconds)


def ids(candidates: list[Candidate]) -> list[str]:
    """Their job ids."""
    return [one.job_id for one in candidates]


def test_take_when_priorities_differ_then_two_of_three_by_priority() -> None:
    """One of three is the oldest."""
    known = Backlog({"w": 2}, 100)
    for number in range(4):
        known.offer(candidate(f"low-{number}", due=number), at(0))
        known.offer(candidate(f"high-{number}", due=100 + number, priority=1), at(0))
    assert ids(known.take("w", 6, at(0))) == ["high-0", "high-1", "low-0", "high-2", "high-3", "low-1"]
    assert ids(known.take("w", 9, at(0))) == ["low-2", "low-3"]
    assert known.take("w", 1, at(0)) == []


def test_take_when_priority_is_strict_then_by_nothing_else() -> None:
    """Where that is wanted of a worker type; of two alike the older one."""
    known = Backlog({"w": 2, "other": 2}, 100, strict=["w"])
    for number in range(3):
        known.offer(candidate(f"low-{number}", due=number), at(0))
        known.offer(candidate(f"high-{number}", due=100 + number, priority=1), at(0))
    assert ids(known.take("w", 5, at(0))) == ["high-0", "high-1", "high-2", "low-0", "low-1"]


def test_offer_when_not_before_is_later_then_waits() -> None:
    """And replaces what was known of the job before."""
    known = Backlog({"w": 2}, 100)
    known.offer(candidate("a", not_before=5), at(0))
    known.offer(candidate("b", not_before=3), at(0))
    assert known.next_in(["w"], at(0)) == 3
    assert known.take("w", 9, at(2)) == []
    assert ids(known.take("w", 9, at(3))) == ["b"]
    known.offer(candidate("a", not_before=9, rev="2-b"), at(4))
    assert known.take("w", 9, at(6)) == [], "an older entry must not ripen it early"
    assert ids(known.take("w", 9, at(9))) == ["a"]


def test_offer_when_there_are_too_many_then_left_out_and_marked() -> None:
    """Where rank counts alone the view tells of them; the mark is given out once few are ready."""
    known = Backlog({"w": 2}, 3, strict=["w"])
    for number in range(5):
        known.offer(candidate(f"job-{number}"), at(0))
    assert known.ready() == 3
    assert known.overflowed(at(0)) == []
    known.offer(candidate("high", priority=1), at(0))
    assert known.ready("w") == 4
    known.take("w", 4, at(0))
    assert known.take_reserve() == []
    assert known.overflowed(at(0)) == ["w"]
    assert known.overflowed(at(0)) == []


def test_offer_when_there_are_too_many_then_their_ids_are_kept_and_those_of_higher_priority_come_first() -> None:
    """No view is asked before they are used up, and the feed is not read on for their type."""
    known = Backlog({"w": 2}, 3)
    for number in range(8):
        known.offer(candidate(f"job-{number}"), at(0))
    for number in range(4):
        known.offer(candidate(f"high-{number}", priority=1), at(0))
    assert known.ready() == 6, "twice as many of higher priority"
    assert known.take_reserve() == []
    assert not known.wants_reserve()
    known.take("w", 6, at(0))
    assert known.wants_reserve()
    assert not known.wants_more()
    assert known.take_reserve() == ["high-3", "job-3", "job-4"]
    assert not known.is_quiet
    assert known.take_reserve() == ["job-5", "job-6", "job-7"]
    assert known.overflow_in(at(0)) is None
    assert known.wants_more()


def test_offer_when_even_the_ids_are_too_many_then_marked_and_looked_for_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job that comes twice is kept once."""
    monkeypatch.setattr("couchjobs.broker.type_queue._MOST_IN_RESERVE", 2)
    known = Backlog({"w": 2}, 1)
    for number in (0, 1, 2, 1, 2, 3):
        known.offer(candidate(f"job-{number}"), at(0))
    known.take("w", 1, at(0))
    assert known.overflowed(at(0)) == []
    assert known.take_reserve() == ["job-1"]
    assert known.overflow_in(at(0)) is None
    assert known.take_reserve() == ["job-2"]
    assert known.overflow_in(at(0)) == 0
    known.offer(candidate("job-2"), at(1))
    known.offer(candidate("job-4"), at(1))
    assert ids(known.take("w", 9, at(1))) == ["job-2"], "what is new does not come before what the view has"
    assert known.overflowed(at(1)) == ["w"]
    assert known.overflowed(at(1)) == []
    known.offer(candidate("job-3"), at(1))
    known.offer(candidate("job-4"), at(1))
    assert ids(known.take("w", 9, at(1))) == ["job-3"]
    assert known.take_reserve() == ["job-4"]


def test_take_when_new_jobs_come_as_quickly_as_they_are_taken_then_old_ones_are_not_passed_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As feed, reader and sweeper do it: what was left out by its id first, and what the view alone has by turns."""
    monkeypatch.setattr("couchjobs.broker.type_queue._MOST_IN_RESERVE", 600)
    known = Backlog({"w": 20}, 100)
    queued = {f"old-{number:04}": float(number) for number in range(1000)}
    for job_id, due in queued.items():
        known.offer(candidate(job_id, due=due), at(0))
    order: list[str] = []
    for tick in range(200):
        now = at(0.25 * (tick + 1))
        taken = ids(known.take("w", 10, now))
        order += taken
        for job_id in taken:
            del queued[job_id]
        for job_id in known.take_reserve():
            known.offer(candidate(job_id, due=queued[job_id]), now)
        for _ in known.overflowed(now):
            oldest = sorted(queued, key=lambda job_id: queued[job_id])
            for job_id in oldest[:100]:
                if not known.knows(job_id, "1-a"):
                    known.offer(candidate(job_id, due=queued[job_id]), now)
            known.note_overflow("w", 0.0)
        for number in range(10):
            queued[f"new-{tick:03}-{number}"] = 10_000.0 + tick
            known.offer(candidate(f"new-{tick:03}-{number}", due=10_000.0 + tick), now)
    assert len(order) == 2000
    assert max(place for place, job_id in enumerate(order) if job_id.startswith("old")) < 1400
    assert not [job_id for job_id in queued if job_id.startswith("old")]


def test_reassign_when_partitions_change_then_what_was_left_is_ready_and_the_rest_is_not() -> None:
    """Before their delay as well: it was for the daemon that has the first right no longer."""
    known = Backlog({"w": 2}, 100, delay_s=0.25)
    for number in range(4):
        known.offer(candidate(f"job-{number}", assigned=False), at(0))
    known.next_in(["w"], at(1))
    known.offer(candidate("early", assigned=False), at(1))
    known.reassign(lambda job_id, worker: worker == "w" and job_id in ("job-1", "early"), at(1))
    assert known.ready() == 2
    assert ids(known.take("w", 2, at(1))) == ["early", "job-1"]
    assert known.next_in(["w"], at(1.3)) is not None


def test_wants_more_when_nothing_or_little_of_a_type_is_ready() -> None:
    """A type without any candidate makes nobody want more as long as another one has plenty."""
    known = Backlog({"few": 1, "many": 100}, 1000)
    assert known.wants_more()
    for number in range(32):
        known.offer(candidate(f"job-{number}", worker="few"), at(0))
    assert not known.wants_more()
    known.offer(candidate("one", worker="many"), at(0))
    assert known.wants_more()
    known.take("many", 1, at(0))
    known.take("few", 1, at(0))
    assert known.wants_more()


def test_offer_when_too_many_wait_then_the_earliest_do_and_the_rest_is_looked_for_in_time() -> None:
    """A left out job is not looked for before its time has come."""
    known = Backlog({"w": 2}, 2)
    for not_before in (30.0, 20.0, 10.0, 40.0, 50.0):
        known.offer(candidate(f"job-{not_before}", not_before=not_before), at(0))
    assert known.next_in(["w"], at(0)) == 10
    assert known.overflowed(at(29)) == []
    assert ids(known.take("w", 9, at(29))) == ["job-10.0", "job-20.0"]
    assert known.overflowed(at(30)) == ["w"]
    assert known.next_in(["w"], at(30)) is None


def test_next_in_when_candidates_are_ripe_then_at_once_and_not_never() -> None:
    """Whoever asks after he has taken must be told of what has ripened since: it was lost until the next sweep."""
    known = Backlog({"w": 2}, 10)
    known.offer(candidate("a", not_before=5), at(0))
    known.offer(candidate("b", not_before=9), at(0))
    assert known.take("w", 2, at(4.9)) == []
    assert known.next_in(["w"], at(5)) == 0
    assert ids(known.take("w", 2, at(5))) == ["a"]
    assert known.next_in(["w"], at(5)) == 4
    assert ids(known.take("w", 2, at(9))) == ["b"]
    assert known.next_in(["w"], at(9)) is None


def test_offer_when_the_wall_clock_is_set_back_then_what_is_left_to_others_waits_no_longer() -> None:
    """A delay is for the clock that nobody sets."""
    known = Backlog({"w": 2}, 10, delay_s=0.25)
    known.offer(candidate("a", assigned=False), Moment(5000, 100))
    assert known.next_in(["w"], Moment(1400, 100)) == 0.25
    assert ids(known.take("w", 2, Moment(1400, 100.25))) == ["a"]


def test_backlog_when_jobs_come_and_go_then_no_queue_grows() -> None:
    """The two orders hold what the other has taken for a while, and not for ever."""
    known = Backlog({"w": 2}, 100)
    for number in range(60_000):
        known.offer(candidate(str(number), due=-number, priority=number % 3), at(0))
        known.take("w", 1, at(0))
    queue = known._queues["w"]
    assert len(queue._by_age) < 6000
    assert len(queue._by_priority) < 6000


def test_forget_when_job_moved_on_then_not_taken() -> None:
    """The feed says that somebody else has it."""
    known = Backlog({"w": 2}, 10)
    known.offer(candidate("a"), at(0))
    assert known.knows("a", "1-a")
    assert not known.knows("a", "2-b")
    known.forget("a")
    assert known.take("w", 1, at(0)) == []


def test_take_when_jobs_are_left_to_others_then_own_ones_first_and_few_are_taken_over() -> None:
    """At most one for each slot and delay, however many lie there."""
    known = Backlog({"w": 2}, 100, delay_s=0.25)
    for number in range(10):
        known.offer(candidate(f"other-{number}", assigned=False), at(0))
    known.offer(candidate("own"), at(0))
    assert ids(known.take("w", 9, at(0))) == ["own"]
    assert known.next_in(["w"], at(0)) == 0.25
    assert ids(known.take("w", 9, at(0.25))) == ["other-0", "other-1"]
    assert known.take("w", 9, at(0.25)) == []
    assert known.next_in(["w"], at(0.25)) == 0.125
    assert ids(known.take("w", 9, at(0.375))) == ["other-2"]
    known.offer(candidate("own"), at(1))
    assert ids(known.take("w", 9, at(9))) == ["own", "other-3", "other-4"]


def test_next_in_when_slots_are_full_then_jobs_left_to_others_wake_nobody() -> None:
    """They are looked at once a slot is free."""
    known = Backlog({"w": 2, "full": 1}, 100, delay_s=0.25)
    known.offer(Candidate("other", "1-a", "full", 0, 0, None, assigned=False), at(0))
    assert known.next_in(["w"], at(9)) is None
    assert known.next_in(["w", "full"], at(9)) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(-1, 2), st.sampled_from([0.0, 5.0]), st.booleans()), max_size=200
    )
)
def test_backlog_when_anything_happens_then_each_is_taken_at_most_once_and_counts_hold(
    steps: list[tuple[int, int, float, bool]],
) -> None:
    """Offers, replacements, takes and forgets in any order."""
    known = Backlog({"w": 2}, 10)
    present: set[str] = set()
    for number, priority, not_before, take in steps:
        if take:
            for one in known.take("w", 2, at(10.0 if priority else 0.0)):
                assert one.job_id in present
                present.discard(one.job_id)
        elif priority < 0:
            known.forget(str(number))
            present.discard(str(number))
        else:
            known.offer(candidate(str(number), due=number, priority=priority, not_before=not_before), at(0))
            present.discard(str(number))
            if known.knows(str(number), "1-a"):
                present.add(str(number))
    present = {job_id for job_id in present if known.knows(job_id, "1-a")}
    rest = {one.job_id for one in known.take("w", 1000, at(10))}
    assert rest == present
    assert known.ready() == 0


def test_backlog_when_jobs_are_anothers_then_those_that_could_run_at_once_count_until_they_are_taken() -> None:
    """So many free slots look no further; what waits for its own time fills none."""
    known = Backlog({"w": 3}, 100, 0.25)
    for number in range(3):
        known.offer(candidate(f"other-{number}", assigned=False), at(0))
    later = candidate("later", assigned=False)
    later.not_before = at(0).wall + 60
    known.offer(later, at(0))
    known.offer(candidate("own"), at(0))
    assert known.runnable("w") == 4
    assert len(known.take("w", 3, at(1))) == 3
    assert known.runnable("w") == 1
    known.reassign(lambda *_: True, at(1))
    assert known.runnable("w") == 1, "ready by now"
    known.forget("later")
    known.take("w", 3, at(1))
    assert known.runnable("w") == 0


def test_quiet_when_a_job_of_another_daemons_is_due_later_then_as_with_an_own_one() -> None:
    """It wakes whoever sleeps when it counts as abandoned; until then nobody stays awake for it."""
    known = Backlog({"w": 2}, 100, delay_s=0.5)
    known.offer(candidate("own", not_before=3600), at(0))
    known.offer(candidate("other", not_before=3600, assigned=False), at(0))
    assert known.is_quiet
    assert known.next_in(["w"], at(0)) == 3600
    known.offer(candidate("due", assigned=False), at(0))
    assert not known.is_quiet
