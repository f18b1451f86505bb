"""Jobs of one database whose documents are to be read, and when: pure, the present is an argument.

Some are to be read again, at a time, for no row of the feed will tell of them: their claim was not answered, a mark was
not taken. The others are rows of the feed that are other daemons' to read: the one that such a job is assigned to has
claimed it, nearly always, by the time at which another could have read it. So the id alone is kept for as long as the
job is left to that one, and read after that only by a daemon whose slots have nothing else to do, or that it is
assigned to meanwhile. Where there are too many rows the oldest are dropped: the sweep of the view finds those jobs.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

_MOST_ROWS = 20_000
"""Some 3 MB."""


class Unread:
    """The ids of such jobs. Times are those of `time.monotonic()`.

    Args:
        delay_s: how long a job is left to the daemon that it is assigned to.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._again: dict[str, float] = {}
        self._times: list[tuple[float, str]] = []
        self._rows: OrderedDict[str, float] = OrderedDict()
        """The oldest first; since when. (Of a plain dict, the first takes long to find once others before it went.)"""

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._again or self._rows)

    def read_again(self, job_id: str, when: float) -> None:
        """Have the job read at that time, which replaces any other that was said before."""
        self._again[job_id] = when
        heapq.heappush(self._times, (when, job_id))

    def leave(self, job_id: str, now: float) -> None:
        """Keep a row that is left to another daemon, as of now: what an older row said of the job no longer holds."""
        self._rows.pop(job_id, None)
        self._rows[job_id] = now
        if len(self._rows) > _MOST_ROWS:
            self._rows.popitem(last=False)

    def forget_row(self, job_id: str) -> None:
        """Drop what an older row said of the job."""
        self._rows.pop(job_id, None)

    def reassign(self, has: Callable[[str], bool], now: float) -> None:
        """Have the rows read now of which it is true: they are in this daemon's partition by now."""
        for job_id in [job_id for job_id in self._rows if has(job_id)]:
            del self._rows[job_id]
            self.read_again(job_id, now)

    def take(self, spare: int, now: float) -> list[str]:
        """Remove and return those that are to be read by now; of the rows that were left at most `spare`."""
        ripe: list[str] = []
        while self._times and (self._times[0][0] <= now or self._is_stale()):
            when, job_id = heapq.heappop(self._times)
            if self._again.get(job_id) == when:
                del self._again[job_id]
                ripe.append(job_id)
        rows = [job_id for job_id, since in islice(self._rows.items(), spare) if since + self._delay_s <= now]
        for job_id in rows:
            del self._rows[job_id]
        return [*dict.fromkeys([*ripe, *rows])]

    def _is_stale(self) -> bool:
        when, job_id = self._times[0]
        return self._again.get(job_id) != when

    def next_in(self, spare: int, now: float) -> float | None:
        """Return in how many seconds `take` yields something, 0 for at once; None where something must happen first."""
        while self._times and self._is_stale():
            heapq.heappop(self._times)
        waits = [self._times[0][0] - now] if self._times else []
        if spare > 0 and self._rows:
            waits.append(next(iter(self._rows.values())) + self._delay_s - now)
        return max(0.0, min(waits)) if waits else None
