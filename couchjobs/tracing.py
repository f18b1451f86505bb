"""Spans of OpenTelemetry, where `couchjobs[otel]` is installed: one for each try, a child of what has pushed the job.

A job carries the context of its producer as W3C's `traceparent` and `tracestate`, so that a trace goes from a request
of a web application through its jobs to the jobs that those push. Which spans are kept, and where they go, the program
says, as ever with OpenTelemetry (a tracer provider; `opentelemetry-instrument couchjobs run ...` sets one). Where
nobody has set one, nothing is carried. Source: opentelemetry.io, "Semantic conventions for messaging spans".
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Any

_is_there = find_spec("opentelemetry") is not None
_trace: Any = import_module("opentelemetry.trace") if _is_there else None
_propagate: Any = import_module("opentelemetry.propagate") if _is_there else None
_NAME = "couchjobs"


def carried() -> dict[str, str] | None:
    """Return the context of the present span, for a job that is pushed in it; None where there is none."""
    if _trace is None or _trace.get_current_span() is _trace.INVALID_SPAN:
        return None
    found: dict[str, str] = {}
    _propagate.inject(found)
    return found or None


def _is_traced() -> bool:
    """Return whether the program has said where spans go."""
    return not isinstance(_trace.get_tracer_provider(), _trace.ProxyTracerProvider)


def span_of_try(
    worker: str, job_id: str, exec_count: int, carrier: Mapping[str, Any] | None
) -> AbstractContextManager[Any]:
    """Return a span for one try of a job, entered around its function; an error of that is recorded in it."""
    if _trace is None or not (carrier or _is_traced()):
        return nullcontext()
    told = {name: value for name, value in carrier.items() if isinstance(value, str)} if carrier else {}
    attributes = {
        "messaging.system": _NAME,
        "messaging.operation.type": "process",
        "messaging.destination.name": worker,
        "messaging.message.id": job_id,
        "couchjobs.exec_count": exec_count,
    }
    return _Span(
        _trace.get_tracer(_NAME).start_as_current_span(
            f"process {worker}", context=_propagate.extract(told), kind=_trace.SpanKind.CONSUMER, attributes=attributes
        )
    )


class _Span(AbstractContextManager[None]):
    """A span that decides nothing: what its telling of an error raises does not stand in the error's place."""

    def __init__(self, span: AbstractContextManager[object]) -> None:
        self._span = span

    def __enter__(self) -> None:
        self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(BaseException):
            self._span.__exit__(kind, error, traceback)
