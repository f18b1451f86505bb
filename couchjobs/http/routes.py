"""Which routes there are: what each does, what it takes and answers, and which scope it wants."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from couchjobs.http import jobs, running, triggers
from couchjobs.http.events import Events
from couchjobs.http.jsonapi import Body, refuse_parameter
from couchjobs.http.metrics import Metrics
from couchjobs.jobs.job import State

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of the query."""

    name: str
    text: str
    type: str = "string"
    one_of: tuple[str, ...] = ()
    format: str = ""
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Args:
        method: the HTTP method.
        path: with names of what varies in braces.
        handler: who answers; its docstring says what it does.
        scope: which rule allows it, as `doctype:verb`; empty where nobody is asked.
        status: that of a good answer.
        answers: what that holds: `job`, `jobs`, `trigger`, `triggers`, `state`, `queue`, `queues`, `daemons`, `meta`,
            `health`, `text`, `events`; empty for nothing.
        body: the attributes that it takes.
        parameters: of the query.
        takes_any: whether others are left alone: those who call it add what they like.
    """

    method: str
    path: str
    handler: Handler
    scope: str = ""
    status: int = 200
    answers: str = ""
    body: type[Body] | None = None
    parameters: tuple[Parameter, ...] = ()
    takes_any: bool = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer, where each parameter is one that the route knows, is there once, and is not empty.

        A filter that is misspelt, or says nothing, would let all through.

        Raises:
            ApiError: 400: one of them is none.
        """
        known = {one.name for one in self.parameters}
        for name, value in request.query.items() if not self.takes_any else ():
            if name not in known:
                refuse_parameter(
                    name, f"there is none of that name here: {', '.join(sorted(known)) or 'there are none'}"
                )
            if not value:
                refuse_parameter(name, "it is empty: leave it out, or say something")
            if len(request.query.getall(name)) > 1:
                refuse_parameter(name, "it is there more than once")
        return await self.handler(request)

    @property
    def text(self) -> str:
        """Return what it does, as its handler says."""
        said = " ".join((self.handler.__doc__ or "").split())
        return said.partition(": ")[2] or said


_FILTERS = (
    Parameter("worker", "Of this worker type."),
    Parameter("state", "In this state.", one_of=tuple(State)),
    Parameter("trigger", "Of this trigger."),
    Parameter("since", "Queued since then: an RFC 3339 time, a date, or a duration back from now, such as `1h`."),
)
_PAGE = (
    Parameter("page[size]", "How many at most; 50 unless given.", "integer", most=500),
    Parameter("page[cursor]", "From `links.next` of the page before."),
)


def routes(events: Events, metrics: Metrics) -> list[Route]:
    """Return all of them; those whose paths are fixed come before those that vary."""
    return [
        Route("POST", "/jobs/queue/{worker}", jobs.push, "jobs:POST", status=202, answers="job", body=jobs.Push),
        Route("GET", "/jobs/queue/{worker}", jobs.queued, "jobs:GET", answers="jobs"),
        Route(
            "POST",
            "/jobs/triggers",
            triggers.add,
            "triggers:POST",
            status=201,
            answers="trigger",
            body=triggers.NewTrigger,
        ),
        Route(
            "GET",
            "/jobs/triggers",
            triggers.index,
            "triggers:GET",
            answers="triggers",
            parameters=(
                Parameter("Worker", "Of these worker types, with commas between."),
                Parameter("Type", "Of these types, such as `@cron,@event`."),
                Parameter("page[size]", "How many at most; 500 unless given.", "integer", most=triggers.MOST_LISTED),
                Parameter("page[cursor]", "From `links.next` of the page before."),
            ),
        ),
        Route("GET", "/jobs/triggers/{id}", triggers.show, "triggers:GET", answers="trigger"),
        Route(
            "PATCH",
            "/jobs/triggers/{id}",
            triggers.change,
            "triggers:PATCH",
            answers="trigger",
            body=triggers.ChangedTrigger,
        ),
        Route("DELETE", "/jobs/triggers/{id}", triggers.delete, "triggers:DELETE", status=204),
        Route("GET", "/jobs/triggers/{id}/state", triggers.state, "triggers:GET", answers="state"),
        Route(
            "GET",
            "/jobs/triggers/{id}/jobs",
            triggers.jobs,
            "triggers:GET",
            answers="jobs",
            parameters=(Parameter("Limit", "How many at most; 50 unless given.", "integer", most=500),),
        ),
        Route("POST", "/jobs/triggers/{id}/launch", triggers.launch, "triggers:POST", status=201, answers="job"),
        Route(
            "POST",
            "/jobs/webhooks/{id}",
            triggers.webhook,
            status=204,
            parameters=(Parameter("Manual", "`true`: a person has asked for it."),),
            takes_any=True,
        ),
        Route(
            "DELETE",
            "/jobs/purge",
            jobs.purge,
            "jobs:DELETE",
            answers="meta",
            parameters=(
                Parameter("duration", "How old, such as `3W`; two weeks unless given."),
                Parameter("workers", "Of these worker types, with commas between; of all unless given."),
            ),
        ),
        Route("GET", "/jobs", jobs.index, "jobs:GET", answers="jobs", parameters=(*_FILTERS, *_PAGE)),
        Route("POST", "/jobs/retry", jobs.retry_many, "jobs:POST", answers="meta", parameters=_FILTERS),
        Route("POST", "/jobs/cancel", jobs.cancel_many, "jobs:POST", answers="meta", parameters=_FILTERS),
        Route("GET", "/jobs/{id}", jobs.show, "jobs:GET", answers="job"),
        Route("PATCH", "/jobs/{id}", jobs.end, "jobs:PATCH", answers="job", body=jobs.End),
        Route(
            "POST",
            "/jobs/{id}/retry",
            jobs.retry,
            "jobs:POST",
            answers="job",
            parameters=(Parameter("again", "`true`: also one that is done."),),
        ),
        Route("POST", "/jobs/{id}/cancel", jobs.cancel, "jobs:POST", answers="job"),
        Route("GET", "/queues", running.queues, "queues:GET", answers="queues"),
        Route("POST", "/queues/{worker}/pause", running.pause, "queues:POST", answers="queue"),
        Route("POST", "/queues/{worker}/resume", running.resume, "queues:POST", answers="queue"),
        Route("GET", "/daemons", running.daemons, "daemons:GET", answers="daemons"),
        Route("GET", "/health/live", running.live, answers="health", takes_any=True),
        Route("GET", "/health/ready", running.ready, answers="health", takes_any=True),
        Route("GET", "/events", events.answer, "jobs:GET", answers="events", parameters=(_FILTERS[0],)),
        Route("GET", "/metrics", metrics.answer, "metrics:GET", answers="text", takes_any=True),
    ]
