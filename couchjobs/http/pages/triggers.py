"""The pages of triggers: all of them with what is to come, and one, which can be tried on a document."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from aiohttp import web

from couchjobs.couch.codec import decode
from couchjobs.couch.connection import using
from couchjobs.errors import BadDocumentError, CouchjobsError, TriggerNotFoundError
from couchjobs.http.access import CALLER
from couchjobs.http.api import API, Api
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.pages.page import back, form_of, render
from couchjobs.http.pages.text import segment
from couchjobs.http.triggers import fire
from couchjobs.jobs.queries import get_jobs
from couchjobs.remarks import Remarks
from couchjobs.scheduler.states import life_in, lives_in
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import now
from couchjobs.triggers.event import VERBS, EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.life import Life
from couchjobs.triggers.prospects import coming_times, notes_on

_STRIP = timedelta(hours=24)
_MOST_TICKS = 300
_NEXT = 10
_JOBS = 20
STRIP_WIDTH = 720


@dataclass(slots=True)
class Row:
    """A trigger, and what is to come of it."""

    infos: TriggerInfos
    trouble: str = ""
    notes: list[str] = field(default_factory=list)
    next: datetime | None = None
    ticks: list[float] = field(default_factory=list)
    """Where its firings of the next 24 hours stand in the strip."""


async def index(request: web.Request) -> web.Response:
    """GET /dashboard/triggers."""
    api, present = request.app[API], now()
    may = request[CALLER].may
    found = [infos for infos in await api.client.triggers.list() if may("GET", "triggers", infos)]
    lives = await lives_in(api.connection, api.db, found)
    remarks = await Remarks.of(api.connection, api.db, found)
    rows = [_row(infos, lives.get(infos.id), remarks, present) for infos in found]
    rows.sort(key=lambda row: (row.next is None, row.next or present, row.infos.id))
    return render(request, "triggers.html", title="Triggers", rows=rows, width=STRIP_WIDTH, bad=await _bad(api))


async def _bad(api: Api) -> int:
    """Return how many documents are triggers that cannot be understood."""
    found = 0
    store = TriggerStore(api.connection, api.db)
    async for documents in store.database.all_docs():
        for document in documents:
            try:
                parse_trigger(store.read(document))
            except Exception:  # noqa: BLE001  whatever it holds
                found += 1
    return found


def _row(infos: TriggerInfos, life: Life | str | None, remarks: Remarks, present: datetime) -> Row:
    if isinstance(life, str):
        return Row(infos, trouble=life)
    row = Row(
        infos, trouble=remarks.trouble(infos) or remarks.loss(infos), notes=remarks.notes(infos, infos.document())
    )
    if life is None or infos.disabled:
        return row
    times = coming_times(life, present, _MOST_TICKS)
    ticks = [(tick - present) / _STRIP * STRIP_WIDTH for tick in times if tick - present < _STRIP]
    row.next, row.ticks = times[0] if times else None, [round(max(0.0, tick), 1) for tick in ticks]
    return row


async def show(request: web.Request) -> web.Response:
    """GET /dashboard/triggers/{id}."""
    return await _page(request, await _find(request, "GET"))


async def _find(request: web.Request, verb: str) -> TriggerInfos:
    try:
        infos = await request.app[API].client.triggers.get(request.match_info["id"])
    except TriggerNotFoundError:
        raise ApiError(404, "there is no such trigger; it may have been removed, or fired once and be gone") from None
    request[CALLER].check(verb, "triggers", infos)
    return infos


async def _page(request: web.Request, infos: TriggerInfos, **tried: Any) -> web.Response:
    api, present = request.app[API], now()
    life: Life | None = None
    trouble = ""
    try:
        life = await life_in(api.connection, api.db, infos)
    except (CouchjobsError, ValueError) as error:
        trouble = str(error)
    remarks = await Remarks.of(api.connection, api.db, [infos])
    with using(api.connection):
        jobs = await get_jobs(api.db, infos.id, _JOBS)
    return render(
        request,
        "trigger.html",
        title="Trigger",
        infos=infos,
        trouble=trouble or remarks.trouble(infos) or remarks.loss(infos),
        times=coming_times(life, present, _NEXT) if life is not None and not infos.disabled else [],
        notes=[*(notes_on(life, present) if life is not None else ()), *remarks.notes(infos, infos.document())],
        jobs=jobs,
        document=infos.document(),
        is_event=infos.type == "@event",
        verbs=VERBS,
        **({"answers": None, "given": "", "verb": "CREATED", "refused": ""} | tried),
    )


async def attempt(request: web.Request) -> web.Response:
    """POST /dashboard/triggers/{id}/try: which rules would take a document, and why the others would not."""
    infos, fields = await _find(request, "GET"), await form_of(request)
    given, verb = fields.get("document", [""])[0], fields.get("verb", ["CREATED"])[0]
    try:
        document = decode(given.encode())
        if not isinstance(document, dict):
            raise BadDocumentError("a document is a JSON object")
        rules = parse_trigger(infos)
        if not isinstance(rules, EventRules) or verb not in VERBS:
            raise BadDocumentError(f"{infos.type} is not fired by documents")
    except (CouchjobsError, ValueError, RecursionError) as error:
        return await _page(request, infos, given=given, verb=verb, refused=str(error))
    return await _page(request, infos, given=given, verb=verb, answers=rules.explain(verb, document))


async def change(request: web.Request) -> web.Response:
    """POST /dashboard/triggers/{id}/{action}: fire, disable, enable."""
    api, action = request.app[API], request.match_info["action"]
    await form_of(request)
    infos = await _find(request, "POST" if action == "fire" else "PATCH")
    where = f"/triggers/{segment(infos.id)}"
    if action == "fire":
        job = await fire(api, infos)
        return back(request, f"/jobs/{segment(job.id)}", "the trigger was fired by hand")
    if action not in ("disable", "enable"):
        raise ApiError(404, f"{action}: fire, disable or enable")
    await api.client.triggers.update(infos.id, disabled=True if action == "disable" else None)
    return back(request, where, f"it is {action}d")
