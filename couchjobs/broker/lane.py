"""What a daemon knows of one database of jobs (a lane), in one place.

Candidates, executions and conflicts are the producer's to change, and its marks' and executors'. What is to be looked
at is also noted by those who look: the feed says how far it is, the reader takes what it reads, the sweeper what the
view is to tell. Signals (`to_read`, `to_sweep`, `taken`) wake them; nobody calls anybody through a lane.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, field
from enum import Enum, auto

from couchjobs.broker.backlog import Backlog
from couchjobs.broker.unread import Unread
from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.answers import Found
from couchjobs.couch.changes import ChangesFollower
from couchjobs.couch.database import Document, generation
from couchjobs.jobs.admin_proof import AdminProof
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.jobs.store import JobStore
from couchjobs.stats import Stats
from couchjobs.waits import Signal
from couchjobs.workers.boundary import GRACE_S
from couchjobs.workers.config import WorkersList
from couchjobs.workers.outcome import Cancelled, Interrupted
from couchjobs.workers.processes import Attempt
from couchjobs.workers.slots import Slot

_MARKED_TOGETHER = 50
"""More at once would only wait for the same group commits."""
_LOOKS = 3
"""Times that a job is read of which one copy of a cluster knew, and the next one did not: it may be gone."""
_MOST_IN_CONFLICT = 20_000
"""Some 2 MB; one that is forgotten is found when its claim is answered with a conflict."""


class Phase(Enum):
    """How far an execution has come."""

    CLAIMING = auto()
    RUNNING = auto()
    ENDING = auto()


class Execution:
    """One job that is claimed, run and ended here."""

    def __init__(self, lane: Lane, job: Job, slot: Slot) -> None:
        self.lane = lane
        self.job = job
        self.slot = slot
        self.phase = Phase.CLAIMING
        self.attempt: Attempt | None = None
        self.interrupted = False
        """Whether its function is not to begin any more."""
        self.was_cut_off = False
        """Whether it was interrupted because this daemon could not beat."""
        self._claimed_rev = job.rev
        self._seen_rev = ""

    def note_row(self, rev: str) -> bool:
        """Take note of a row of the feed; return whether it is not to be read, for it may be of the claim."""
        if self.phase is not Phase.CLAIMING:
            return False
        if rev != self._claimed_rev:
            self._seen_rev = rev
        return True

    def note(self, document: Document) -> None:
        """Take note of what the document is now: its row comes only once."""
        if self.note_row(document["_rev"]):
            return
        self._seen_rev = document["_rev"]
        if self.attempt is not None and Job.read(document).cancel_requested:
            self.attempt.stop(Cancelled())

    def interrupt(self, grace_s: float = GRACE_S, *, cut_off: bool = False) -> None:
        """Have the function end within so many seconds: the try does not count, and the job goes back to the queue."""
        self.interrupted = True
        self.was_cut_off |= cut_off
        if self.attempt is not None:
            self.attempt.stop(Interrupted(), grace_s)

    def is_changed(self) -> bool:
        """Return whether somebody else has changed the document since the revision that is known here."""
        return self._seen_rev not in ("", self.job.rev)

    def is_to_be_read(self) -> bool:
        """Return whether there is a row that nobody has looked at, being busy with the job here."""
        return self._seen_rev != "" and (self.is_changed() or self.job.state is State.QUEUED)


@dataclass(eq=False)
class Lane:
    """One database of jobs.

    Args:
        store: the jobs.
        workers: the types whose jobs are in it, and that this daemon has.
        backlog: queued jobs that may be claimed.
        daemon: this daemon, among those of the tenant.
        admin_proof: what tells the tenant's jobs of administrators from others.
        stats: where its jobs are counted.
    """

    store: JobStore
    workers: WorkersList
    backlog: Backlog
    daemon: Daemon
    admin_proof: AdminProof
    stats: Stats = field(default_factory=Stats)

    def __post_init__(self) -> None:
        self.unread = Unread(self.daemon.settings.first_right_delay)
        """Jobs that are to be read, now or later."""
        self.is_open = True
        """Whether jobs are taken from it."""
        self.rests = False
        """Whether nobody looks for its jobs, and nothing is known of it that could be done."""
        self.follower: ChangesFollower | None = None
        """Its feed, once that is followed."""
        self.is_behind = True
        """Whether there may be rows of it that nobody has looked at: jobs may have been claimed of which it says so."""
        self.executions: dict[str, Execution] = {}
        self.reading = 0
        """Slots that are taken for jobs whose documents are being read."""
        self._seen: dict[str, tuple[int, int]] = {}
        """By job that a copy of a cluster may not know yet: the generation that was seen, and looks that are left."""
        self.tasks: dict[str, asyncio.Task[None]] = {}
        """Those of the executions, by job."""
        self.claims = OwnClaims(self.executions)
        self.in_conflict: OrderedDict[str, object] = OrderedDict()
        """Jobs of which not all leaves have been looked at."""
        self.marks: dict[str, asyncio.Task[None]] = {}
        """What is being written to jobs that are not run, by id."""
        self.marking = asyncio.Semaphore(_MARKED_TOGETHER)
        self.taken = Signal()
        """For the feed: candidates have been taken."""
        self.to_read = Signal()
        """For the reader: there is something to read, or may be."""
        self.to_sweep = Signal()
        """For the sweeper: the view is to be read, or may be."""
        self.is_being_swept = True
        """Whether the view of due jobs is being read, or has not been since the start: it may show some."""
        self.views_unchecked = False
        """Whether the views are to be looked at: they have changed, or the database may have been made anew."""
        self.context: Context | None = None
        """That of the tasks in which its jobs run."""

    @classmethod
    def of(
        cls, store: JobStore, workers: WorkersList, slots: Mapping[str, int], daemon: Daemon, admin_proof: AdminProof
    ) -> Lane:
        """Return a lane of which nothing is known yet. `slots`: how many jobs of each type run at once."""
        strict = [config.worker_type for config in workers if config.strict_priority]
        settings = daemon.settings
        backlog = Backlog(slots, settings.max_candidates, settings.first_right_delay, strict)
        return cls(store, workers, backlog, daemon, admin_proof)

    @property
    def is_quiet(self) -> bool:
        """Return whether nothing is being done, or waits for anything but its time."""
        at_work = self.slots_used or self.marks or self.unread or self.claims.unconfirmed or self.is_being_swept
        return not at_work and self.backlog.is_quiet

    def read_again(self, job_id: str, in_s: float = 0.0) -> None:
        """Have the job read in so many seconds: there is something about it that no row of the feed will tell."""
        self.unread.read_again(job_id, time.monotonic() + in_s)
        self.to_read.set()

    @property
    def slots_used(self) -> int:
        """Return how many slots its jobs have."""
        return len(self.executions) + self.reading

    def expect(self, job_id: str, rev: str) -> None:
        """Take note of a revision that is there: a copy of a cluster that is asked next may not have it yet."""
        self._seen[job_id] = generation(rev), _LOOKS

    def forget_seen(self, job_id: str) -> None:
        """Expect no revision of that job any more: nobody can read it."""
        self._seen.pop(job_id, None)

    def is_older(self, answer: Found) -> bool:
        """Return whether the answer is older than what was seen, and worth another look."""
        if answer.doc_id not in self._seen:
            return False
        seen, looks = self._seen.pop(answer.doc_id)
        known = generation(answer.document["_rev"]) if answer.document is not None else 0
        if known >= seen or looks <= 1:
            return False
        self._seen[answer.doc_id] = seen, looks - 1
        return True

    def have_views_checked(self) -> None:
        """Have the views looked at, and installed where they are missing."""
        self.views_unchecked = True
        self.to_sweep.set()

    def note_conflict(self, job_id: str) -> None:
        """Take note that a job has other leaves: it is no candidate before all of them have been looked at."""
        self.backlog.forget(job_id)
        if len(self.in_conflict) >= _MOST_IN_CONFLICT:
            self.in_conflict.popitem(last=False)
        self.in_conflict[job_id] = object()
