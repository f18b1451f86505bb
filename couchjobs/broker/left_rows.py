"""Rows of the feed that are other daemons' to read: jobs, perhaps, to which those have the first right.

A daemon that reads such a job as well reads it for nothing, nearly always: its owner has claimed it by then. So the row
alone is kept for as long as the job is left to its owner, and the document is read after that only by a daemon whose
slots have nothing else to do, or to which the first right has passed meanwhile. Where there are too many rows the
oldest are dropped: the sweep of the view finds what is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

_MOST_ROWS = 20_000


class LeftRows:
    """The ids of such rows, the oldest first. Times are those of `time.monotonic()`."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._since: dict[str, float] = {}

    def note(self, job_id: str, now: float) -> None:
        """Keep the row, as of now: what an older row said of the job no longer holds."""
        self._since.pop(job_id, None)
        self._since[job_id] = now
        if len(self._since) > _MOST_ROWS:
            del self._since[next(iter(self._since))]

    def forget(self, job_id: str) -> None:
        """Drop what is known of that job."""
        self._since.pop(job_id, None)

    def take_if(self, is_mine: Callable[[str], bool]) -> list[str]:
        """Remove and return those of which it is true: rows that have become this daemon's."""
        taken = [job_id for job_id in self._since if is_mine(job_id)]
        for job_id in taken:
            del self._since[job_id]
        return taken

    def take_ripe(self, most: int, now: float) -> list[str]:
        """Remove and return at most so many rows that have been left to their owners long enough."""
        oldest = islice(self._since.items(), most)
        taken = [job_id for job_id, since in oldest if since + self._delay_s <= now]
        for job_id in taken:
            del self._since[job_id]
        return taken
