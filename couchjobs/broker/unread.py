"""Jobs of one database whose documents are to be read, and when: pure, the present is an argument.

Some are to be read again, at a time, for no row of the feed will tell of them: their claim was not answered, a mark was
not taken. The others are rows of the feed that are other daemons' to read: the one that such a job is assigned to has
claimed it, nearly always, by the time at which another could have read it. So the id alone is kept for as long as the
job is left to that one, and read after that only by a daemon whose slots have nothing else to do, or that it is
assigned to meanwhile. Few are read at first, and more for as long as most of them prove to be jobs to run: under load
the feed is behind, and they have been claimed for long (of eight daemons that drained 5,000 jobs, each read all of
them: 2 of 100 were still queued, and reading them took half of the time). Where there are too many rows the oldest are
dropped: the sweep of the view finds those jobs.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from couchjobs.couch.database import generation

_MOST_ROWS = 10_000
"""Rows of new jobs that are kept, and as many of changed ones: some 3 MB together."""
_LARGEST_LOOK = 1000
"""Rows of either kind that are read at a time."""


class _Rows:
    """Rows of other daemons' jobs, those first that have not changed for longest."""

    def __init__(self) -> None:
        self.since: OrderedDict[str, float] = OrderedDict()
        """(Of a plain dict, the first takes long to find once others before it went.)"""
        self._times_as_many = 1
        self._taken: list[str] = []

    def add(self, job_id: str, now: float) -> None:
        self.since[job_id] = now
        if len(self.since) > _MOST_ROWS:
            self.since.popitem(last=False)

    def take(self, most: int, delay_s: float, now: float) -> list[str]:
        """Remove and return those that have not changed for so long, `most` of them or more where that is worth it."""
        oldest = islice(self.since.items(), min(_LARGEST_LOOK, most * self._times_as_many))
        self._taken = [job_id for job_id, since in oldest if since + delay_s <= now]
        for job_id in self._taken:
            del self.since[job_id]
        return self._taken

    def judge(self, is_to_run: Callable[[str], bool]) -> None:
        """Take twice as many next time, where most of what was taken proved to be jobs to run; few where not."""
        if self._taken:
            useful = sum(map(is_to_run, self._taken))
            self._times_as_many = min(_LARGEST_LOOK, 2 * self._times_as_many) if 2 * useful > len(self._taken) else 1
            self._taken = []


class Unread:
    """The ids of such jobs. Times are those of `time.monotonic()`.

    Args:
        delay_s: how long a job is left to the daemon that it is assigned to.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._again: dict[str, float] = {}
        self._times: list[tuple[float, str]] = []
        self._new = _Rows()
        """Jobs that nobody has claimed yet, as far as the feed has come."""
        self._changed = _Rows()
        """Those that somebody has claimed or ended, or given back to the queue."""

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._again or self._new.since or self._changed.since)

    def read_again(self, job_id: str, when: float) -> None:
        """Have the job read at that time, which replaces any other that was said before."""
        self._again[job_id] = when
        heapq.heappush(self._times, (when, job_id))

    def set_aside(self, job_id: str, rev: str, now: float) -> None:
        """Keep a row that is left to another daemon, as of now: what an older row said of the job no longer holds."""
        self.forget_row(job_id)
        (self._new if generation(rev) == 1 else self._changed).add(job_id, now)

    def forget_row(self, job_id: str) -> None:
        """Drop what an older row said of the job."""
        self._new.since.pop(job_id, None)
        self._changed.since.pop(job_id, None)

    def reassign(self, has: Callable[[str], bool], now: float) -> None:
        """Have the rows read now of which it is true: they are in this daemon's partition by now."""
        for some in (self._new, self._changed):
            for job_id in [job_id for job_id in some.since if has(job_id)]:
                del some.since[job_id]
                self.read_again(job_id, now)

    def take(self, rows: int, now: float) -> list[str]:
        """Remove and return those that are to be read by now.

        `rows`: of those that were left, new ones and others, so many, or more where that is worth it; 0 for none.
        """
        ripe: list[str] = []
        while self._times and (self._times[0][0] <= now or self._is_stale()):
            when, job_id = heapq.heappop(self._times)
            if self._again.get(job_id) == when:
                del self._again[job_id]
                ripe.append(job_id)
        new = self._new.take(rows, self._delay_s, now)
        changed = self._changed.take(rows, self._delay_s, now)
        return [*dict.fromkeys([*ripe, *new, *changed])]

    def judge(self, is_to_run: Callable[[str], bool]) -> None:
        """Learn from the rows that were taken last, now that they have been read, whether it is worth it to read more.

        `is_to_run`: whether the job is one to run, by its id.
        """
        self._new.judge(is_to_run)
        self._changed.judge(is_to_run)

    def _is_stale(self) -> bool:
        when, job_id = self._times[0]
        return self._again.get(job_id) != when

    def next_in(self, rows: int, now: float) -> float | None:
        """Return in how many seconds `take` yields something, 0 for at once; None where something must happen first."""
        while self._times and self._is_stale():
            heapq.heappop(self._times)
        waits = [self._times[0][0] - now] if self._times else []
        if rows > 0:
            oldest = [next(iter(some.since.values())) for some in (self._new, self._changed) if some.since]
            waits += [since + self._delay_s - now for since in oldest]
        return max(0.0, min(waits)) if waits else None
