"""The candidates of one worker type, in the orders in which they are taken: see `backlog`.

Beyond those that find a place, ids are kept in reserve, in the order in which they came: they are read again once few
are ready.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice

from couchjobs.jobs.job import Job
from couchjobs.timestamps import Moment

_STALE_ENTRIES = 5000
"""Entries of jobs that are gone, in one order, beyond those of jobs that are there: so seldom is it cleaned."""
_MOST_IN_RESERVE = 10_000
"""Ids of ready jobs that found no place, some 1 MB; where there are more, the view tells of them."""
_NEARLY_USED_UP = 5
"""Once less than one in so many of a full reserve is left, the view is read for more."""
_LEAST_AHEAD = 32
"""Of a type with few slots so many candidates count as enough, so that not each free slot asks for a page."""
_ENOUGH = 1 - 1e-9
"""A whole job to take over, but for what is lost in computing with fractions of seconds."""


class State(Enum):
    """What a candidate waits for."""

    READY = auto()
    LATER = auto()
    """Its time has not come."""
    ASSIGNED_ELSEWHERE = auto()
    """To the daemon that it is assigned to."""
    ABANDONED = auto()
    """By that daemon."""


@dataclass(slots=True)
class Candidate:
    """One queued job. `job` is None where the document must be read again before it is claimed."""

    job_id: str
    rev: str
    worker: str
    due: float
    """Seconds since 1970, for the order."""
    priority: int
    job: Job | None
    not_before: float = 0.0
    """Seconds since 1970; 0 for at once."""
    assigned: bool = True
    """Whether it is in this daemon's partition."""
    state: State = State.READY
    is_others: bool = False
    """Whether it counts among those that another daemon could run at once."""
    since: float = 0.0
    """When its present state may end: seconds since 1970 where it is LATER, monotonic ones where it is another's."""

    @property
    def waits_for_its_time(self) -> bool:
        """Return whether its time had not come when it was last looked at, whosever it is."""
        return self.state is State.LATER or (self.state is State.ASSIGNED_ELSEWHERE and not self.is_others)


class Reserve:
    """The ids of ready jobs that found no place, in the order in which they came, those of higher priority first."""

    def __init__(self) -> None:
        self._first: dict[str, None] = {}
        self._others: dict[str, None] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._first) + len(self._others)

    def add(self, job_id: str, *, before_others: bool) -> bool:
        """Keep an id; return whether there was room."""
        ids = self._first if before_others else self._others
        if len(ids) >= _MOST_IN_RESERVE and job_id not in ids:
            return False
        ids[job_id] = None
        return True

    def take(self, count: int) -> list[str]:
        """Remove and return at most so many."""
        taken: list[str] = []
        for ids in (self._first, self._others):
            some = [*islice(ids, count - len(taken))]
            for job_id in some:
                del ids[job_id]
            taken += some
        return taken


class TypeQueue:
    """The candidates of one worker type. Its orders hold ids that may be gone, or of another type: see `_get`."""

    strict = False
    """Whether a candidate of lower priority waits for all those of higher priority, however old it is."""

    def __init__(self, worker_type: str, known: dict[str, Candidate], slots: int, most: int, delay_s: float) -> None:
        self._worker_type = worker_type
        self._known = known
        self._slots = slots
        self._delay_s = delay_s
        self._by_priority: list[tuple[int, float, str]] = []
        self._by_age: list[tuple[float, str]] = []
        self._later: list[tuple[float, str]] = []
        self._elsewhere: list[tuple[float, str]] = []
        self._abandoned: deque[str] = deque()
        self._taken = 0
        self._help = float(slots)
        """How many jobs of other daemons may be taken over, as of `_help_at`."""
        self._help_at = 0.0
        self.ready = 0
        self.unready = 0
        self.others = 0
        """Of those, the ones that are another daemon's and could run at once."""
        self.reserve = Reserve()
        self._recalled: dict[str, Candidate | None] = {}
        """Those of them that are being read again."""
        self.overflow_from: float | None = None
        """From when on there may be jobs to claim that are no candidates, nor in reserve; seconds since 1970."""
        self.low = max(1, min(most // 2, max(_LEAST_AHEAD, slots)))

    def add(self, one: Candidate, now: Moment) -> None:
        """Add a candidate in the state that it has now."""
        self._known[one.job_id] = one
        if not one.assigned:
            one.state, one.since = (
                State.ASSIGNED_ELSEWHERE,
                now.monotonic + max(0.0, one.not_before - now.wall) + self._delay_s,
            )
            one.is_others = one.not_before <= now.wall
            self.others += one.is_others
            self._compact()
            heapq.heappush(self._elsewhere, (one.since, one.job_id))
        elif one.not_before > now.wall:
            one.state, one.since = State.LATER, one.not_before
            self._compact()
            heapq.heappush(self._later, (one.since, one.job_id))
        else:
            one.state = State.READY
            self.ready += 1
            self._compact()
            heapq.heappush(self._by_priority, (-one.priority, one.due, one.job_id))
            heapq.heappush(self._by_age, (one.due, one.job_id))
            return
        self.unready += 1

    def remove(self, one: Candidate) -> Candidate:
        """Remove and return a candidate."""
        del self._known[one.job_id]
        if one.state is State.READY:
            self.ready -= 1
        else:
            self.unready -= 1
            self.others -= one.is_others
            one.is_others = False
        return one

    def again(self, one: Candidate, now: Moment) -> None:
        """Put a candidate where it belongs by now."""
        self.add(self.remove(one), now)

    def overflow_latest(self, most: int) -> None:
        """Of those that are not ready keep so many, the earliest ones."""
        all_types = self._known.values()
        unready = [one for one in all_types if one.worker == self._worker_type and one.state is not State.READY]
        unready.sort(key=lambda one: one.not_before)
        for one in unready[most:]:
            self.remove(one)
        self.note_overflow(unready[most].not_before)
        self._later = [entry for entry in self._later if self._is_due(State.LATER, *entry)]
        self._elsewhere = [entry for entry in self._elsewhere if self._is_due(State.ASSIGNED_ELSEWHERE, *entry)]
        heapq.heapify(self._later)
        heapq.heapify(self._elsewhere)

    def keep_in_reserve(self, one: Candidate, now: Moment) -> None:
        """Keep the id of a job that is ready and finds no place; the view tells of it where order is strict."""
        unknown = self.strict or self._is_overflowed(now)  # what the view has is older
        if unknown or not self.reserve.add(one.job_id, before_others=one.priority > 0):
            self.note_overflow(now.wall)

    def _is_overflowed(self, now: Moment) -> bool:
        return self.overflow_from is not None and self.overflow_from <= now.wall

    def comes_after_others(self, one: Candidate, now: Moment) -> bool:
        """Return whether jobs in reserve came before that one, which is none of those that were just read again.

        While the view is being read, nothing is noted of it: what it shows finds its place, and so does what is new.
        Where little is ready, nothing waits for a view that may be being built for other types.
        """
        if self._recalled.pop(one.job_id, one) is None:
            return False
        return one.priority <= 0 and (bool(self.reserve) or (self.ready >= self.low and self._is_overflowed(now)))

    def take_reserve(self, most: int) -> list[str]:
        """Remove and return ids from the reserve, so many that `most` are ready then; none while many are."""
        if self.ready >= self.low:
            return []
        self._recalled = dict.fromkeys(self.reserve.take(most - self.ready))
        return [*self._recalled]

    def overflow_in(self, now: Moment) -> float | None:
        """Return in how many seconds the view is to be read for more; None: something else must happen first.

        It is read before the reserve is used up: it may take a second.
        """
        left = len(self.reserve)
        if self.overflow_from is None or (
            left >= _MOST_IN_RESERVE // _NEARLY_USED_UP if left else self.ready >= self.low
        ):
            return None
        return max(0.0, self.overflow_from - now.wall)

    def note_overflow(self, not_before: float) -> None:
        """Note that jobs are no candidates which may be claimed from then on."""
        self.overflow_from = not_before if self.overflow_from is None else min(self.overflow_from, not_before)

    def _get(self, state: State, job_id: str) -> Candidate | None:
        """Return the candidate that an entry of an order stands for; None where it is no longer what it was."""
        one = self._known.get(job_id)
        return one if one is not None and one.state is state and one.worker == self._worker_type else None

    def _is_due(self, state: State, since: float, job_id: str) -> bool:
        one = self._get(state, job_id)
        return one is not None and one.since == since

    def _compact(self) -> None:
        """Drop the entries of jobs that are gone, or taken by the other order, before they outnumber the rest."""
        most = 2 * self.unready + _STALE_ENTRIES
        if len(self._later) > most:
            self._later = [entry for entry in self._later if self._is_due(State.LATER, *entry)]
            heapq.heapify(self._later)
        if len(self._elsewhere) > most:
            self._elsewhere = [entry for entry in self._elsewhere if self._is_due(State.ASSIGNED_ELSEWHERE, *entry)]
            heapq.heapify(self._elsewhere)
        if len(self._abandoned) > most:
            self._abandoned = deque(job_id for job_id in self._abandoned if self._get(State.ABANDONED, job_id))
        most = 2 * self.ready + _STALE_ENTRIES
        if len(self._by_priority) > most:
            self._by_priority = [entry for entry in self._by_priority if self._get(State.READY, entry[-1])]
            heapq.heapify(self._by_priority)
        if len(self._by_age) > most:
            self._by_age = [entry for entry in self._by_age if self._get(State.READY, entry[-1])]
            heapq.heapify(self._by_age)

    def ripen(self, now: Moment) -> None:
        """Move on what has waited long enough; what is gone is dropped on the way."""
        while self._later:
            since, job_id = self._later[0]
            alive = self._is_due(State.LATER, since, job_id)
            if alive and since > now.wall:
                break
            heapq.heappop(self._later)
            if alive:
                self.again(self._known[job_id], now)
        while self._elsewhere:
            since, job_id = self._elsewhere[0]
            alive = self._is_due(State.ASSIGNED_ELSEWHERE, since, job_id)
            if alive and since > now.monotonic:
                break
            heapq.heappop(self._elsewhere)
            if alive and self._known[job_id].not_before > now.wall:  # somebody has set the clock back
                self.again(self._known[job_id], now)
            elif alive:
                self._known[job_id].state = State.ABANDONED
                self._abandoned.append(job_id)
        while self._abandoned and not self._get(State.ABANDONED, self._abandoned[0]):
            self._abandoned.popleft()

    def pop_ready(self) -> Candidate | None:
        """Remove and return one that is ready: two of three by priority, one of three the oldest."""
        oldest = self._taken % 3 == 2 and not self.strict
        while self.ready:
            job_id = heapq.heappop(self._by_age)[-1] if oldest else heapq.heappop(self._by_priority)[-1]
            if (one := self._get(State.READY, job_id)) is not None:
                self._taken += 1
                return self.remove(one)
        self._by_age.clear()
        self._by_priority.clear()
        return None

    def pop_abandoned(self, now: Moment) -> Candidate | None:
        """Remove and return one to take over."""
        self._help, self._help_at = self._help_by(now), now.monotonic
        while self._abandoned and self._help >= _ENOUGH:
            job_id = self._abandoned.popleft()
            if (one := self._get(State.ABANDONED, job_id)) is not None:
                self._help -= self._delay_s > 0
                return self.remove(one)
        return None

    def _help_by(self, now: Moment) -> float:
        """Return how many jobs of others may be taken over now: a slot each, once in every delay."""
        if self._delay_s <= 0:
            return self._help
        return min(self._slots, self._help + (now.monotonic - self._help_at) * self._slots / self._delay_s)

    def next_in(self, now: Moment) -> float | None:
        """Return in how many seconds one can be taken: 0 for at once, None where something else must happen first."""
        self.ripen(now)
        if self.ready:
            return 0.0
        waits: list[float] = []
        if self._later:
            waits.append(self._later[0][0] - now.wall)
        if self._abandoned or self._elsewhere:
            help_in = max(0.0, 1 - self._help_by(now)) * self._delay_s / self._slots
            waits.append(help_in if self._abandoned else max(help_in, self._elsewhere[0][0] - now.monotonic))
        return max(0.0, min(waits)) if waits else None
