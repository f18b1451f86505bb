"""What became of a trigger's last jobs, from one page of a view."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from couchjobs.couch.connection import connected
from couchjobs.couch.database import Document, Row
from couchjobs.jobs.job import State
from couchjobs.jobs.lanes import stores
from couchjobs.jobs.places import HIGHEST
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import Timestamp, parse_time

_LOOKED_AT = 50
"""Jobs of a trigger that are looked at for the last one that ended well."""


class TriggerState(BaseModel):
    """The last of each kind among a trigger's last 50 jobs; `status` is that of the newest, done if there is none."""

    trigger_id: str
    status: State = State.DONE
    last_execution: Timestamp = None
    last_executed_job_id: str | None = None
    last_success: Timestamp = None
    last_successful_job_id: str | None = None
    last_failure: Timestamp = None
    last_failed_job_id: str | None = None
    last_error: str | None = None
    last_manual_execution: Timestamp = None
    last_manual_job_id: str | None = None


async def get_trigger_state(db: Prefixer, trigger_id: str) -> TriggerState:
    """Return the state of a trigger, as its last jobs tell it: from a page of a view, and a document if one failed."""
    rows: list[Row] = []
    failed: Document | None = None
    async with connected() as connection:
        lanes = [store.database for store in stores(connection, db)]
        for lane in lanes:
            low, high = [trigger_id], [trigger_id, HIGHEST]
            rows += await lane.view("jobs/by_trigger", high, low, limit=_LOOKED_AT, descending=True)
        if len(lanes) > 1:
            rows.sort(key=lambda row: str(row["key"][1] or "~"), reverse=True)
        state = summarise(trigger_id, ((row["id"], *row["value"]) for row in rows))
        if state.last_failed_job_id is not None:
            for lane in lanes:
                failed = failed or await lane.find(state.last_failed_job_id)
            state.last_error = str(failed["error"]) if failed and failed.get("error") else None
        return state


def summarise(trigger_id: str, newest_first: Iterable[tuple[str, Any, bool, str | None]]) -> TriggerState:
    """Return the state that these jobs make: id, state, manual or not, start as text; newest first."""
    state = TriggerState(trigger_id=trigger_id)
    for job_id, status, manual, started in newest_first:
        time = _time(started)
        if state.last_executed_job_id is None:
            state.status = State(status) if status in list(State) else State.ERRORED
            state.last_executed_job_id, state.last_execution = job_id, time
        if manual and state.last_manual_job_id is None:
            state.last_manual_job_id, state.last_manual_execution = job_id, time
        if status == State.DONE and state.last_successful_job_id is None:
            state.last_successful_job_id, state.last_success = job_id, time
        if status == State.ERRORED and state.last_failed_job_id is None:
            state.last_failed_job_id, state.last_failure = job_id, time
    return state


def _time(text: str | None) -> datetime | None:
    try:
        return parse_time(text) if text else None
    except ValueError:
        return None
