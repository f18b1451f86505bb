"""The retry policy: whether a job whose try has failed, or whose worker was lost, is tried again, and when."""

from __future__ import annotations

import random
from datetime import datetime

from couchjobs.jobs.job import Job, JobOptions
from couchjobs.timestamps import now
from couchjobs.workers.config import WorkerConfig
from couchjobs.workers.outcome import Failed, Retry

LONGEST_DELAY_S = 86_400.0
"""Seconds that a retry waits at most, however many there were before it, unless a setting says otherwise."""
_NO_OPTIONS = JobOptions()
_MOST_DOUBLED = 30
"""2.0 ** 30 s are 34 years; more would end in an overflow."""


def has_tries_left(config: WorkerConfig, job: Job) -> bool:
    """Return whether the job has had fewer tries than its worker, and its own options, allow, and may have another."""
    wanted = job.options.max_exec_count if job.options else None
    return job.ending is None and job.exec_count < min(config.max_exec_count, wanted or config.max_exec_count)


def may_be_tried(config: WorkerConfig, job: Job, present: datetime) -> bool:
    """Return whether the job may have another try: it has tries left, and of the time of all of them, too."""
    left = time_left(config, job, present)
    return has_tries_left(config, job) and (left is None or left > 0)


def lost_outcome(config: WorkerConfig, job: Job, error: str) -> Retry | Failed:
    """Return what becomes of a job whose try has ended with its process, or has kept it from living."""
    return Retry(error, 0.0) if may_be_tried(config, job, now()) else Failed(error, worker_lost=True)


def time_limit(config: WorkerConfig, job: Job, present: datetime) -> float | None:
    """Return how many seconds a try that begins now may take; 0 or less: none; None: there is no limit."""
    return lower(lower(config.timeout, (job.options or _NO_OPTIONS).timeout), time_left(config, job, present))


def time_left(config: WorkerConfig, job: Job, present: datetime) -> float | None:
    """Return how many seconds all tries together may still take, None where there is no limit."""
    limit = lower(config.max_exec_time, (job.options or _NO_OPTIONS).max_exec_time)
    if limit is None or job.started_at is None:
        return limit
    return limit - (present - job.started_at).total_seconds()


def retry_delay(config: WorkerConfig, job: Job, longest_s: float, present: datetime) -> float | None:
    """Return how many seconds after a try that has just failed the next one may begin; None: there is no next one."""
    if not may_be_tried(config, job, present):
        return None
    jitter = random.uniform(0.9, 1.1)  # noqa: S311  not a secret
    delay = min(longest_s, config.retry_delay * 2.0 ** min(job.exec_count - 1, _MOST_DOUBLED) * jitter)
    left = time_left(config, job, present)
    return None if left is not None and delay > left else delay


def lower(allowed: float | None, wanted: float | None) -> float | None:
    """Return the lower of two limits, None being none."""
    if allowed is None or wanted is None:
        return wanted if allowed is None else allowed
    return min(allowed, wanted)
