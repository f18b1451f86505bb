"""Queued jobs of one database that this daemon knows of and may claim: a bounded look ahead, never the whole queue.

A candidate is ready (it may be claimed now), or due later, or left to the daemon that it is assigned to, in whose
partition it is. What that has not claimed after a delay counts as abandoned, and is taken over by slots that have
nothing else to do, by each of them at most once in every such delay: a daemon that is full or stuck gets help, one that
is merely slower keeps its partition. Nothing here touches the network, and the present is an argument: `scheduled_at`
is compared with the clock that people set, delays with the one that nobody sets.

`next_in` and `take` answer from the same state: where the one says 0, the other yields something at that moment; where
it says a time, then; where it says None, nothing can be taken before something else is offered.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from couchjobs.jobs.job import Job
from couchjobs.timestamps import Moment

_ROOM_FOR_PRIORITY = 2
"""Times as many of higher priority than usual find a place as of the others."""
_ROOM_TO_SORT = 2
"""Times as many as may wait are collected before the latest are left out: sorting costs, and is to be seldom."""
_STALE_ENTRIES = 5000
"""Entries of jobs that are gone, in one order, beyond those of jobs that are there: so seldom is it cleaned."""
_LEAST_AHEAD = 32
"""Of a type with few slots so many candidates count as enough, so that not each free slot asks for a page."""
_ENOUGH = 1 - 1e-9
"""A whole job to take over, but for what is lost in computing with fractions of seconds."""


class _State(Enum):
    READY = auto()
    LATER = auto()
    """Its time has not come."""
    LEFT = auto()
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
    state: _State = _State.READY
    since: float = 0.0
    """When its present state may end: seconds since 1970 where it is LATER, monotonic ones where it is LEFT."""


class _TypeQueue:
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
        self._left: list[tuple[float, str]] = []
        self._abandoned: deque[str] = deque()
        self._taken = 0
        self._help = float(slots)
        """How many jobs of other daemons may be taken over, as of `_help_at`."""
        self._help_at = 0.0
        self.ready = 0
        self.unready = 0
        self.overflow_from: float | None = None
        """From when on there may be jobs to claim that are no candidates; seconds since 1970."""
        self.low = max(1, min(most // 2, max(_LEAST_AHEAD, slots)))

    def add(self, one: Candidate, now: Moment) -> None:
        """Add a candidate in the state that it has now."""
        self._known[one.job_id] = one
        if not one.assigned:
            one.state, one.since = _State.LEFT, now.monotonic + max(0.0, one.not_before - now.wall) + self._delay_s
            self._compact()
            heapq.heappush(self._left, (one.since, one.job_id))
        elif one.not_before > now.wall:
            one.state, one.since = _State.LATER, one.not_before
            self._compact()
            heapq.heappush(self._later, (one.since, one.job_id))
        else:
            one.state = _State.READY
            self.ready += 1
            self._compact()
            heapq.heappush(self._by_priority, (-one.priority, one.due, one.job_id))
            heapq.heappush(self._by_age, (one.due, one.job_id))
            return
        self.unready += 1

    def remove(self, one: Candidate) -> Candidate:
        """Remove and return a candidate."""
        del self._known[one.job_id]
        if one.state is _State.READY:
            self.ready -= 1
        else:
            self.unready -= 1
        return one

    def again(self, one: Candidate, now: Moment) -> None:
        """Put a candidate where it belongs by now."""
        self.add(self.remove(one), now)

    def overflow_latest(self, most: int) -> None:
        """Of those that are not ready keep so many, the earliest ones."""
        all_types = self._known.values()
        unready = [one for one in all_types if one.worker == self._worker_type and one.state is not _State.READY]
        unready.sort(key=lambda one: one.not_before)
        for one in unready[most:]:
            self.remove(one)
        self.note_overflow(unready[most].not_before)
        self._later = [entry for entry in self._later if self._is_due(_State.LATER, *entry)]
        self._left = [entry for entry in self._left if self._is_due(_State.LEFT, *entry)]
        heapq.heapify(self._later)
        heapq.heapify(self._left)

    def note_overflow(self, not_before: float) -> None:
        """Note that jobs are no candidates which may be claimed from then on."""
        self.overflow_from = not_before if self.overflow_from is None else min(self.overflow_from, not_before)

    def _get(self, state: _State, job_id: str) -> Candidate | None:
        """Return the candidate that an entry of an order stands for; None where it is no longer what it was."""
        one = self._known.get(job_id)
        return one if one is not None and one.state is state and one.worker == self._worker_type else None

    def _is_due(self, state: _State, since: float, job_id: str) -> bool:
        one = self._get(state, job_id)
        return one is not None and one.since == since

    def _compact(self) -> None:
        """Drop the entries of jobs that are gone, or taken by the other order, before they outnumber the rest."""
        most = 2 * self.unready + _STALE_ENTRIES
        if len(self._later) > most:
            self._later = [entry for entry in self._later if self._is_due(_State.LATER, *entry)]
            heapq.heapify(self._later)
        if len(self._left) > most:
            self._left = [entry for entry in self._left if self._is_due(_State.LEFT, *entry)]
            heapq.heapify(self._left)
        if len(self._abandoned) > most:
            self._abandoned = deque(job_id for job_id in self._abandoned if self._get(_State.ABANDONED, job_id))
        most = 2 * self.ready + _STALE_ENTRIES
        if len(self._by_priority) > most:
            self._by_priority = [entry for entry in self._by_priority if self._get(_State.READY, entry[-1])]
            heapq.heapify(self._by_priority)
        if len(self._by_age) > most:
            self._by_age = [entry for entry in self._by_age if self._get(_State.READY, entry[-1])]
            heapq.heapify(self._by_age)

    def ripen(self, now: Moment) -> None:
        """Move on what has waited long enough; what is gone is dropped on the way."""
        while self._later:
            since, job_id = self._later[0]
            alive = self._is_due(_State.LATER, since, job_id)
            if alive and since > now.wall:
                break
            heapq.heappop(self._later)
            if alive:
                self.again(self._known[job_id], now)
        while self._left:
            since, job_id = self._left[0]
            alive = self._is_due(_State.LEFT, since, job_id)
            if alive and since > now.monotonic:
                break
            heapq.heappop(self._left)
            if alive and self._known[job_id].not_before > now.wall:  # somebody has set the clock back
                self.again(self._known[job_id], now)
            elif alive:
                self._known[job_id].state = _State.ABANDONED
                self._abandoned.append(job_id)
        while self._abandoned and not self._get(_State.ABANDONED, self._abandoned[0]):
            self._abandoned.popleft()

    def pop_ready(self) -> Candidate | None:
        """Remove and return one that is ready: two of three by priority, one of three the oldest."""
        oldest = self._taken % 3 == 2 and not self.strict
        while self.ready:
            job_id = heapq.heappop(self._by_age)[-1] if oldest else heapq.heappop(self._by_priority)[-1]
            if (one := self._get(_State.READY, job_id)) is not None:
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
            if (one := self._get(_State.ABANDONED, job_id)) is not None:
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
        if self._abandoned or self._left:
            help_in = max(0.0, 1 - self._help_by(now)) * self._delay_s / self._slots
            waits.append(help_in if self._abandoned else max(help_in, self._left[0][0] - now.monotonic))
        return max(0.0, min(waits)) if waits else None


class Backlog:
    """The candidates of all worker types of one database.

    Args:
        slots: how many jobs of each worker type run at once.
        most: how many of each type are ready at most; about as many are not.
        delay_s: how long a job is left to the daemon that it is assigned to.
        strict: the worker types whose candidates are taken by priority alone.
    """

    def __init__(self, slots: Mapping[str, int], most: int, delay_s: float = 0.0, strict: Collection[str] = ()) -> None:
        self._known: dict[str, Candidate] = {}
        self._queues = {name: _TypeQueue(name, self._known, count, most, delay_s) for name, count in slots.items()}
        for name in strict:
            self._queues[name].strict = True
        self._most = most

    def offer(self, one: Candidate, now: Moment) -> None:
        """Add a candidate, or replace what was known of that job.

        Where there are too many, it is left out, and it is noted from when on it may be claimed: see `overflowed`. One
        of higher priority still finds a place; of those that are not ready, the earliest do.
        """
        self.forget(one.job_id)
        queue = self._queues[one.worker]
        most = self._most if one.priority <= 0 else self._most * _ROOM_FOR_PRIORITY
        is_ready = one.assigned and one.not_before <= now.wall
        if is_ready and queue.ready >= most:
            queue.note_overflow(now.wall)
            return
        if not is_ready:
            one.job = None
        queue.add(one, now)
        if queue.unready > _ROOM_TO_SORT * most:
            queue.overflow_latest(most)

    def forget(self, job_id: str) -> None:
        """Drop what is known of that job."""
        one = self._known.get(job_id)
        if one is not None:
            self._queues[one.worker].remove(one)

    def reassign(self, has: Callable[[str, str], bool], now: Moment) -> None:
        """Leave to others no longer what `has(job id, worker type)` says to be in this daemon's partition by now."""
        for one in [one for one in self._known.values() if not one.assigned and has(one.job_id, one.worker)]:
            one.assigned = True
            self._queues[one.worker].again(one, now)

    def knows(self, job_id: str, rev: str) -> bool:
        """Return whether that very revision is a candidate."""
        one = self._known.get(job_id)
        return one is not None and one.rev == rev

    def take(self, worker_type: str, count: int, now: Moment) -> list[Candidate]:
        """Remove and return at most `count` candidates: two of three by priority, one of three the oldest.

        Where none of them is left, those that other daemons have abandoned.
        """
        queue = self._queues[worker_type]
        queue.ripen(now)
        taken: list[Candidate] = []
        while len(taken) < count and (one := queue.pop_ready() or queue.pop_abandoned(now)) is not None:
            taken.append(one)
        return taken

    def next_in(self, worker_types: Iterable[str], now: Moment) -> float | None:
        """Return in how many seconds a candidate of these types can be taken: 0 for at once, None for no time."""
        waits = [
            wait
            for name in worker_types
            if (queue := self._queues.get(name)) is not None and (wait := queue.next_in(now)) is not None
        ]
        return min(waits, default=None)

    def known(self, worker_type: str) -> int:
        """Return how many candidates of that type there are, ready or not."""
        return self._queues[worker_type].ready + self._queues[worker_type].unready

    def ready(self, worker_type: str | None = None) -> int:
        """Return how many candidates are ready, of that type or of all."""
        return sum(queue.ready for name, queue in self._queues.items() if worker_type in (None, name))

    def __bool__(self) -> bool:
        """Return whether there is any candidate."""
        return bool(self._known)

    @property
    def is_quiet(self) -> bool:
        """Return whether all candidates wait for their time, and all that there may be are known."""
        return not self.has_overflow and all(one.state is _State.LATER for one in self._known.values())

    @property
    def has_overflow(self) -> bool:
        """Return whether there are, or will be, jobs to claim that are no candidates."""
        return any(queue.overflow_from is not None for queue in self._queues.values())

    def wants_more(self) -> bool:
        """Return whether nothing is ready, or of some type little: fewer than its slots could take at once."""
        ready = [(queue.ready, queue.low) for queue in self._queues.values() if queue.ready]
        return not ready or any(count < low for count, low in ready)

    def note_overflow(self, worker_type: str, not_before: float) -> None:
        """Note that queued jobs of that type are no candidates, and from when on they may be claimed."""
        self._queues[worker_type].note_overflow(not_before)

    def overflow_in(self, now: Moment) -> float | None:
        """Return in how many seconds `overflowed` names a type, by what is ready now; None: not at all."""
        waits = [
            queue.overflow_from - now.wall
            for queue in self._queues.values()
            if queue.overflow_from is not None and queue.ready < queue.low
        ]
        return max(0.0, min(waits)) if waits else None

    def overflowed(self, now: Moment) -> list[str]:
        """Return the types with jobs left out that may be claimed by now, and few ready; forget the notes."""
        types = [
            name
            for name, queue in self._queues.items()
            if queue.overflow_from is not None and queue.overflow_from <= now.wall and queue.ready < queue.low
        ]
        for name in types:
            self._queues[name].overflow_from = None
        return types
