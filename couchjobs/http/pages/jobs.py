"""The pages of jobs: those that are asked for, and one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web
from yarl import URL

from couchjobs.couch.database import Database, Document
from couchjobs.errors import CouchjobsError, JobNotFoundError
from couchjobs.http.access import CALLER
from couchjobs.http.api import API, Api
from couchjobs.http.jobs import cursor_of, filter_in, narrowed, read_cursor
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.limits import MOST_BYTES, long_answer
from couchjobs.http.pages.page import PATIENCE_S, back, form_of, render
from couchjobs.http.pages.text import segment
from couchjobs.jobs.job import ENDED, Job, State
from couchjobs.jobs.lanes import find_job
from couchjobs.jobs.queries import After, JobFilter, each, page_of, past
from couchjobs.timestamps import format_time

_PAGE = 50
_MANY = 10_000
_TOGETHER = 50
_CHILDREN = 50


@long_answer
async def index(request: web.Request) -> web.Response:
    """GET /dashboard/jobs."""
    api, query = request.app[API], {name: value for name, value in request.query.items() if value}
    if "id" in query:
        return back(request, f"/jobs/{segment(query['id'].strip())}")
    _read_since(query)
    asked = narrowed(request, filter_in(query))
    wanted = replace(asked, after=read_cursor(query.get("page[cursor]")))
    (documents, after), is_behind = await _newest(api, wanted)
    page = [Job.read(document) for document in documents]
    older = ""
    if after is not None:
        older = str(request.rel_url.with_query({**query, "page[cursor]": cursor_of(after)}))
    return render(
        request,
        "jobs.html",
        title="Jobs",
        jobs=page,
        query=query,
        filters={name: query[name] for name in ("worker", "state", "trigger", "since") if name in query},
        states=[*State],
        older=older,
        newer=str(request.rel_url.with_query({k: v for k, v in query.items() if k != "page[cursor]"}))
        if wanted.after
        else "",
        is_behind=is_behind,
    )


def _read_since(query: dict[str, str]) -> None:
    """Have `since` as the API wants it: people write dates, and `1h`."""
    if "since" in query:
        with suppress(ValueError, OverflowError):
            since = past(query["since"])
            query["since"] = format_time(since) if since else ""


async def _newest(api: Api, wanted: JobFilter) -> tuple[tuple[list[Document], After | None], bool]:
    """Return a page of the newest of these jobs, as `page_of` does, and whether the views were behind."""
    ask = partial(page_of, api.connection, api.db, wanted, _PAGE, most_bytes=MOST_BYTES)
    return await api.freshness.read(ask, PATIENCE_S)


async def change_many(request: web.Request) -> web.Response:
    """POST /dashboard/jobs: retry or cancel those that are selected, or all that the filters name."""
    api, fields = request.app[API], await form_of(request)
    action = fields.get("action", [""])[0]
    if action not in ("retry", "cancel", "retry-all", "cancel-all"):
        raise ApiError(400, f"{action!r}: retry or cancel")
    asked = {name: fields[name][0] for name in ("worker", "state", "trigger", "since") if fields.get(name, [""])[0]}
    where = str(URL("/jobs").with_query(asked))
    if action.endswith("-all"):
        wanted = filter_in(asked)
        ids = await _ids_of(api, wanted, State.ERRORED if action == "retry-all" else State.QUEUED)
    else:
        ids = fields.get("job", [])
    if not ids:
        return back(request, where, "no job was selected")
    changed = await api.all(ids, lambda job_id: _act(request, job_id, action.removesuffix("-all")), _TOGETHER)
    refused = len(ids) - changed
    what = {"retry": "queued again", "cancel": "cancelled"}[action.removesuffix("-all")]
    return back(request, where, f"{changed:,} {what}" + (f", {refused:,} could not be" if refused else ""))


async def _ids_of(api: Api, asked: JobFilter, state: State) -> list[str]:
    wanted = replace(asked, state=asked.state or state, cancelled=False)
    ids: list[str] = []
    async for document in each(api.connection, api.db, wanted):
        ids.append(document["_id"])
        if len(ids) == _MANY:
            break
    return ids


async def _act(request: web.Request, job_id: str, action: str) -> None:
    api = request.app[API]
    if action in ("retry", "again"):
        await api.client.retry(job_id, again=action == "again", check=request[CALLER].check_retry)
    elif action == "cancel":
        await api.client.cancel(job_id, check=partial(request[CALLER].check, "CANCEL", "jobs"))
    else:
        raise ApiError(404, f"{action}: retry, again or cancel")


async def show(request: web.Request) -> web.Response:
    """GET /dashboard/jobs/{id}."""
    api, job_id = request.app[API], request.match_info["id"]
    try:
        store, job = await find_job(api.connection, api.db, job_id)
    except JobNotFoundError:
        raise ApiError(404, f"there is no job {job_id!r}; it may have been removed") from None
    request[CALLER].check("GET", "jobs", job)
    children = await _children(request, store.database, job_id)
    parent = job_id.rpartition(":")[0] if ":" in job_id and not job.event else ""
    if parent and not await _may_see(request, parent):
        parent = ""
    return render(
        request,
        "job.html",
        title="Job",
        job=job,
        document={name: value for name, value in job.document().items() if name != "admin_proof"},
        steps=_steps(job),
        children=children,
        parent=parent,
        has_ended=job.state in ENDED,
        progress=_progress(job),
    )


async def _children(request: web.Request, database: Database, job_id: str) -> list[str]:
    """Return the ids of the jobs that a job has pushed, those that the caller may see, 50 at most."""
    ids: list[str] = []
    async for revisions in database.revisions_with_prefix(f"{job_id}:"):
        ids += [*revisions]
        if len(ids) >= _CHILDREN:
            break
    found = await database.get_many(ids[:_CHILDREN])
    return [child for child, document in found.items() if request[CALLER].may("GET", "jobs", Job.read(document))]


async def _may_see(request: web.Request, job_id: str) -> bool:
    api = request.app[API]
    try:
        _, job = await find_job(api.connection, api.db, job_id)
    except JobNotFoundError:
        return False
    return request[CALLER].may("GET", "jobs", job)


def _progress(job: Job) -> Mapping[str, Any]:
    """Return how far a job has come; nothing where that is not known."""
    if not isinstance(job.progress, dict):
        return {}
    done = job.progress.get("done")
    known = isinstance(done, int | float) and not isinstance(done, bool) and 0 <= done <= 1
    return {"done": done if known else None, "text": str(job.progress.get("text") or "")}


def _steps(job: Job) -> list[dict[str, Any]]:
    """Return what has become of a job, in order: what, when, how long, and what more there is to say."""
    steps: list[dict[str, Any]] = []

    def add(kind: str, what: str, at: Any, **more: Any) -> None:
        steps.append({"kind": kind, "what": what, "at": at, "seconds": None, "text": "", "traceback": "", **more})

    add("queued", "Queued by hand" if job.manual_execution else "Queued", job.queued_at)
    for one in job.errors:
        more = {"seconds": one.seconds, "text": one.error, "traceback": one.traceback or ""}
        add("failed", f"Try {one.exec_count} failed", one.at or one.started_at, **more)
    if job.state is State.QUEUED and job.scheduled_at:
        what = "Tried again" if job.errors else "Not before"
        add("scheduled", what, job.scheduled_at)
    if job.state is State.RUNNING:
        by = job.claim.daemon if job.claim else ""
        add("running", f"Try {job.exec_count} is running", job.claim.at if job.claim else job.started_at, text=by)
    if job.cancel_requested and job.state not in ENDED:
        add("cancelled", "To be cancelled", None)
    if job.state in ENDED:
        kind = "cancelled" if job.cancelled else job.state
        more = {"seconds": job.seconds, "text": job.error or ""}
        add(kind, {"done": "Done", "errored": "Failed for good"}.get(kind, "Cancelled"), job.finished_at, **more)
    return steps


async def change(request: web.Request) -> web.Response:
    """POST /dashboard/jobs/{id}/{action}."""
    await form_of(request)
    job_id, action = request.match_info["id"], request.match_info["action"]
    where = f"/jobs/{segment(job_id)}"
    try:
        await _act(request, job_id, action)
    except JobNotFoundError:
        raise ApiError(404, f"there is no job {job_id!r} any more") from None
    except CouchjobsError as error:
        return back(request, where, str(error))
    return back(request, where, {"cancel": "it is being cancelled"}.get(action, "it is queued again"))
