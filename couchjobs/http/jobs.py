"""Routes of jobs: push, look, change, retry, cancel, remove."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from aiohttp import web
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr

from couchjobs.client import JobGuard
from couchjobs.couch.codec import encode
from couchjobs.couch.connection import using
from couchjobs.durations import read_age
from couchjobs.errors import ConfigurationError, Conflict
from couchjobs.http.access import CALLER
from couchjobs.http.api import API, Api
from couchjobs.http.jsonapi import ApiError, Body, answer, attributes_of, read_body, refuse_parameter, resource
from couchjobs.http.limits import MOST_BYTES, long_answer
from couchjobs.jobs.job import CLIENT_WORKER, ENDED, Job, JobOptions, State
from couchjobs.jobs.lanes import find_job, stores
from couchjobs.jobs.queries import After, JobFilter, each, iter_queued_jobs, page_of, past
from couchjobs.jobs.removal import Remover
from couchjobs.jobs.request import JobRequest, moment_of
from couchjobs.jobs.retention import Retention, read_rules
from couchjobs.timestamps import format_time, now

_PAGE = 50
_MOST = 500
_MOST_DIGITS = 9
_NOT_ENDED = (State.QUEUED, State.RUNNING)
_MANY = 10_000
"""Jobs that one request may retry or cancel."""
_CHANGED_TOGETHER = 50


class Push(Body):
    """What a job is pushed with."""

    arguments: Any = None
    """The message."""
    manual: StrictBool = False
    forward_logs: StrictBool = False
    options: JobOptions | None = None
    priority: StrictInt | None = None
    id: str | None = Field(default=None, min_length=1)
    """Where a job with that id is there already, that is answered, and nothing is stored."""
    delay: StrictStr | StrictInt | StrictFloat | None = None
    """A duration."""


class End(Body):
    """What a client says of its own job."""

    state: State
    error: str | None = None
    result: Any = None


def shown(api: Api, job: Job) -> dict[str, Any]:
    """Return a job as a resource."""
    return resource(api.settings.jobs_doctype, job.document(), f"{api.base}/jobs", arguments=job.message)


def shown_to(request: web.Request, job: Job) -> dict[str, Any]:
    """Return a job as a resource, for who has changed it: who may not see it learns what has become of it, no more."""
    api = request.app[API]
    if request[CALLER].may("GET", "jobs", job):
        return shown(api, job)
    told = {"_id": job.id, "_rev": job.rev, "worker": job.worker, "state": job.state.value}
    return resource(api.settings.jobs_doctype, told, f"{api.base}/jobs")


async def push(request: web.Request) -> web.Response:
    """POST /jobs/queue/{worker}: 202 with the job, once it is stored."""
    api, worker = request.app[API], request.match_info["worker"]
    wanted = read_body(Push, await attributes_of(request))
    asked = JobRequest(
        worker_type=worker,
        message=wanted.arguments,
        manual=wanted.manual,
        forward_logs=wanted.forward_logs,
        options=wanted.options,
        priority=wanted.priority,
        id=wanted.id,
        scheduled_at=moment_of(wanted.delay, None),
    )
    request[CALLER].check("PUSH", "jobs", asked)
    not_yours = ApiError(409, "there is a job with that id, which is not yours to see")
    try:
        result = await api.pusher.push(asked)
    except Conflict as error:  # of another worker
        raise error if request[CALLER].may("GET", "jobs") else not_yours from None
    if result is None:
        raise ApiError(422, "a before_hook does not want this job")
    if not result.created and not request[CALLER].may("GET", "jobs", result.job):
        raise not_yours
    return answer(shown(api, result.job), 202, meta={"created": result.created})


@long_answer
async def queued(request: web.Request) -> web.Response:
    """GET /jobs/queue/{worker}: the queued and running jobs of a type, and how many are queued."""
    api, worker = request.app[API], request.match_info["worker"]
    request[CALLER].check("GET", "jobs", JobRequest(worker_type=worker))
    found: list[dict[str, Any]] = []
    size = 0
    with using(api.connection):
        async for job in iter_queued_jobs(api.db, worker):
            found.append(shown(api, job))
            size += len(encode(job.document()))
            if len(found) == _MOST or size > MOST_BYTES:
                break
        count = await api.queue_len(worker)
    return answer(found, meta={"count": max(count, len(found))})


async def show(request: web.Request) -> web.Response:
    """GET /jobs/{id}."""
    api = request.app[API]
    _, job = await find_job(api.connection, api.db, request.match_info["id"])
    request[CALLER].check("GET", "jobs", job)
    return answer(shown(api, job))


async def end(request: web.Request) -> web.Response:
    """PATCH /jobs/{id}: how a job of a @client trigger has ended, which its client does itself."""
    api = request.app[API]
    wanted = read_body(End, await attributes_of(request))
    while True:
        store, job = await find_job(api.connection, api.db, request.match_info["id"])
        request[CALLER].check("PATCH", "jobs", job)
        if job.worker != CLIENT_WORKER:
            raise ApiError(403, f"this is a job of worker {job.worker!r}: only those of clients are ended so")
        if job.state in ENDED:
            raise ApiError(409, f"the job has ended already: it is {job.state}")
        changes: dict[str, Any] = {"state": wanted.state, "error": wanted.error}
        if wanted.state in (State.DONE, State.ERRORED):
            changes["finished_at"] = now()
        if wanted.result is not None:
            changes["result"] = wanted.result
        try:
            await store.update(job, **changes)
        except Conflict:  # somebody else has changed it: on top of that
            continue
        return answer(shown_to(request, job))


@long_answer
async def index(request: web.Request) -> web.Response:
    """GET /jobs: the newest first, a page at a time; `links.next` goes on."""
    api = request.app[API]
    wanted = narrowed(request, filter_in(request.query))
    size = number_in(request.query, "page[size]", _PAGE, _MOST)
    wanted = replace(wanted, after=read_cursor(request.query.get("page[cursor]")))
    page, after = await page_of(api.connection, api.db, wanted, size, most_bytes=MOST_BYTES)
    links = {}
    if after is not None:
        query = {**request.query, "page[cursor]": cursor_of(after)}
        links["next"] = str(request.rel_url.with_query(query))
    return answer([shown(api, Job.read(document)) for document in page], links=links)


def narrowed(request: web.Request, wanted: JobFilter) -> JobFilter:
    """Return which of these jobs the caller may see: all, or those of the worker types that his rules name.

    Raises:
        ApiError: 403: with none.
    """
    caller = request[CALLER]
    workers = () if wanted.worker is not None else caller.workers("GET")
    if workers and not caller.may("GET", "jobs"):
        return replace(wanted, workers=workers)
    caller.check("GET", "jobs", JobRequest(worker_type=wanted.worker) if wanted.worker else None)
    return wanted


def cursor_of(after: After) -> str:
    """Return what asks for the jobs that follow one."""
    return base64.urlsafe_b64encode(encode([*after])).decode()


def read_cursor(text: str | None) -> After | None:
    """Return the place that a cursor stands for.

    Raises:
        ApiError: 400: it is none.
    """
    if text is None:
        return None
    try:
        at, last = orjson.loads(base64.urlsafe_b64decode(text))
    except (ValueError, TypeError, binascii.Error):
        refuse_parameter("page[cursor]", "it is no cursor of an answer")
    if not isinstance(last, str):
        refuse_parameter("page[cursor]", "it is no cursor of an answer")
    return at, last


def filter_in(query: Mapping[str, str]) -> JobFilter:
    """Return which jobs the parameters of a request ask for.

    Raises:
        ApiError: 400: one of them makes no sense.
    """
    state = query.get("state")
    if state is not None and state not in list(State):
        refuse_parameter("state", f"{state!r} is none of {', '.join(State)}")
    since = query.get("since")
    try:
        from_then = past(since)
    except ValueError as error:
        refuse_parameter("since", str(error))
    return JobFilter(
        worker=query.get("worker"),
        state=State(state) if state else None,
        trigger=query.get("trigger"),
        since=from_then,
    )


def names_in(query: Mapping[str, str], parameter: str) -> list[str]:
    """Return the names of a filter, with commas between; none where there is no such filter.

    Raises:
        ApiError: 400: one of them is empty.
    """
    names = query[parameter].split(",") if parameter in query else []
    if "" in names:
        refuse_parameter(parameter, "one of its names is empty")
    return [*dict.fromkeys(names)]


def number_in(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Return the number that a parameter of a request is.

    Raises:
        ApiError: 400: it is none from 1 to `most`.
    """
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS or not 1 <= int(text) <= most:
        refuse_parameter(name, f"a number from 1 to {most}")
    return int(text)


async def retry(request: web.Request) -> web.Response:
    """POST /jobs/{id}/retry: queue a job again that has failed; with `again=true` also one that is done."""
    again, check = _is_true(request, "again"), request[CALLER].check_retry
    job = await request.app[API].client.retry(request.match_info["id"], again=again, check=check)
    return answer(shown_to(request, job))


async def cancel(request: web.Request) -> web.Response:
    """POST /jobs/{id}/cancel."""
    check = partial(request[CALLER].check, "CANCEL", "jobs")
    return answer(shown_to(request, await request.app[API].client.cancel(request.match_info["id"], check=check)))


def _is_true(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() == "true"


async def _wanted(request: web.Request) -> Job:
    api = request.app[API]
    return (await find_job(api.connection, api.db, request.match_info["id"]))[1]


async def retry_many(request: web.Request) -> web.Response:
    """POST /jobs/retry: all that the filters name and that have failed; 10,000 at most."""
    change, check = request.app[API].client.retry, request[CALLER].check_retry
    return await _change_many(request, "RETRY", [State.ERRORED], change, check)


async def cancel_many(request: web.Request) -> web.Response:
    """POST /jobs/cancel: all that the filters name and that have not ended; 10,000 at most."""
    check = partial(request[CALLER].check, "CANCEL", "jobs")
    return await _change_many(request, "CANCEL", _NOT_ENDED, request.app[API].client.cancel, check)


async def _change_many(
    request: web.Request,
    verb: str,
    states: Collection[State],
    change: Callable[..., Awaitable[object]],
    check: JobGuard,
) -> web.Response:
    api, caller = request.app[API], request[CALLER]
    asked = filter_in(request.query)
    caller.check(verb, "jobs", JobRequest(worker_type=asked.worker) if asked.worker else None)
    ids: dict[str, None] = {}
    refused = 0
    for state in states if asked.state is None else [asked.state]:
        async for document in each(api.connection, api.db, replace(asked, state=state, cancelled=False)):
            if verb == "RETRY" and not caller.may_retry(Job.read(document)):
                refused += 1
                continue
            ids[document["_id"]] = None  # it may have begun meanwhile
            if len(ids) >= _MANY:
                break
        if len(ids) >= _MANY:
            break
    changed = await api.all(ids, partial(change, check=check), _CHANGED_TOGETHER)
    return answer(None, meta={"changed": changed, "refused": refused + len(ids) - changed})


async def purge(request: web.Request) -> web.Response:
    """DELETE /jobs/purge: ended jobs that are older than `duration`, of the `workers` that are named, or of all."""
    api = request.app[API]
    duration = request.query.get("duration", "2w").replace("W", "w").replace("D", "d")  # M is no month
    workers = names_in(request.query, "workers") or ["*"]
    workers = ["*"] if "*" in workers else workers
    for worker in workers:
        request[CALLER].check("DELETE", "jobs", None if worker == "*" else JobRequest(worker_type=worker))
    try:
        read_age(duration)
    except ValueError as error:
        refuse_parameter("duration", str(error))
    try:
        rules = read_rules([{"worker": worker, "state": "*", "keep": duration} for worker in workers])
    except ConfigurationError as error:
        refuse_parameter("workers", str(error))
    removed = 0
    for store in stores(api.connection, api.db):
        remover = Remover(store)
        async for count in remover.steps(Retention(rules.rules), now()):
            removed += count
        remover.check_all()
    return answer(None, meta={"deleted": removed, "at": format_time(now())})
