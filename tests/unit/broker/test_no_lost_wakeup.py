"""What the backlog says of when something can be taken is what can be taken then: no loop sleeps through it.

`COUCHJOBS_TEST_EXAMPLES` says how many histories are tried.
"""

from __future__ import annotations

import copy
import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from couchjobs.broker import type_queue
from couchjobs.broker.backlog import Backlog
from couchjobs.broker.type_queue import Candidate
from couchjobs.broker.unread import Unread
from couchjobs.timestamps import Moment

EXAMPLES = int(os.environ.get("COUCHJOBS_TEST_EXAMPLES", "60"))
TYPES = ("one", "many")
SLOTS = {"one": 1, "many": 4}
DELAY_S = 0.25
IDS = st.sampled_from([f"job-{number}" for number in range(8)])
SECONDS = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 7.0])
LATER_S = (0.0, 0.125, 0.25, 1.0, 8.0, 3600.0)
FREE = st.sampled_from([("one",), ("many",), TYPES])


class BacklogMachine(RuleBasedStateMachine):
    """Whatever is offered, forgotten, taken and handed over, in whatever order and at whatever times."""

    def __init__(self) -> None:
        super().__init__()
        self.before = type_queue._MOST_IN_RESERVE
        type_queue._MOST_IN_RESERVE = 3  # a full reserve is as near as one that is not
        self.backlog = Backlog(SLOTS, 3, DELAY_S)
        self.now = Moment(1000.0, 50.0)
        self.number = 0

    def teardown(self) -> None:
        """Leave the module as it was."""
        type_queue._MOST_IN_RESERVE = self.before

    def at(self, seconds: float) -> Moment:
        """So many seconds from now, by both clocks."""
        return Moment(self.now.wall + seconds, self.now.monotonic + seconds)

    @rule(job_id=IDS, worker=st.sampled_from(TYPES), priority=st.integers(0, 1), ahead=SECONDS, assigned=st.booleans())
    def offer(self, job_id: str, worker: str, priority: int, ahead: float, assigned: bool) -> None:
        """A row of the feed has shown a queued job."""
        self.number += 1
        not_before = self.now.wall + ahead if ahead else 0.0
        one = Candidate(job_id, f"{self.number}-a", worker, self.number, priority, None, not_before, assigned)
        self.backlog.offer(one, self.now)

    @rule(job_id=IDS)
    def forget(self, job_id: str) -> None:
        """Somebody else has it."""
        self.backlog.forget(job_id)

    @rule(mine=st.sets(IDS))
    def reassign(self, mine: set[str]) -> None:
        """A daemon has gone."""
        self.backlog.reassign(lambda job_id, worker: job_id in mine, self.now)

    @rule(worker=st.sampled_from(TYPES), count=st.integers(1, 4))
    def take(self, worker: str, count: int) -> None:
        """Slots are free."""
        self.backlog.take(worker, count, self.now)

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.now = self.at(seconds)

    @rule(free=FREE)
    def sleep(self, free: tuple[str, ...]) -> None:
        """Time passes until there is something to take."""
        wait = self.backlog.next_in(free, self.now)
        self.now = self.at(wait or 0.0)

    @rule(seconds=st.sampled_from([0.5, 60.0]))
    def set_clock(self, seconds: float) -> None:
        """Somebody sets the clock of the host ahead (set back, it makes a wait end once for nothing)."""
        self.now = Moment(self.now.wall + seconds, self.now.monotonic)

    @rule(worker=st.sampled_from(TYPES), ahead=SECONDS)
    def see_more(self, worker: str, ahead: float) -> None:
        """The view has more than finds a place, due then."""
        self.backlog.note_overflow(worker, self.now.wall + ahead)

    @rule(worker=st.sampled_from(TYPES), ids=st.sets(IDS))
    def see_ids(self, worker: str, ids: set[str]) -> None:
        """The view has shown these."""
        if not self.backlog.keep_in_reserve(worker, ids):
            self.backlog.note_overflow(worker, self.now.wall)

    @rule()
    def read(self) -> None:
        """What is in reserve is read again, where it is wanted, or the view is."""
        self.backlog.take_reserve()
        self.backlog.overflowed(self.now)

    @invariant()
    def what_found_no_place_is_found(self) -> None:
        """By its ids or by the view: nothing is left that nobody looks for."""
        wait = self.backlog.overflow_in(self.now)
        if wait is not None:
            assert copy.deepcopy(self.backlog).overflowed(self.at(wait))
            assert wait == 0 or not copy.deepcopy(self.backlog).overflowed(self.at(wait * 0.99))
        assert bool(copy.deepcopy(self.backlog).take_reserve()) is self.backlog.wants_reserve()
        if not self.backlog.ready() and (self.backlog.has_reserve or self.backlog.has_overflow):
            assert wait is not None or self.backlog.wants_reserve()

    @invariant()
    def what_is_said_holds(self) -> None:
        """Of free slots of either type, and of both."""
        for free in (TYPES[:1], TYPES[1:], TYPES):
            wait = copy.deepcopy(self.backlog).next_in(free, self.now)
            if wait is None:
                assert not any(self.yields(free, seconds) for seconds in LATER_S)
            else:
                assert self.yields(free, wait)
                assert wait == 0 or not any(self.yields(free, wait * part) for part in (0.0, 0.5, 0.99))

    def yields(self, free: tuple[str, ...], seconds: float) -> bool:
        """Whether something can be taken so many seconds from now."""
        backlog = copy.deepcopy(self.backlog)
        return any(backlog.take(worker, 1, self.at(seconds)) for worker in free)


class UnreadMachine(RuleBasedStateMachine):
    """The same of what is to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = Unread(DELAY_S)
        self.now = 50.0

    @rule(job_id=IDS, ahead=SECONDS)
    def read_again(self, job_id: str, ahead: float) -> None:
        """A claim was not answered, or a mark was not taken."""
        self.unread.read_again(job_id, self.now + ahead)

    @rule(job_id=IDS, rev=st.sampled_from(["1-a", "2-a"]))
    def set_aside(self, job_id: str, rev: str) -> None:
        """The feed shows a job of another daemon."""
        self.unread.set_aside(job_id, rev, self.now)

    @rule(job_id=IDS)
    def forget(self, job_id: str) -> None:
        """And another row of it."""
        self.unread.forget_row(job_id)

    @rule(mine=st.sets(IDS))
    def reassign(self, mine: set[str]) -> None:
        """A daemon has gone."""
        self.unread.reassign(mine.__contains__, self.now)

    @rule(spare=st.integers(0, 3), seconds=SECONDS)
    def take(self, spare: int, seconds: float) -> None:
        """Time passes, and the sweeper looks."""
        self.now += seconds
        self.unread.take(spare, self.now)
        self.unread.judge(lambda _: spare == 3)

    @invariant()
    def what_is_said_holds(self) -> None:
        """With spare slots and without."""
        for spare in (0, 2):
            wait = copy.deepcopy(self.unread).next_in(spare, self.now)
            if wait is None:
                assert not any(self.yields(spare, seconds) for seconds in LATER_S)
            else:
                assert self.yields(spare, wait)
                assert wait == 0 or not any(self.yields(spare, wait * part) for part in (0.0, 0.5, 0.99))

    def yields(self, spare: int, seconds: float) -> bool:
        """Whether something is to be read so many seconds from now."""
        return bool(copy.deepcopy(self.unread).take(spare, self.now + seconds))


MANY = settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
TestBacklog = BacklogMachine.TestCase
TestBacklog.settings = MANY
TestUnread = UnreadMachine.TestCase
TestUnread.settings = MANY
