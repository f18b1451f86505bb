"""The job document.

A `Job` reads a document and keeps it: fields that it does not know, and the form in which others wrote the known
ones, survive every update, because updates are made on the document itself (see transitions).
"""

from __future__ import annotations

import copy
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar  # noqa: TID251  for the slots of Job

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, WithJsonSchema
from structlog.typing import FilteringBoundLogger

from couchjobs.couch.codec import decode
from couchjobs.couch.database import Document
from couchjobs.durations import read_seconds
from couchjobs.errors import BadDocumentError, MessageUnmarshalError
from couchjobs.jobs.message import decode_message
from couchjobs.jobs.values import to_json
from couchjobs.log import get_logger
from couchjobs.reasons import reasons
from couchjobs.timestamps import Timestamp, TimestampOrNone, format_time

WORKER_TYPE = "worker"
"""The key, in JSON, of the type of worker."""

CLIENT_WORKER = "client"
"""The worker type of jobs that clients do, and no daemon."""

MAX_NAME = 200
"""Characters: it is part of keys of views, and of ids."""

Changes = dict[str, Any]
"""Fields of a job and their new values: datetimes, models and plain values; None removes the field."""


class State(StrEnum):
    """The state of a job. These four and no other are ever stored."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    ERRORED = "errored"


ENDED = (State.DONE, State.ERRORED)


GO_DURATIONS = {"go_durations": True}
"""The context of validation in which the numbers of stored options are Go's nanoseconds."""


def _read_stored(value: object, info: ValidationInfo) -> float | None:
    """Return seconds, of Go's nanoseconds, too; zero is none. Text is Go's form in either case."""
    if info.context == GO_DURATIONS and isinstance(value, int | float) and not isinstance(value, bool):
        return read_seconds(value / 1e9) or None
    return None if value is None else read_seconds(value) or None


def _none_if_zero(value: object) -> object:
    return None if value == 0 and isinstance(value, int | float) and not isinstance(value, bool) else value


_SECONDS_SCHEMA = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}, {"type": "null"}], "default": None}
_COUNT_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}], "default": None}
StoredSeconds = Annotated[float | None, BeforeValidator(_read_stored), WithJsonSchema(_SECONDS_SCHEMA)]
StoredCount = Annotated[
    Annotated[int, Field(ge=1, strict=True)] | None, BeforeValidator(_none_if_zero), WithJsonSchema(_COUNT_SCHEMA)
]


class JobOptions(BaseModel):
    """What one job asks of its worker. It may lower what the worker allows, never raise it. Zero asks for nothing."""

    model_config = ConfigDict(extra="allow")

    max_exec_count: StoredCount = None
    """How many tries."""
    max_exec_time: StoredSeconds = None
    """How long all tries may take together, waits included."""
    timeout: StoredSeconds = None
    """How long one try may take."""

    def stored(self, *, go_durations: bool = False) -> dict[str, Any]:
        """Return the options as JSON, durations in seconds, or in Go's nanoseconds."""
        options = self.model_dump(mode="json", exclude_none=True)
        for name in ("max_exec_time", "timeout"):
            if go_durations and name in options:
                options[name] = round(options[name] * 1e9)
        return options


class Event(BaseModel):
    """What happened to a document: the verb, the document, and the one before where it could be had."""

    model_config = ConfigDict(extra="allow")

    domain: str = ""
    prefix: str | None = None
    verb: str
    doc: dict[str, Any]
    old: dict[str, Any] | Literal["unknown"] | None = None


class Claim(BaseModel):
    """Who runs the job: a nonce, the daemon's id, and when it claimed the job, by its clock."""

    model_config = ConfigDict(extra="allow")

    id: str
    daemon: str
    at: Timestamp = None


class JobError(BaseModel):
    """One failed try."""

    model_config = ConfigDict(extra="allow")

    at: Timestamp = None
    exec_count: int = 0
    error: str = ""
    traceback: str | None = None
    """Of the user's own code, the last call last."""
    started_at: Timestamp = None
    seconds: float | None = None
    """How long the try took."""


class Job(BaseModel):
    """A job. Fields that are None are not stored."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)
    __slots__ = ("_document", "_original")
    """The document as it was read or last written; of a copy for a function, what that is copied from once somebody
    asks for it. Slots: pydantic's private attributes take ten times as long, in the way of each job."""
    if TYPE_CHECKING:
        _document: Document
        _original: Document

    id: str = Field(default="", alias="_id")
    """The name of the job, chosen by whoever creates it; for firings of triggers always the same."""
    rev: str = Field(default="", alias="_rev")
    """The revision, by CouchDB."""
    domain: str = ""
    """Of its tenant. Written by whoever creates it, else at the claim."""
    prefix: str | None = None
    """Of its tenant's databases. Likewise."""
    worker: str = Field(min_length=1, max_length=MAX_NAME, strict=True)
    """The type of worker that does it. Written by whoever creates the job; never changes."""
    trigger_id: str | None = None
    """The trigger that has made it. Written by the daemon that fires."""
    message: Any = None
    """What the worker is told: JSON, or null. Must be there. Written by whoever creates the job."""
    event: dict[str, Any] | None = None
    """Of an @event: `verb`, `doc`, and `old`, the document before. Written by the daemon that fires."""
    payload: Any = None
    """Of a @webhook: what it was called with; where it is debounced, `{"payloads": [...]}`."""
    payload_headers: Any = None
    """Of a @webhook over HTTP: the headers that its trigger lists and that came, by name. Written by who takes it."""
    payload_ids: list[str] | None = None
    """Which payloads of a debounced webhook are in it. Written by whoever fires."""
    manual_execution: bool = False
    """Whether a person asked for it: without a `priority` it goes before the others."""
    debounced: bool = False
    """Whether it stands for all that fired within a window."""
    options: JobOptions | None = None
    """What it asks of its worker, within what that allows. Written by whoever creates the job."""
    state: State = State.QUEUED
    """queued, running, done or errored. Must be there. Created as queued; then written by daemons."""
    queued_at: Timestamp = None
    """When it was queued. Written by whoever creates it, or at the claim."""
    started_at: Timestamp = None
    """When its first try began. Written at the claim."""
    finished_at: Timestamp = None
    """When it ended. Written with the end."""
    error: str | None = None
    """Why it is errored: the error of its last try, in one line."""
    forward_logs: bool = False
    """Kept for other engines; couchjobs does nothing with it."""
    scheduled_at: Timestamp = None
    """Not to be run before. Written by whoever creates it, and by daemons for retries."""
    tick: TimestampOrNone = None
    """The moment of its schedule at which its trigger fired; None where it was not the clock."""
    previous_tick: TimestampOrNone = None
    """The moment before that at which the trigger fired."""
    priority: Annotated[int, Field(strict=True)] | None = None
    """Higher first; of three claims two go by it, one takes the oldest. Written by whoever creates the job."""
    exec_count: Annotated[int, Field(ge=0, strict=True)] = 0
    """How many tries there were. Written at the claim."""
    errors: list[JobError] = Field(default_factory=list)
    """The last ten tries that failed: `at`, `exec_count`, `error`, `traceback`, `started_at`, `seconds`."""
    claim: Claim | None = None
    """Who runs it: `daemon`, `id`, `at`. Written at the claim."""
    cancel_requested: bool = False
    """Whether somebody wants it cancelled: anybody who may write may set it."""
    cancelled: bool = False
    """Whether the job is errored because somebody has cancelled it."""
    seconds: float | None = None
    """How long the last try took; the waits between tries are not in it."""
    ending: dict[str, Any] | None = None
    """Of a running job that has failed for good, while `on_failed` is told: which daemon does so, and the error."""
    progress: Any = None
    """How far it has come, as its function says: `done`, `text`, `at`."""
    result: Any = None
    """What its function has returned."""
    trace_context: Any = None
    """Of a producer that traces: `traceparent` and `tracestate`. Written by whoever creates the job."""
    admin_proof: str | None = None
    """Proves that it was pushed with admin=True, for workers that take no others."""

    @classmethod
    def from_document(cls, document: Document, *, go_durations: bool = False) -> Self:
        """Return the job that the document holds, numbers in its options being seconds, or Go's nanoseconds.

        Raises:
            BadDocumentError: it is no job; the message says why and how to mend it.
        """
        if "message" not in document:
            raise BadDocumentError('message is missing: write "message": null for a worker that takes none')
        try:
            context = GO_DURATIONS if go_durations else None
            try:
                job = cls.model_validate(document, by_alias=True, by_name=False, context=context)
            except ValidationError:
                job = cls.model_validate(_forgiven(document), by_alias=True, by_name=False, context=context)
            decoded = decode_message(job.message)
        except ValidationError as error:
            raise BadDocumentError(reasons(error)) from None
        except MessageUnmarshalError as error:
            raise BadDocumentError(f"message: {error}") from error
        if decoded is not job.message:
            job.message = decoded
        _keep(job, document)
        return job

    @classmethod
    def read(cls, document: Document, *, go_durations: bool = False) -> Self:
        """Return the job that the document holds, for looking at: fields that cannot be understood are left out.

        `go_durations`: as for `from_document`; who looks at the options gives it.
        """
        try:
            return cls.from_document(document, go_durations=go_durations)
        except BadDocumentError:
            bad = _bad_fields(cls, document, go_durations=go_durations)
        good = {name: value for name, value in _forgiven(document).items() if name not in bad}
        good.setdefault(WORKER_TYPE, str(document.get(WORKER_TYPE) or "?")[:MAX_NAME])
        good.setdefault("state", State.ERRORED)
        job = cls.model_validate(good, by_alias=True, by_name=False, context=GO_DURATIONS if go_durations else None)
        job._document = document  # noqa: SLF001  an alternative constructor
        return job

    def document(self) -> Document:
        """Return the document as it was read or last written; that of a new job holds the fields that say something.

        Nobody may change it: it is the base of the next revision.
        """
        try:
            return self._document
        except AttributeError:
            pass
        if original := getattr(self, "_original", None):
            self._document = _copied(original)
        else:
            _keep(self, self._new_document())
        return self._document

    def _new_document(self) -> Document:
        fields = self.__dict__
        values = {name: to_json(fields[name], name) for name in _JSON_FIELDS if fields[name] is not None}
        if self.options or self.claim or self.errors or self.__pydantic_extra__:
            text = self.model_dump_json(
                by_alias=True, exclude_defaults=True, exclude_none=True, exclude={*_JSON_FIELDS}
            )
            plain = decode(text.encode())
        else:  # a job that is pushed, nearly always: the same in a third of the time
            plain = {
                _ALIASES.get(name, name): value if type(value) in _PLAIN else _as_json(value)
                for name, value in fields.items()
                if value is not None and value != _DEFAULTS[name] and name not in _JSON_FIELDS
            }
        return {**plain, "state": self.state.value, "message": None, **values}

    def document_with(self, changes: Changes) -> Document:
        """Return the document with these fields changed; None removes a field."""
        document = {**self.document()}
        for name, value in changes.items():
            if value is None:
                document.pop(name, None)
            elif name in _JSON_FIELDS:
                document[name] = to_json(value, name)
            else:
                document[name] = value if type(value) in _PLAIN else _as_json(value)
        return document

    def moved(self, changes: Changes, document: Document, rev: str) -> None:
        """Become what `document_with(changes)` says, which was stored as revision `rev`."""
        document["_rev"] = rev
        _keep(self, document)
        fields = self.__dict__
        for name, value in changes.items():
            if name in _DEFAULTS:
                fields[name] = _DEFAULTS[name] if value is None else value
        fields["rev"] = rev

    def adopt(self, document: Document) -> None:
        """Become what the document says, which is a revision that others wrote; its tenant stays."""
        fields = type(self).read(document).__dict__
        self.__dict__.update(fields, options=self.options, domain=self.domain, prefix=self.prefix)
        self._document = document

    def belongs_to(self, domain: str, prefix: str | None) -> None:
        """Take for its tenant the one whose database it is in, whatever its author wrote; the document stays."""
        self.__dict__.update(domain=domain, prefix=prefix)

    def for_function(self) -> Self:
        """Return a copy for the function of a try: whatever it does to that, this job and its document stay."""
        twin = _shallow(self)
        fields = twin.__dict__
        for name in _JSON_FIELDS:
            if isinstance(fields[name], dict | list):
                fields[name] = _copied(fields[name])
        fields["errors"] = [_shallow(error) for error in self.errors]
        for name in ("options", "claim"):
            if fields[name] is not None:
                fields[name] = _shallow(fields[name])
        twin._original = self.document()  # noqa: SLF001
        return twin

    def clone(self) -> Self:
        """Return a copy that shares nothing with this job."""
        twin = self.model_copy(deep=True)
        if hasattr(self, "_document"):
            twin._document = copy.deepcopy(self._document)  # noqa: SLF001
        return twin

    @property
    def doc_type(self) -> str:
        """Return the doctype that permissions name."""
        return "jobs"

    @property
    def domain_name(self) -> str:
        """Return the tenant's domain."""
        return self.domain

    @property
    def db_prefix(self) -> str:
        """Return the tenant's database prefix, empty where there is none."""
        return self.prefix or ""

    @property
    def logger(self) -> FilteringBoundLogger:
        """Return a logger that names the job in every line."""
        logger: FilteringBoundLogger = get_logger("couchjobs.job").bind(
            job=self.id, worker=self.worker, domain=self.domain
        )
        return logger

    def match(self, key: str, value: str) -> bool:
        """Return whether a permission rule on `key` (`worker` or `state`) allows this job."""
        return (key == WORKER_TYPE and self.worker == value) or (key == "state" and self.state == value)


_keep = Job.__dict__["_document"].__set__
"""Sets the document of a job; by its name, pydantic's `__setattr__` would take ten times as long."""
_PLAIN = (str, int, float, bool)
_COUNTS = ("exec_count", "priority", "max_exec_count", "misfire_limit")
_JSON_FIELDS = dict.fromkeys(
    ("message", "event", "payload", "payload_headers", "payload_ids", "progress", "result", "trace_context")
)
"""Fields that hold JSON of others: checked as it is written, copied before a function gets hold of it."""
_DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in Job.model_fields.items()}
_ALIASES = {name: field.alias for name, field in Job.model_fields.items() if field.alias is not None}
M = TypeVar("M", bound=BaseModel)


def _shallow(model: M) -> M:
    """Return a copy that shares the values; pydantic's own takes five times as long, in the way of each job."""
    twin = type(model).__new__(type(model))
    extra = model.__pydantic_extra__
    object.__setattr__(twin, "__dict__", {**model.__dict__})
    object.__setattr__(twin, "__pydantic_fields_set__", model.__pydantic_fields_set__)
    object.__setattr__(twin, "__pydantic_extra__", extra and _copied(extra))
    object.__setattr__(twin, "__pydantic_private__", {**(model.__pydantic_private__ or {})} or None)
    return twin


def _copied(value: Any) -> Any:
    """Return a copy of JSON: what can be changed in it is another object."""
    if isinstance(value, dict):
        return {name: _copied(part) if isinstance(part, dict | list) else part for name, part in value.items()}
    if isinstance(value, list):
        return [_copied(part) if isinstance(part, dict | list) else part for part in value]
    return value


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, State):
        return value.value
    if isinstance(value, BaseModel):
        fields = value.__dict__ | (value.__pydantic_extra__ or {})
        return {
            name: part if type(part) in _PLAIN else _as_json(part) for name, part in fields.items() if part is not None
        }
    return [_as_json(part) for part in value] if isinstance(value, list) else value


def _forgiven(document: Document) -> Document:
    """Return a document without what other languages write: null for an absent field, 5.0 for 5."""
    forgiven = without_nulls(document)
    for name in ("options", "claim"):
        if isinstance(forgiven.get(name), dict):
            forgiven[name] = without_nulls(forgiven[name])
    if isinstance(forgiven.get("errors"), list):
        forgiven["errors"] = [without_nulls(one) if isinstance(one, dict) else one for one in forgiven["errors"]]
    return forgiven


def without_nulls(fields: Document) -> Document:
    """Return the fields that are not null, but for the message; whole numbers of those that count as such."""
    return {
        name: int(value) if name in _COUNTS and isinstance(value, float) and value.is_integer() else value
        for name, value in fields.items()
        if value is not None or name == "message"
    }


def _bad_fields(model: type[BaseModel], document: Document, *, go_durations: bool) -> set[str]:
    try:
        context = GO_DURATIONS if go_durations else None
        model.model_validate(_forgiven(document), by_alias=True, by_name=False, context=context)
    except ValidationError as error:
        return {str(one["loc"][0]) for one in error.errors() if one["loc"]}
    return set()


def is_claimed_by(document: Document, daemon: str) -> bool:
    """Return whether the document is a running job of that daemon."""
    claim = document.get("claim")
    return document.get("state") == State.RUNNING and isinstance(claim, dict) and claim.get("daemon") == daemon


def is_same_claim(one: Document, other: Document) -> bool:
    """Return whether both revisions of a job have the same claim, whatever somebody has written beside its id."""
    return bool(_claim_of(one) == _claim_of(other))


def _claim_of(document: Document) -> Any:
    claim = document.get("claim")
    return claim.get("id", claim) if isinstance(claim, dict) else claim


def is_job(document: Document) -> bool:
    """Return whether somebody meant this document to be a job: it names a worker, or is queued."""
    return not str(document.get("_id", "")).startswith("_design/") and (
        WORKER_TYPE in document or document.get("state") == State.QUEUED
    )
