"""A trace goes from a producer through its job to the jobs that this one pushes, in another daemon's process too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.tracing import span_of_try
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

exporter = InMemorySpanExporter()


@pytest.fixture(autouse=True)
def spans() -> InMemorySpanExporter:
    """What is told; the provider of a process is set once."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    exporter.clear()
    return exporter


@worker("first")
async def first(ctx: WorkerContext) -> None:
    """Push another job."""
    await ctx.push("second", None)


@worker("second", max_exec_count=1)
def second(ctx: WorkerContext) -> None:
    """Fail, in a thread."""
    with trace.get_tracer("of the user").start_as_current_span("own"):
        raise ValueError("as it was told")


async def test_trace_when_jobs_push_jobs_then_one(
    connection: Connection, db: Prefixer, start: Callable[..., Any], spans: InMemorySpanExporter
) -> None:
    """Each try a span, its error in it; a function's own spans are its children; a job by hand begins a trace."""
    await start(first, second)
    client = Couchjobs.over(connection)
    with trace.get_tracer("of the web application").start_as_current_span("request") as request:
        job = (await client.push("first")).job
    by_hand = {"worker": "second", "message": None, "state": "queued", "trace_context": ["garbage", {"traceparent": 1}]}
    await JobStore(connection, db).database.put({"_id": "by-hand", **by_hand})
    await client.wait(job.id, 10)
    await client.wait("by-hand", 10)
    await eventually(lambda: len(spans.get_finished_spans()) == 6)
    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    of_this = [
        span for some in found.values() for span in some if _trace_of(span) == request.get_span_context().trace_id
    ]
    assert sorted(span.name for span in of_this) == ["own", "process first", "process second", "request"]
    by_name = {span.name: span for span in of_this}
    for child, parent in (("process first", "request"), ("process second", "process first"), ("own", "process second")):
        assert by_name[child].parent is not None
        assert by_name[child].parent.span_id == by_name[parent].context.span_id  # type: ignore[union-attr]
    assert by_name["process second"].attributes["messaging.destination.name"] == "second"  # type: ignore[index]
    assert [event.name for event in by_name["process second"].events] == ["exception"]
    document = await JobStore(connection, db).database.find(job.id) or {}
    assert document["trace_context"].keys() == {"traceparent"}
    assert "trace_context" not in (await client.push("first", id="outside")).job.document()
    await asyncio.wait_for(client.wait("outside"), 10)


def _trace_of(span: ReadableSpan) -> int:
    return span.context.trace_id if span.context is not None else 0


class Odd(ExceptionGroup[Exception]):
    """A group whose attributes raise, which whoever tells of it meets."""

    @property
    def exceptions(self) -> Any:
        """Raise."""
        raise SystemExit(6)


def test_error_when_telling_of_it_raises_then_it_stays_what_it_was() -> None:
    """The span is the program's, the error the function's."""
    with pytest.raises(Odd), span_of_try("w", "job", 1, None):
        raise Odd("g", [ValueError("inner")])
