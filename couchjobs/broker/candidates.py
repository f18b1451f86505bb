"""Queued jobs that this daemon knows of and may claim: a bounded look ahead, never the backlog.

A candidate is ready (it may be claimed now), or waits: for its `scheduled_at`, or for the daemon that has the first
right to it. Nothing here touches the network, and the present time is an argument.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

from couchjobs.jobs.job import Job

_ROOM_FOR_PRIORITY = 2
_STALE_ENTRIES = 5000


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
    state: Literal["ready", "waiting"] = "ready"


class _Lane:
    """The candidates of one worker type. Heaps hold ids that may be gone: `known` says which are not."""

    def __init__(self) -> None:
        self.known: dict[str, Candidate] = {}
        self.by_priority: list[tuple[int, float, str]] = []
        self.by_age: list[tuple[float, str]] = []
        self.waiting: list[tuple[float, str]] = []
        self.ready = 0
        self.taken = 0
        self.left_out_from: float | None = None

    def add_ready(self, candidate: Candidate) -> None:
        candidate.state = "ready"
        self.ready += 1
        if len(self.by_priority) > 2 * self.ready + _STALE_ENTRIES:
            self.by_priority = [entry for entry in self.by_priority if entry[-1] in self.known]
            heapq.heapify(self.by_priority)
        heapq.heappush(self.by_priority, (-candidate.priority, candidate.due, candidate.job_id))
        heapq.heappush(self.by_age, (candidate.due, candidate.job_id))

    def forget(self, job_id: str) -> Candidate | None:
        candidate = self.known.pop(job_id, None)
        if candidate is not None and candidate.state == "ready":
            self.ready -= 1
        return candidate

    def leave_out(self, not_before: float) -> None:
        self.left_out_from = not_before if self.left_out_from is None else min(self.left_out_from, not_before)

    def ripen(self, now: float) -> None:
        while self.waiting:
            not_before, job_id = self.waiting[0]
            candidate = self.known.get(job_id)
            alive = candidate is not None and candidate.state == "waiting" and candidate.not_before == not_before
            if alive and not_before > now:
                return
            heapq.heappop(self.waiting)
            if alive and candidate is not None:
                self.add_ready(candidate)

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


def _when(candidate: Candidate) -> float:
    return candidate.not_before


class Candidates:
    """The candidates of all worker types of a daemon, at most so many of each type ready, and as many waiting."""

    def __init__(self, worker_types: list[str], most: int) -> None:
        self._lanes = {worker_type: _Lane() for worker_type in worker_types}
        self._most = most

    def offer(self, candidate: Candidate, now: float) -> None:
        """Add a candidate, or replace what was known of that job.

        Where there are too many, it is left out, and the lane notes from when on: see `overflowed`. One of higher
        priority still finds a place; of those that wait, the earliest do.
        """
        lane = self._lanes[candidate.worker]
        lane.forget(candidate.job_id)
        most = self._most if candidate.priority <= 0 else self._most * _ROOM_FOR_PRIORITY
        waits = candidate.not_before > now
        if waits and len(lane.known) - lane.ready >= most:
            latest = max((one for one in lane.known.values() if one.state == "waiting"), key=_when)
            if latest.not_before <= candidate.not_before:
                lane.leave_out(candidate.not_before)
                return
            lane.forget(latest.job_id)
            lane.leave_out(latest.not_before)
        elif not waits and lane.ready >= most:
            lane.leave_out(now)
            return
        lane.known[candidate.job_id] = candidate
        if waits:
            candidate.state = "waiting"
            heapq.heappush(lane.waiting, (candidate.not_before, candidate.job_id))
        else:
            lane.add_ready(candidate)

    def forget(self, job_id: str) -> None:
        """Drop what is known of that job."""
        for lane in self._lanes.values():
            lane.forget(job_id)

    def knows(self, job_id: str, rev: str) -> bool:
        """Return whether that very revision is a candidate."""
        return any(job_id in lane.known and lane.known[job_id].rev == rev for lane in self._lanes.values())

    def take(self, worker_type: str, count: int, now: float) -> list[Candidate]:
        """Remove and return at most `count` ready candidates: two of three by priority, one of three the oldest."""
        lane = self._lanes[worker_type]
        lane.ripen(now)
        taken: list[Candidate] = []
        while len(taken) < count and (candidate := lane.pop_ready()) is not None:
            taken.append(candidate)
        return taken

    def next_ready(self, now: float) -> float | None:
        """Return when the next candidate that still waits becomes ready, None where none waits."""
        for lane in self._lanes.values():
            lane.ripen(now)
        return min((lane.waiting[0][0] for lane in self._lanes.values() if lane.waiting), default=None)

    def ready(self, worker_type: str | None = None) -> int:
        """Return how many candidates are ready, of that type or of all."""
        lanes = self._lanes.values() if worker_type is None else (self._lanes[worker_type],)
        return sum(lane.ready for lane in lanes)

    def left_out(self, worker_type: str, not_before: float) -> None:
        """Note that queued jobs of that type are no candidates, and from when on they may be claimed."""
        self._lanes[worker_type].leave_out(not_before)

    def overflowed(self, low_water: int, now: float) -> list[str]:
        """Return the types with jobs left out that may be claimed by now, and few ready; forget the notes."""
        types = [
            name
            for name, lane in self._lanes.items()
            if lane.left_out_from is not None and lane.left_out_from <= now and lane.ready < low_water
        ]
        for name in types:
            self._lanes[name].left_out_from = None
        return types
