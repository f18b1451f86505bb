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
from couchjobs.http.api import API
from couchjobs.http.jobs import number_in
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.limits import long_answer
from couchjobs.http.pages.page import back, form_of, render
from couchjobs.http.pages.text import segment
from couchjobs.http.triggers import check_of, fire
from couchjobs.jobs.queries import get_jobs
from couchjobs.remarks import Remarks
from couchjobs.scheduler.states import life_in, lives_in
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import now
from couchjobs.triggers.event import VERBS, EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.life import Life
from couchjobs.triggers.prospects import coming_times, each_coming, notes_on
from couchjobs.waits import Turns

_PAGE = 50
_MOST_PAGES = 100_000
_STRIP = timedelta(hours=24)
_MOST_TICKS = 100
"""Of a strip; what comes more often is shown as if it came all the time, from the last of them on."""
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
    is_dense: bool = False
    """Whether there are more of them than are shown."""


@long_answer
async def index(request: web.Request) -> web.Response:
    """GET /dashboard/triggers: those that fire next come first, a page at a time."""
    api, present, number = request.app[API], now(), number_in(request.query, "page", 1, _MOST_PAGES)
    rows, bad = await _rows(request)
    lives = await lives_in(api.connection, api.db, [row.infos for row in rows])
    turns = Turns()
    for row in rows:
        await turns.turn()
        life = lives.get(row.infos.id)
        if isinstance(life, Life) and not row.infos.disabled:
            row.next = next(each_coming(life, present), None)
    rows.sort(key=lambda row: (row.next is None, row.next or present, row.infos.id))
    page = rows[(number - 1) * _PAGE : number * _PAGE]
    remarks = await Remarks.of(api.connection, api.db, [row.infos for row in page])
    for row in page:
        await _fill(row, lives.get(row.infos.id), remarks, present, turns)
    links = {"earlier": number - 1} if number > 1 else {}
    links |= {"later": number + 1} if len(rows) > number * _PAGE else {}
    return render(
        request, "triggers.html", title="Triggers", rows=page, width=STRIP_WIDTH, bad=bad, links=links, count=len(rows)
    )


async def _rows(request: web.Request) -> tuple[list[Row], int]:
    """Return the triggers that the caller may see, and how many documents are none that can be understood."""
    store, turns = TriggerStore(request.app[API].connection, request.app[API].db), Turns()
    rows: list[Row] = []
    bad = 0
    async for documents in store.database.all_docs():
        for document in documents:
            await turns.turn()
            try:
                infos = store.read(document)
                if request[CALLER].may("GET", "triggers", infos):
                    rows.append(Row(infos))
                parse_trigger(infos)
            except Exception:  # noqa: BLE001  whatever it holds
                bad += 1
    return rows, bad


async def _fill(row: Row, life: Life | str | None, remarks: Remarks, present: datetime, turns: Turns) -> None:
    """Say of a trigger what is odd about it, and when it fires within a day."""
    if isinstance(life, str):
        row.trouble = life
        return
    infos = row.infos
    row.trouble = remarks.trouble(infos) or remarks.loss(infos)
    row.notes = remarks.notes(infos, infos.document())
    if life is None or row.next is None:
        return
    for tick in each_coming(life, present):
        await turns.turn()
        if tick - present >= _STRIP:
            break
        row.is_dense = len(row.ticks) == _MOST_TICKS
        if row.is_dense:
            break
        row.ticks.append(round(max(0.0, (tick - present) / _STRIP * STRIP_WIDTH), 1))


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
    changes = {"disabled": True} if action == "disable" else {"disabled": None}
    await api.client.triggers.change(infos.id, changes, check_of(request, "PATCH"))
    return back(request, where, f"it is {action}d")
