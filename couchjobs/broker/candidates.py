"""Queued jobs that this daemon knows of and may claim: a bounded look ahead, never the backlog.

A candidate is ready (it may be claimed now), or waits for its `scheduled_at`, or is left to the daemon that has the
first right to it. What is still left there after a delay is taken over, by slots that have nothing of their own, and
by each of them at most once in every such delay: a daemon that is full or stuck gets help, one that is merely slower
keeps its share. Nothing here touches the network, and the present is an argument: `scheduled_at` is compared with the
clock that people set, delays with the one that nobody sets.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from couchjobs.jobs.job import Job
from couchjobs.timestamps import Moment

_ROOM_FOR_PRIORITY = 2
_ROOM_TO_SORT = 2
_STALE_ENTRIES = 5000
_LEAST_AHEAD = 32


@dataclass(slots=True)
class Candidate:
    """One queued job. `job` is None where the document must be read again before it is claimed."""

    job_id: str
    rev: str
    worker: str
    due: float
    priority: int
    job: Job | None
    not_before: float = 0.0
    """Seconds since 1970."""
    first_right: bool = True
    state: Literal["ready", "waiting", "leaving", "left"] = "ready"
    left_until: float = 0.0
    """Monotonic seconds."""


class _Lane:
    """The candidates of one worker type. Queues hold ids that may be gone: `known` says which are not."""

    def __init__(self, slots: int, most: int, delay_s: float) -> None:
        self.known: dict[str, Candidate] = {}
        self.by_priority: list[tuple[int, float, str]] = []
        self.by_age: list[tuple[float, str]] = []
        self.waiting: list[tuple[float, str]] = []
        self.leaving: deque[tuple[float, str]] = deque()
        self.left: deque[str] = deque()
        self.ready = 0
        self.taken = 0
        self.left_out_from: float | None = None
        self.low = max(1, min(most // 2, max(_LEAST_AHEAD, slots)))
        self._slots = slots
        self._delay_s = delay_s
        self._help = float(slots)
        self._help_at = 0.0

    def add_ready(self, candidate: Candidate) -> None:
        candidate.state = "ready"
        self.ready += 1
        self._compact()
        heapq.heappush(self.by_priority, (-candidate.priority, candidate.due, candidate.job_id))
        heapq.heappush(self.by_age, (candidate.due, candidate.job_id))

    def _compact(self) -> None:
        """Drop the entries of jobs that have been taken by the other order, before they outnumber the rest."""
        most = 2 * self.ready + _STALE_ENTRIES
        if len(self.by_priority) > most:
            self.by_priority = [entry for entry in self.by_priority if self._is_ready(entry[-1])]
            heapq.heapify(self.by_priority)
        if len(self.by_age) > most:
            self.by_age = [entry for entry in self.by_age if self._is_ready(entry[-1])]
            heapq.heapify(self.by_age)

    def _is_ready(self, job_id: str) -> bool:
        candidate = self.known.get(job_id)
        return candidate is not None and candidate.state == "ready"

    def add(self, candidate: Candidate, now: Moment, most: int) -> None:
        """Add one that is not ready: it waits for its time, or is left to its owner from now on."""
        self.known[candidate.job_id] = candidate
        if candidate.not_before > now.wall:
            candidate.state = "waiting"
            heapq.heappush(self.waiting, (candidate.not_before, candidate.job_id))
        else:
            self._leave(candidate, now)
        if len(self.known) - self.ready > _ROOM_TO_SORT * most:
            self._leave_out_latest(most)

    def _leave(self, candidate: Candidate, now: Moment) -> None:
        candidate.state = "leaving"
        candidate.left_until = now.monotonic + self._delay_s
        self.leaving.append((candidate.left_until, candidate.job_id))

    def _leave_out_latest(self, most: int) -> None:
        unready = sorted((one.not_before, one.job_id) for one in self.known.values() if one.state != "ready")
        for _, job_id in unready[most:]:
            del self.known[job_id]
        self.leave_out(unready[most][0])
        self.waiting = [entry for entry in unready[:most] if self.known[entry[-1]].state == "waiting"]
        self.leaving = deque(entry for entry in self.leaving if entry[-1] in self.known)

    def forget(self, job_id: str) -> Candidate | None:
        candidate = self.known.pop(job_id, None)
        if candidate is not None and candidate.state == "ready":
            self.ready -= 1
        return candidate

    def leave_out(self, not_before: float) -> None:
        self.left_out_from = not_before if self.left_out_from is None else min(self.left_out_from, not_before)

    def ripen(self, now: Moment) -> None:
        """Move on what has waited, or been left, long enough; what is gone is dropped on the way."""
        while self.waiting:
            not_before, job_id = self.waiting[0]
            candidate = self.known.get(job_id)
            alive = candidate is not None and candidate.state == "waiting" and candidate.not_before == not_before
            if alive and not_before > now.wall:
                break
            heapq.heappop(self.waiting)
            if alive and candidate is not None:
                if candidate.first_right:
                    self.add_ready(candidate)
                else:
                    self._leave(candidate, now)
        while self.leaving:
            left_until, job_id = self.leaving[0]
            candidate = self.known.get(job_id)
            alive = candidate is not None and candidate.state == "leaving" and candidate.left_until == left_until
            if alive and left_until > now.monotonic:
                break
            self.leaving.popleft()
            if alive and candidate is not None:
                candidate.state = "left"
                self.left.append(job_id)
        while self.left and not self._is_left(self.left[0]):
            self.left.popleft()

    def _is_left(self, job_id: str) -> bool:
        candidate = self.known.get(job_id)
        return candidate is not None and candidate.state == "left"

    def claim_left(self, has_first_right: Callable[[str, str], bool]) -> None:
        for candidate in self.known.values():
            if not candidate.first_right and has_first_right(candidate.job_id, candidate.worker):
                candidate.first_right = True
                if candidate.state in ("leaving", "left"):
                    self.add_ready(candidate)
        self.left = deque(job_id for job_id in self.left if self._is_left(job_id))

    def pop_ready(self) -> Candidate | None:
        oldest = self.taken % 3 == 2
        while self.ready:
            job_id = heapq.heappop(self.by_age)[-1] if oldest else heapq.heappop(self.by_priority)[-1]
            candidate = self.known.get(job_id)
            if candidate is not None and candidate.state == "ready":
                self.taken += 1
                return self.forget(job_id)
        self.by_age.clear()
        self.by_priority.clear()
        return None

    def pop_left(self, now: Moment) -> Candidate | None:
        self._help, self._help_at = self._help_by(now), now.monotonic
        while self.left and self._help >= 1:
            candidate = self.known.get(self.left.popleft())
            if candidate is not None and candidate.state == "left":
                self._help -= self._delay_s > 0
                return self.forget(candidate.job_id)
        return None

    def _help_by(self, now: Moment) -> float:
        """Return how many jobs of others may be taken over now: a slot each, once in every delay."""
        if self._delay_s <= 0:
            return self._help
        return min(self._slots, self._help + (now.monotonic - self._help_at) * self._slots / self._delay_s)

    def next_in(self, now: Moment) -> float | None:
        """Return in how many seconds a candidate may be taken: 0 for at once, None where something else must happen."""
        self.ripen(now)
        if self.ready:
            return 0.0
        waits: list[float] = []
        if self.waiting:
            waits.append(self.waiting[0][0] - now.wall)
        if self.leaving:
            waits.append(self.leaving[0][0] - now.monotonic)
        if self.left:
            waits.append(max(0.0, 1 - self._help_by(now)) * self._delay_s / self._slots)
        return max(0.0, min(waits)) if waits else None


class Candidates:
    """The candidates of all worker types of a daemon.

    Args:
        slots: how many jobs of each worker type run at once.
        most: how many of each type are ready at most; about as many wait.
        delay_s: how long a job is left to the daemon that has the first right to it.
    """

    def __init__(self, slots: Mapping[str, int], most: int, delay_s: float = 0.0) -> None:
        self._lanes = {worker_type: _Lane(count, most, delay_s) for worker_type, count in slots.items()}
        self._most = most
        self._delay_s = delay_s

    def offer(self, candidate: Candidate, now: Moment) -> None:
        """Add a candidate, or replace what was known of that job.

        Where there are too many, it is left out, and the lane notes from when on: see `overflowed`. One of higher
        priority still finds a place; of those that wait, the earliest do.
        """
        lane = self._lanes[candidate.worker]
        lane.forget(candidate.job_id)
        most = self._most if candidate.priority <= 0 else self._most * _ROOM_FOR_PRIORITY
        if candidate.not_before > now.wall or not candidate.first_right:
            candidate.job = None
            lane.add(candidate, now, most)
        elif lane.ready >= most:
            lane.leave_out(now.wall)
        else:
            lane.known[candidate.job_id] = candidate
            lane.add_ready(candidate)

    def forget(self, job_id: str) -> None:
        """Drop what is known of that job."""
        for lane in self._lanes.values():
            lane.forget(job_id)

    def reconsider(self, has_first_right: Callable[[str, str], bool]) -> None:
        """Take over what was left to others, where `has_first_right(job id, worker type)` is true by now."""
        for lane in self._lanes.values():
            lane.claim_left(has_first_right)

    def knows(self, job_id: str, rev: str) -> bool:
        """Return whether that very revision is a candidate."""
        return any(job_id in lane.known and lane.known[job_id].rev == rev for lane in self._lanes.values())

    def take(self, worker_type: str, count: int, now: Moment) -> list[Candidate]:
        """Remove and return at most `count` candidates: two of three by priority, one of three the oldest.

        Where none of them is left, those that other daemons leave lying.
        """
        lane = self._lanes[worker_type]
        lane.ripen(now)
        taken: list[Candidate] = []
        while len(taken) < count and (candidate := lane.pop_ready() or lane.pop_left(now)) is not None:
            taken.append(candidate)
        return taken

    def next_in(self, worker_types: Iterable[str], now: Moment) -> float | None:
        """Return in how many seconds a candidate of these types may be taken, None where something must happen first.

        0 is for at once: `take` at the same moment gives one.
        """
        waits = [wait for name in worker_types if (wait := self._lanes[name].next_in(now)) is not None]
        return min(waits, default=None)

    def known(self, worker_type: str) -> int:
        """Return how many candidates of that type there are, ready or not."""
        return len(self._lanes[worker_type].known)

    def ready(self, worker_type: str | None = None) -> int:
        """Return how many candidates are ready, of that type or of all."""
        lanes = self._lanes.values() if worker_type is None else (self._lanes[worker_type],)
        return sum(lane.ready for lane in lanes)

    def left_out(self, worker_type: str, not_before: float) -> None:
        """Note that queued jobs of that type are no candidates, and from when on they may be claimed."""
        self._lanes[worker_type].leave_out(not_before)

    def hungry(self) -> bool:
        """Return whether nothing is ready, or of some type little: fewer than its slots could take at once."""
        ready = [(lane.ready, lane.low) for lane in self._lanes.values() if lane.ready]
        return not ready or any(count < low for count, low in ready)

    def overflowed(self, now: float) -> list[str]:
        """Return the types with jobs left out that may be claimed by now, and few ready; forget the notes."""
        types = [
            name
            for name, lane in self._lanes.items()
            if lane.left_out_from is not None and lane.left_out_from <= now and lane.ready < lane.low
        ]
        for name in types:
            self._lanes[name].left_out_from = None
        return types
