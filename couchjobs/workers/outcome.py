"""What can become of one try of a job, and what that changes in its document."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, assert_never

from couchjobs.jobs import transitions
from couchjobs.jobs.job import Changes, Job


@dataclass(frozen=True, slots=True)
class Done:
    """It succeeded, or was aborted without error. `result` is stored where it is not None."""

    result: Any = None
    lost: str = ""
    """Why the result cannot be stored; empty where it can."""
    seconds: float | None = field(default=None, compare=False)
    """How long the try took."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed for good. `bad_trigger`: the trigger that made the job is to be deleted."""

    error: str
    bad_trigger: bool = False
    worker_lost: bool = False
    """Whether the process that ran it has ended."""
    traceback: str = field(default="", compare=False)
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed, and is to be tried again not before `delay_s` seconds from now."""

    error: str
    delay_s: float
    traceback: str = field(default="", compare=False)
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody cancelled it."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The daemon stops, or is no longer the owner: the try does not count."""


Outcome = Done | Failed | Retry | Cancelled | Interrupted


def changes_of(outcome: Outcome, job: Job, at: datetime) -> Changes:
    """Return which fields of the job's document change where its try has had that outcome, at that time."""
    match outcome:
        case Done(result, lost, seconds):
            if lost:
                return transitions.done_without_result(job, at, lost, seconds)
            return transitions.done(at, result, seconds)
        case Failed():
            return transitions.errored(job, at, outcome.error, outcome.traceback, outcome.seconds)
        case Retry(error, delay_s, traceback, seconds):
            return transitions.retried(job, at, error, at + timedelta(seconds=delay_s), traceback, seconds)
        case Cancelled():
            return transitions.cancelled(at)
        case Interrupted():
            return transitions.released(job)
        case _:
            assert_never(outcome)
