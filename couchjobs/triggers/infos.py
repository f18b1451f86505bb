"""The trigger document."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, model_validator

from couchjobs.couch.database import Document
from couchjobs.durations import Seconds
from couchjobs.errors import BadDocumentError, MessageUnmarshalError
from couchjobs.jobs.job import CLIENT_WORKER, GO_DURATIONS, MAX_NAME, WORKER_TYPE, JobOptions, without_nulls
from couchjobs.jobs.message import decode_message
from couchjobs.jobs.request import JobRequest, as_stored
from couchjobs.reasons import reasons
from couchjobs.timestamps import Timestamp

_BOOL = TypeAdapter(bool)
MOST_MISFIRES = 1000
"""The highest `misfire_limit`."""


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def is_disabled(document: Document) -> bool:
    """Return whether a document of a trigger says that it is disabled, as the field is read: 1 and "yes" do."""
    try:
        return _BOOL.validate_python(document.get("disabled", False))
    except ValidationError:
        return False


class TriggerInfos(BaseModel):
    """A trigger as it is stored. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    id: str = Field(default="", alias="_id")
    """The name of the trigger; of a @webhook, its secret."""
    rev: str = Field(default="", alias="_rev")
    """The revision, by CouchDB."""
    domain: str = ""
    """Of its tenant."""
    prefix: str | None = None
    """Of its tenant's databases."""
    type: str = Field(min_length=1, strict=True)
    """@event, @cron, @hourly, @daily, @weekly, @monthly, @every, @at, @in, @webhook or @client."""
    worker: str = Field(min_length=1, max_length=MAX_NAME, strict=True)
    """The type of worker of its jobs."""
    arguments: str = Field(default="", strict=True)
    """What makes it fire, as its type has it."""
    rules: Any = None
    """Of an @event: structured rules, beside those in `arguments`."""
    once: bool = False
    """Of an @event: one job for each document, however often it changes, as long as that job is there."""
    debounce: Annotated[Seconds | None, Field(default=None)] = None
    """A duration: what fires within it makes one job."""
    options: JobOptions | None = None
    """The options of its jobs."""
    message: Any = None
    """The message of its jobs."""
    verify: Any = None
    """Of a @webhook over HTTP: how a delivery is signed."""
    headers: Any = None
    """Of a @webhook over HTTP: the headers that reach its jobs as `payload_headers`."""
    unique_by: Any = None
    """Of a @webhook over HTTP: what tells deliveries apart, header:NAME or body:PATH; one job for each."""
    accept: Any = None
    """Of a @webhook over HTTP: json, form, text, raw, or a list of them. Defaults to json."""
    timezone: str | None = None
    """The IANA name of the zone of a schedule. Defaults to UTC."""
    misfire: Literal["once", "skip", "all"] = "once"
    """What becomes of ticks that were missed: one late job, none, or each one."""
    misfire_limit: Annotated[int | None, Field(ge=1, le=MOST_MISFIRES)] = None
    """With `misfire: all`, how many at most."""
    grace: Annotated[Seconds | None, Field(default=None)] = None
    """A duration: how late a tick may be."""
    starts: Timestamp = None
    """No tick before."""
    ends: Timestamp = None
    """No tick after."""
    anchor: Timestamp = None
    """Of an @every: one of its ticks."""
    disabled: bool = False
    """Whether it does not fire."""
    ended: str | None = None
    """Why its single tick never fires, where that is so; written by a daemon, which disables the trigger."""
    firing: Timestamp = None
    """The single tick that is being fired; written by a daemon, which deletes the trigger once the job is stored."""

    _document: Document = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _have_clients_do_it(cls, fields: Any) -> Any:
        """Give the worker `client` to a @client trigger, whatever it names: nobody else does its jobs."""
        if isinstance(fields, dict) and fields.get("type") == "@client":
            return {**fields, "worker": CLIENT_WORKER}
        return fields

    @classmethod
    def from_document(cls, document: Document, *, go_durations: bool = False) -> Self:
        """Return the trigger that the document holds, numbers in its options being seconds, or Go's nanoseconds.

        Raises:
            BadDocumentError: it is none; the message says why.
        """
        document = {name: as_stored(value, name) for name, value in document.items()}
        readable = without_nulls(document)
        if isinstance(readable.get("options"), dict):
            readable["options"] = without_nulls(readable["options"])
        readable["debounce"] = _none_if_empty(document.get("debounce"))
        try:
            context = GO_DURATIONS if go_durations else None
            infos = cls.model_validate(readable, by_alias=True, by_name=False, context=context)
            infos.message = decode_message(infos.message)
        except ValidationError as error:
            raise BadDocumentError(reasons(error)) from None
        except MessageUnmarshalError as error:
            raise BadDocumentError(f"message: {error}") from error
        infos._document = document  # noqa: SLF001  an alternative constructor
        return infos

    def document(self) -> Document:
        """Return the document as it was read, or what a new trigger says, durations in seconds."""
        if self._document:
            return self._document
        document: Document = self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude_none=True, exclude={"message"}
        )
        if self.message is not None:
            document["message"] = as_stored(self.message, "message")
        if self.options is not None:
            document["options"] = self.options.stored()
        return document

    def clone(self) -> Self:
        """Return a copy that shares nothing with this one."""
        twin = self.model_copy(deep=True)
        twin._document = copy.deepcopy(self._document)  # noqa: SLF001
        return twin

    @property
    def doc_type(self) -> str:
        """Return the doctype that permissions name."""
        return "triggers"

    def match(self, key: str, value: str) -> bool:
        """Return whether a permission rule on `key` (`worker` or `type`) allows this trigger."""
        return (key == WORKER_TYPE and self.worker == value) or (key == "type" and self.type == value)

    def job_request(self, **more: Any) -> JobRequest:
        """Return the request for the job of one firing."""
        return JobRequest(
            worker_type=self.worker, trigger_id=self.id or None, message=self.message, options=self.options, **more
        )

    def job_request_with_event(self, event: dict[str, Any], **more: Any) -> JobRequest:
        """Return the request for the job of one firing by an event."""
        return self.job_request(event=event, **more)
