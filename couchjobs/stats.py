"""What a process counts of its own work: plain numbers, which cost next to nothing until somebody looks at them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the buckets of durations, in seconds."""
SIZES = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
"""The same of documents in a request."""


class Histogram:
    """How often values fell between bounds, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket; the last is of what is beyond all bounds."""
        self.total = 0.0

    def note(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Durations(Histogram):
    """One of seconds."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(BOUNDS)


class Traffic:
    """Those to CouchDB of one server object."""

    def __init__(self) -> None:
        self.answered: defaultdict[str, Durations] = defaultdict(Durations)
        """By kind, such as `POST _bulk_docs`: what answers took, waits of feeds left out."""
        self.failed: Counter[str] = Counter()
        """By kind: those without an answer, or with an error."""
        self.written = Histogram(SIZES)
        """How many documents a group commit wrote."""


class Stats:
    """Those of one process; or of a part of it, such as one tenant, which counts for the whole as well."""

    def __init__(self, whole: Stats | None = None) -> None:
        self._whole = whole
        self.ended: Counter[tuple[str, str]] = Counter()
        """Tries whose outcome is stored, by worker type and outcome: done, failed, retry, cancelled, interrupted."""
        self.claims: Counter[str] = Counter()
        """By what came of them: ours, lost, later, refused."""
        self.ran: defaultdict[str, Durations] = defaultdict(Durations)
        """By worker type, what tries took."""
        self.waited: defaultdict[str, Durations] = defaultdict(Durations)
        """By worker type, from when a job was due to its claim."""

    def note_wait(self, worker: str, seconds: float) -> None:
        """Count a job that was claimed so long after it was due."""
        self.waited[worker].note(seconds)
        if self._whole is not None:
            self._whole.note_wait(worker, seconds)

    def note_end(self, worker: str, outcome: str, seconds: float | None) -> None:
        """Count a try whose outcome is stored; `seconds`: what it took, where that is known."""
        self.ended[worker, outcome] += 1
        if seconds is not None:
            self.ran[worker].note(seconds)
        if self._whole is not None:
            self._whole.note_end(worker, outcome, seconds)
