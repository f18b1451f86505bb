"""The first page: what there is to do, what is being done, what came of it, and who does it; and that of queues."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from aiohttp import web

from couchjobs.cluster.pauses import set_paused
from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.errors import CouchError
from couchjobs.figures import last_day, last_hour
from couchjobs.http.access import CALLER
from couchjobs.http.api import API, Api
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.pages import charts
from couchjobs.http.pages.page import PATIENCE_S, back, form_of, render
from couchjobs.jobs.request import JobRequest
from couchjobs.overview import queues, row_of_daemon
from couchjobs.timestamps import now

_KEPT_S = 0.5
"""Seconds for which the counts of queues are good: many readers cost what one does."""


class Overview:
    """Its routes, and what it has read last."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._is_behind = False
        self._until = 0.0
        self._asking = asyncio.Lock()

    async def show(self, request: web.Request) -> web.Response:
        """GET /dashboard."""
        api, rows = request.app[API], await self._shown(request)
        totals = {name: sum(row[name] for row in rows) for name in ("due", "running", "done", "failed", "queued")}
        return render(
            request,
            "overview.html",
            title="Overview",
            rows=rows,
            is_behind=self._is_behind,
            totals=totals,
            charts=await _charts(api) if request[CALLER].may("GET", "queues") else [],
            daemons=await _daemons(api) if request[CALLER].may("GET", "daemons") else [],
        )

    async def queues(self, request: web.Request) -> web.Response:
        """GET /dashboard/queues."""
        rows = await self._shown(request)
        return render(request, "queues.html", title="Queues", rows=rows, is_behind=self._is_behind)

    async def set_paused(self, request: web.Request) -> web.Response:
        """POST /dashboard/queues/{worker}/{action}."""
        api, worker, action = request.app[API], request.match_info["worker"], request.match_info["action"]
        await form_of(request)
        if action not in ("pause", "resume"):
            raise ApiError(404, f"{action}: pause or resume")
        request[CALLER].check("POST", "queues", JobRequest(worker_type=worker))
        await set_paused(api.connection, api.db, worker, is_paused=action == "pause")
        self._until = 0.0
        return back(request, "/queues", f"{worker} is {action}d")

    async def _shown(self, request: web.Request) -> list[dict[str, Any]]:
        """Return the rows that the caller may see."""
        may = request[CALLER].may
        rows = await self._queues(request.app[API])
        return [row for row in rows if may("GET", "queues", JobRequest(worker_type=row["worker"]))]

    async def _queues(self, api: Api) -> list[dict[str, Any]]:
        async with self._asking:
            if asyncio.get_running_loop().time() >= self._until:
                ask = partial(queues, api.connection, api.db)
                self._rows, self._is_behind = await api.freshness.read(ask, PATIENCE_S)
                self._until = asyncio.get_running_loop().time() + _KEPT_S
        return self._rows


async def _charts(api: Api) -> list[charts.Chart]:
    """Return the charts, which are of all worker types together."""
    hour, day, present = [], [], now()
    with suppress(CouchError):  # the control database is not for everybody
        hour = await last_hour(api.connection, api.db, present)
        day = await last_day(api.connection, api.db, present)
    return [
        charts.ended(hour, "Ended, minute by minute"),
        charts.waits(hour, "Wait, minute by minute"),
        charts.ended(day, "Ended, hour by hour"),
        charts.waits(day, "Wait, hour by hour"),
    ]


async def _daemons(api: Api) -> list[dict[str, Any]]:
    found = [one for one in await api.connection.control.with_prefix(DAEMON) if api.serves(one)]
    return [row_of_daemon(one) for one in found]
