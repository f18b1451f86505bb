"""A request for a job, and the job that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from couchjobs.couch.database import is_id
from couchjobs.durations import read_seconds
from couchjobs.errors import BadDocumentError, ConfigurationError, MessageUnmarshalError
from couchjobs.jobs.ids import new_id
from couchjobs.jobs.job import WORKER_TYPE, Job, JobOptions, State
from couchjobs.jobs.lives import PUSHED_BY, PUSHED_IN
from couchjobs.jobs.message import Message
from couchjobs.jobs.names import unknown_options
from couchjobs.jobs.values import to_json
from couchjobs.prefixer import Prefixer
from couchjobs.reasons import reasons
from couchjobs.timestamps import format_time, now
from couchjobs.tracing import carried

_HIGHEST = 10**9
"""Priorities: views sort them as doubles, which are exact far beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What `push_job` is asked for.

    `id` is None for a fresh one; a trigger gives the id of its firing, so that it is stored once. `queued_at` is None
    for now; a tick gives its own time, so that all daemons write the same document. `pushed_in` is the life of the job
    that pushes this one, `pushed_by` its id and its worker: see `lives`.
    """

    worker_type: str
    trigger_id: str | None = None
    trigger: Any = None
    message: Message = None
    event: dict[str, Any] | None = None
    payload: Any = None
    manual: bool = False
    debounced: bool = False
    forward_logs: bool = False
    admin: bool = False
    options: JobOptions | None = None
    priority: int | None = None
    scheduled_at: datetime | None = None
    queued_at: datetime | None = None
    tick: datetime | None = None
    previous_tick: datetime | None = None
    pushed_in: str | None = None
    pushed_by: dict[str, str] | None = None
    id: str | None = field(default=None)

    @property
    def doc_type(self) -> str:
        """Return the doctype that permissions name."""
        return "jobs"

    def match(self, key: str, value: str) -> bool:
        """Return whether a permission rule on `key` (`worker`) allows this request."""
        return key == WORKER_TYPE and self.worker_type == value


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push has led to."""

    job: Job
    """As it is stored."""
    created: bool
    """Whether this push has stored it; else a job with that id was there already, whatever has become of it."""


def new_job(db: Prefixer, request: JobRequest) -> Job:
    """Return the queued job that the request asks for. Does not touch the network.

    Raises:
        BadDocumentError: message, event or payload is nothing that JSON can hold; the text begins with the path to it.
            Or a field is none: `worker: must not be empty`, or an option, and no trigger has it so.
    """
    trigger_id = request.trigger_id or getattr(request.trigger, "id", None)
    if request.options is not None and not isinstance(request.options, JobOptions):
        raise BadDocumentError(f"options: JobOptions(...), and not {request.options!r:.80}")
    if trigger_id is None and request.options is not None and request.options.model_extra:
        raise BadDocumentError("; ".join(unknown_options(request.options.model_extra)))
    if isinstance(request.priority, int) and abs(request.priority) > _HIGHEST:
        raise BadDocumentError(f"priority: must be from {-_HIGHEST:,} to {_HIGHEST:,}")
    if request.id == "":
        raise BadDocumentError("id: must not be empty; None is for a fresh one")
    if isinstance(request.id, str) and not is_id(request.id):
        raise BadDocumentError(f"id: must not begin with _, nor hold half a character, and is {request.id!r:.80}")
    try:
        job = Job(
            id=new_id() if request.id is None else request.id,
            domain=db.domain,
            prefix=db.prefix,
            worker=request.worker_type,
            trigger_id=trigger_id,
            message=as_stored(request.message, "message"),
            event=as_stored(request.event, "event"),
            payload=as_stored(request.payload, "payload"),
            manual_execution=request.manual,
            debounced=request.debounced,
            forward_logs=request.forward_logs,
            options=request.options,
            priority=request.priority,
            scheduled_at=request.scheduled_at,
            state=State.QUEUED,
            queued_at=request.queued_at or now(),
            tick=request.tick,
            previous_tick=request.previous_tick,
            trace_context=carried(),
        )
    except ValidationError as error:
        raise BadDocumentError(reasons(error)) from None
    if request.pushed_in:
        job.document()[PUSHED_IN] = request.pushed_in
    if request.pushed_by:
        job.document()[PUSHED_BY] = request.pushed_by
    return job


def as_stored(value: Any, where: str) -> Any:
    """Return the value as JSON.

    Raises:
        BadDocumentError: JSON cannot hold it; the text begins with the path: `message.items[3].price: NaN`.
    """
    try:
        return to_json(value, where)
    except MessageUnmarshalError as error:
        raise BadDocumentError(str(error)) from None


def moment_of(
    delay: float | str | timedelta | None, at: datetime | None, present: datetime | None = None
) -> datetime | None:
    """Return when a job may run at the earliest; None: at once. `present`: what a delay is counted from; None: now.

    Raises:
        ConfigurationError: `delay` is no duration, `at` is no datetime with a time zone, or there are both.
    """
    if at is not None:
        if delay is not None:
            raise ConfigurationError("a job has a delay or a time (at), not both")
        if not isinstance(at, datetime):
            raise ConfigurationError(f"at: a datetime with a time zone, and not {at!r:.80}")
        if at.tzinfo is None:
            raise ConfigurationError("at has no time zone: datetime(..., tzinfo=UTC)")
        try:
            format_time(at)
        except (ValueError, OverflowError):
            raise ConfigurationError(f"at: {at} is no time that can be stored") from None
        return at
    if delay is None:
        return None
    try:
        return (present or now()) + (delay if isinstance(delay, timedelta) else timedelta(seconds=read_seconds(delay)))
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"delay: {error}") from None
