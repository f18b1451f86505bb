"""Routes of triggers: make, look, change, fire."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any, Literal

from aiohttp import web
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr

from couchjobs.couch.codec import encode
from couchjobs.couch.connection import using
from couchjobs.errors import HookError, MalformedTriggerError, NotFound
from couchjobs.http.access import CALLER
from couchjobs.http.api import API, Api
from couchjobs.http.jobs import names_in, number_in
from couchjobs.http.jobs import shown as shown_job
from couchjobs.http.jobs import shown_to as shown_job_to
from couchjobs.http.jsonapi import (
    ApiError,
    Body,
    answer,
    attributes_of,
    in_time,
    read_body,
    refuse_parameter,
    resource,
)
from couchjobs.http.limits import MOST_BYTES, long_answer
from couchjobs.jobs.job import Job, JobOptions
from couchjobs.jobs.queries import JobFilter, page_of
from couchjobs.jobs.request import new_job
from couchjobs.jobs.trigger_state import get_trigger_state
from couchjobs.log import get_logger
from couchjobs.scheduler.sources import read_sources
from couchjobs.triggers.delivery import RefusedDelivery
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger

MOST_LISTED = 500
"""Triggers of one answer."""
_STATES_TOGETHER = 10
_MOST_JOBS = 500
_JOBS = 50
_logger = get_logger(__name__)


class NewTrigger(Body):
    """What a trigger is made of."""

    type: str
    worker: str = Field(min_length=1)
    arguments: str = ""
    message: Any = None
    worker_arguments: Any = None
    """The old name of `message`."""
    rules: Any = None
    once: StrictBool | None = None
    debounce: StrictStr | StrictInt | StrictFloat | None = None
    options: JobOptions | None = None
    timezone: str | None = None
    misfire: Literal["once", "skip", "all"] | None = None
    misfire_limit: StrictInt | None = None
    grace: StrictStr | StrictInt | StrictFloat | None = None
    starts: str | None = None
    ends: str | None = None
    anchor: str | None = None
    verify: Any = None
    headers: Any = None
    unique_by: str | None = None
    accept: Any = None
    disabled: StrictBool | None = None
    id: str | None = None


class ChangedTrigger(Body):
    """What may be changed of one."""

    arguments: str | None = None
    message: Any = None
    worker_arguments: Any = None
    disabled: StrictBool | None = None


async def shown(api: Api, infos: TriggerInfos) -> dict[str, Any]:
    """Return a trigger as a resource, with what became of its last jobs."""
    with using(api.connection):
        state = await get_trigger_state(api.db, infos.id)
    return resource(
        api.settings.triggers_doctype,
        {**infos.document(), "_id": infos.id, "_rev": infos.rev},
        f"{api.base}/jobs/triggers",
        worker_arguments=infos.message,
        current_state=state.model_dump(mode="json", exclude_none=True),
    )


async def add(request: web.Request) -> web.Response:
    """POST /jobs/triggers: 201 with the trigger."""
    api = request.app[API]
    wanted = read_body(NewTrigger, await attributes_of(request))
    document = wanted.model_dump(exclude_unset=True, exclude={"worker_arguments", "id", "options"})
    if wanted.message is None and wanted.worker_arguments is not None:
        document["message"] = wanted.worker_arguments
    if wanted.options is not None:
        document["options"] = wanted.options.model_dump(exclude_none=True)
    if wanted.id is not None:
        document["_id"] = wanted.id
    infos = TriggerInfos.from_document({name: value for name, value in document.items() if value is not None})
    request[CALLER].check("POST", "triggers", infos)
    if infos.type == "@event" and not request[CALLER].may_all:
        await _check_sources_are_listed(api, infos)
    return answer(await shown(api, await api.client.triggers.add(infos)), 201)


async def _check_sources_are_listed(api: Api, infos: TriggerInfos) -> None:
    """Check that an administrator has listed each database that its events come from, that of jobs, too.

    Raises:
        ApiError: 403: documents that this server may read, and the caller may not, would be copied into jobs.
    """
    sources, rules = await read_sources(api.connection, api.db), parse_trigger(infos)
    if isinstance(rules, EventRules) and (unlisted := sources.unlisted(rules)):
        told = ", ".join(unlisted)
        raise ApiError(403, f"no list says that events may come from {told}: couchjobs init --watch")


@long_answer
async def index(request: web.Request) -> web.Response:
    """GET /jobs/triggers: of these workers and types, with commas between, by id; `links.next` goes on."""
    api, query = request.app[API], request.query
    if not request[CALLER].may_some("GET", "triggers"):
        request[CALLER].check("GET", "triggers")
    workers, types = (names_in(query, name) for name in ("Worker", "Type"))
    size, after = number_in(query, "page[size]", MOST_LISTED, MOST_LISTED), _read_cursor(query.get("page[cursor]"))
    found = [
        infos
        for infos in await api.client.triggers.list()
        if infos.id > after
        and (not workers or infos.worker in workers)
        and (not types or infos.type in types)
        and request[CALLER].may("GET", "triggers", infos)
    ]
    found.sort(key=lambda infos: infos.id)
    page = found[: _fitting(found[:size])]
    links = {}
    if len(found) > len(page):
        cursor = base64.urlsafe_b64encode(page[-1].id.encode()).decode()
        links["next"] = str(request.rel_url.with_query({**query, "page[cursor]": cursor}))
    limit = asyncio.Semaphore(_STATES_TOGETHER)

    async def show(infos: TriggerInfos) -> dict[str, Any]:
        async with limit:
            return await shown(api, infos)

    return answer(await asyncio.gather(*map(show, page)), links=links)


def _read_cursor(text: str | None) -> str:
    """Return the id that a cursor stands for; empty for none.

    Raises:
        ApiError: 400: it is no cursor.
    """
    try:
        return "" if text is None else base64.b64decode(text, altchars=b"-_", validate=True).decode()
    except ValueError:
        refuse_parameter("page[cursor]", "it is no cursor of an answer")


def _fitting(found: list[TriggerInfos]) -> int:
    """Return how many of these triggers fit into one answer, one at least."""
    size = 0
    for number, infos in enumerate(found):
        size += len(encode(infos.document()))
        if size > MOST_BYTES and number:
            return number
    return len(found)


async def _wanted(request: web.Request, verb: str) -> TriggerInfos:
    infos = await request.app[API].client.triggers.get(request.match_info["id"])
    request[CALLER].check(verb, "triggers", infos)
    return infos


def check_of(request: web.Request, verb: str) -> Callable[[TriggerInfos], None]:
    """Return what checks the trigger that is changed: it may be another worker's by then."""
    return lambda infos: request[CALLER].check(verb, "triggers", infos)


async def show(request: web.Request) -> web.Response:
    """GET /jobs/triggers/{id}."""
    infos = await _wanted(request, "GET")
    return answer(await shown(request.app[API], infos))


async def change(request: web.Request) -> web.Response:
    """PATCH /jobs/triggers/{id}: the arguments of a @cron, the message of any, or whether it is disabled."""
    api, infos = request.app[API], await _wanted(request, "PATCH")
    attributes = await attributes_of(request)
    wanted = read_body(ChangedTrigger, attributes)
    changes: dict[str, Any] = {}
    if "arguments" in attributes:
        if infos.type != "@cron":
            raise ApiError(422, f"the arguments of a {infos.type} cannot be changed", {"pointer": "/data/attributes"})
        changes["arguments"] = wanted.arguments
    for name in ("worker_arguments", "message"):
        if name in attributes:
            changes["message"] = attributes[name]
    if wanted.disabled is not None:
        changes["disabled"] = True if wanted.disabled else None
    changed = await api.client.triggers.change(infos.id, changes, check_of(request, "PATCH"))
    if request[CALLER].may("GET", "triggers", changed):
        return answer(await shown(api, changed))
    told = {"_id": changed.id, "_rev": changed.rev, "type": changed.type, "worker": changed.worker}
    return answer(resource(api.settings.triggers_doctype, told, f"{api.base}/jobs/triggers"))


async def delete(request: web.Request) -> web.Response:
    """DELETE /jobs/triggers/{id}: 204."""
    infos = await _wanted(request, "DELETE")
    await request.app[API].client.triggers.delete(infos.id, check_of(request, "DELETE"))
    return web.Response(status=204)


async def state(request: web.Request) -> web.Response:
    """GET /jobs/triggers/{id}/state: what became of its last jobs."""
    api, infos = request.app[API], await _wanted(request, "GET")
    with using(api.connection):
        found = await get_trigger_state(api.db, infos.id)
    attributes = found.model_dump(mode="json", exclude_none=True)
    return answer({"type": f"{api.settings.jobs_doctype}.state", "id": infos.id, "attributes": attributes})


@long_answer
async def jobs(request: web.Request) -> web.Response:
    """GET /jobs/triggers/{id}/jobs: its last jobs, `Limit` at most, 50 unless that is given."""
    api, infos = request.app[API], await _wanted(request, "GET")
    limit = number_in(request.query, "Limit", _JOBS, _MOST_JOBS)
    wanted = JobFilter(trigger=infos.id)
    found, _ = await page_of(api.connection, api.db, wanted, limit, most_bytes=MOST_BYTES)
    return answer([shown_job(api, Job.read(document)) for document in found])


async def launch(request: web.Request) -> web.Response:
    """POST /jobs/triggers/{id}/launch: 201 with the job of a firing by hand."""
    api, infos = request.app[API], await _wanted(request, "POST")
    job = await fire(api, infos)
    his = request[CALLER].may("GET", "triggers", infos)
    return answer(shown_job(api, job) if his else shown_job_to(request, job), 201)


async def fire(api: Api, infos: TriggerInfos) -> Job:
    """Fire a trigger by hand, and return the job."""
    if infos.type == "@webhook":
        job = await api.scheduler.fire_webhook(infos.id, None, manual=True)
    else:
        stored = await api.pusher.store(new_job(api.db, infos.job_request(manual=True)))
        job = None if stored is None else stored.job
    if job is None:
        raise ApiError(422, "a before_hook does not want this job")
    return job


async def webhook(request: web.Request) -> web.Response:
    """POST /jobs/webhooks/{id}: 204 once the job is stored. The id is the secret: nobody else is asked who he is."""
    api, trigger_id = request.app[API], request.match_info["id"]
    manual = request.query.get("Manual", request.query.get("manual", "")).lower() == "true"
    raw = await in_time(request, request.read())
    try:
        await api.scheduler.deliver(trigger_id, raw, request.content_type, request.headers, manual=manual)
    except (HookError, MalformedTriggerError, NotFound, RefusedDelivery) as error:
        _logger.warning("a delivery is refused", trigger=trigger_id[:4] + "...", reason=str(error))
        status = 404 if isinstance(error, NotFound) else 422 if isinstance(error, HookError) else 403
        raise ApiError(error.status if isinstance(error, RefusedDelivery) else status, "this is not taken") from None
    return web.Response(status=204)
