"""The state of a trigger, compared with what a scan of its last jobs gives."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from couchjobs.jobs.job import State
from couchjobs.jobs.trigger_state import TriggerState, summarise
from couchjobs.timestamps import parse_time

JOBS = st.lists(st.tuples(st.sampled_from(list(State)), st.booleans()), max_size=50)


def scan(oldest_first: list[tuple[str, Any, bool, str]]) -> TriggerState:
    """The definition: each job overrules what earlier ones said."""
    state = TriggerState(trigger_id="t")
    for job_id, status, manual, started in oldest_first:
        time = parse_time(started)
        state.status, state.last_executed_job_id, state.last_execution = status, job_id, time
        if manual:
            state.last_manual_job_id, state.last_manual_execution = job_id, time
        if status is State.DONE:
            state.last_successful_job_id, state.last_success = job_id, time
        if status is State.ERRORED:
            state.last_failed_job_id, state.last_failure = job_id, time
    return state


@given(JOBS)
def test_state_when_any_jobs_then_as_the_scan(jobs: list[tuple[State, bool]]) -> None:
    """Newest first or oldest first."""
    rows = [(f"job-{n}", status, manual, f"2026-01-01T00:00:{n:02}Z") for n, (status, manual) in enumerate(jobs)]
    assert summarise("t", reversed(rows)) == scan(rows)  # type: ignore[arg-type]
