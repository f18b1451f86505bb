"""What a daemon counts of its own work: plain numbers, which cost next to nothing until somebody looks at them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the buckets of durations, in seconds."""


class Durations:
    """A histogram."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        """By bucket; the last is of what is longer than all bounds."""
        self.total_s = 0.0

    def note(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total_s += seconds


class Stats:
    """Those of one process."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        """Tries whose outcome is stored, by worker type and outcome: done, failed, retry, cancelled, interrupted."""
        self.claims: Counter[str] = Counter()
        """By what came of them: ours, lost, later, refused."""
        self.ran: defaultdict[str, Durations] = defaultdict(Durations)
        """By worker type, what tries took."""
        self.waited: defaultdict[str, Durations] = defaultdict(Durations)
        """By worker type, from when a job was due to its claim."""
