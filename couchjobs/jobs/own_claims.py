"""What a process remembers of the claims that it has made in one database, for as long as that matters.

Nothing of this is needed to be right: the documents say it all. It spares reading one's own writes again, and it has
claims given up soon that were stored although their answer said otherwise, and not only by the next audit.
"""

from __future__ import annotations

import time
from collections.abc import Container

from couchjobs.couch.surely import Refusals
from couchjobs.jobs.job import Job

_MOST_REVISIONS = 20_000
"""Some 2 MB: the feed shows a revision within moments, and at 2,000 writes a second this is 10 s of them."""
_PAUSE_S = 0.5
"""Before a claim that is refused is given back once more; doubled each time."""
_LONGEST_PAUSE_S = 10.0
"""The longest of these pauses."""
_DOUBLED = 10
"""Times that the pause is doubled at most."""


class RecentRevisions:
    """The last revisions that were added: so many at most, and half as many at least."""

    def __init__(self, most: int = _MOST_REVISIONS) -> None:
        self._half = max(1, most // 2)
        self._new: set[str] = set()
        self._old: set[str] = set()

    def __contains__(self, rev: object) -> bool:
        return rev in self._new or rev in self._old

    def add(self, rev: str) -> None:
        """Remember one more; now and then, forget the older half: to forget one by one takes ten times as long."""
        self._new.add(rev)
        if len(self._new) >= self._half:
            self._old, self._new = self._new, set()


class OwnClaims:
    """The claims of one process in one database of jobs. `held`: the ids of jobs that it claims, runs or ends now."""

    def __init__(self, held: Container[str] = ()) -> None:
        self.held = held
        self.revisions = RecentRevisions()
        """Revisions that this process wrote and that nobody need look at: claims and ends."""
        self.unconfirmed: dict[str, float] = {}
        """Jobs that this process may have claimed and does not own, and since when, by `time.monotonic()`."""
        self.begun: dict[str, str] = {}
        """By job, the id of a claim whose try began here, and whose end could not be stored."""
        self.refusals = Refusals()
        """Of claims, by the id of the job and its revision."""

    def note_unconfirmed(self, job_id: str) -> None:
        """Take note of a claim that was made just now, may be stored, on some branch, and is not owned."""
        self.unconfirmed[job_id] = time.monotonic()

    def note_found(self, job_id: str) -> None:
        """Take note of a document that names this process as its owner, which it is not."""
        self.unconfirmed.setdefault(job_id, time.monotonic())

    def look_again_in(self, job: Job) -> float:
        """Return in how many seconds a claim is tried again that was not taken: an outage is asked twice a second."""
        return min(_LONGEST_PAUSE_S, _PAUSE_S * 2.0 ** min(_DOUBLED, self.refusals.times(job.id, job.rev)))
