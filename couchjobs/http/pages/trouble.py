"""The page of what is wrong: what the doctor finds when he is asked, and mends at a click."""

from __future__ import annotations

import asyncio
from datetime import datetime

from aiohttp import web

from couchjobs.doctor.examine import examine
from couchjobs.doctor.finding import Finding
from couchjobs.errors import CouchError
from couchjobs.http.access import CALLER
from couchjobs.http.api import API
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.pages.page import back, form_of, render
from couchjobs.timestamps import now

_WHERE = "/trouble"


class Trouble:
    """Its routes, and what was found last: for who may see what concerns all tenants, and for who may not."""

    def __init__(self) -> None:
        self._found: dict[bool, tuple[list[Finding], datetime | None]] = {True: ([], None), False: ([], None)}
        self._looking = asyncio.Lock()

    async def show(self, request: web.Request) -> web.Response:
        """GET /dashboard/trouble."""
        findings, at = self._found[_check(request)]
        return render(request, "trouble.html", title="Trouble", findings=findings, at=at)

    async def examine(self, request: web.Request) -> web.Response:
        """POST /dashboard/trouble: look; where a daemon stands still that takes as long as it takes to be dead."""
        api, of_all = request.app[API], _check(request)
        await form_of(request)
        async with self._looking:
            findings = await examine(api.connection, api.db, of_all=of_all)
            self._found[of_all] = findings, now()
        count = len(findings)
        return back(request, _WHERE, "nothing is wrong" if not count else f"{count} found")

    async def mend(self, request: web.Request) -> web.Response:
        """POST /dashboard/trouble/mend: do what the doctor proposes for one thing."""
        of_all = _check(request)
        fields = await form_of(request)
        key = fields.get("finding", [""])[0]
        async with self._looking:
            for one in self._found[of_all][0]:
                if key_of(one) == key and one.mend is not None and one.done is None:
                    try:
                        one.done = await one.mend()
                    except CouchError as error:
                        return back(request, _WHERE, f"{one.where}: it cannot be mended now: {error}")
                    return back(request, _WHERE, f"{one.where}: {one.done}")
        return back(request, _WHERE, "that is not as it was: examine again")


def key_of(one: Finding) -> str:
    """Return what tells a finding from others."""
    return f"{one.kind} {one.where} {one.what}"


def _check(request: web.Request) -> bool:
    """Return whether the caller may see what concerns all tenants, too: a token is good for its own alone.

    Raises:
        ApiError: 403: he may not even see everything of this one.
    """
    if not request[CALLER].may_all:
        raise ApiError(403, "this page is for who may do everything: a token with the scope *")
    return request[CALLER].is_of_all_tenants
