"""Who reads the pages: a token in a cookie that no script can read and no other host's page can use."""

from __future__ import annotations

import re

from aiohttp import web

from couchjobs.http.access import TOKEN_COOKIE, Access, Caller, check_origin
from couchjobs.http.api import API
from couchjobs.http.jsonapi import in_time
from couchjobs.http.pages.page import LOGIN, back, page_at, render

_LASTS_S = 7 * 86_400
_OWN = re.compile(r"(/[\w.~%-]+)*(\?[\w.~%&=+:,-]*)?", re.ASCII)
"""A page, after the path of the dashboard."""


class Login:
    """Its routes. `access`: who knows tokens."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def ask(self, request: web.Request) -> web.Response:
        """GET /dashboard/login."""
        return render(
            request, "login.html", title="Sign in", refused="", next=_next(request, request.query.get("next", ""))
        )

    async def take(self, request: web.Request) -> web.Response:
        """POST /dashboard/login: a token, which becomes a cookie."""
        self._access.gate.check_stranger(request)
        check_origin(request)
        posted = await in_time(request, request.post())
        shown, where = str(posted.get("token", "")).strip(), _next(request, str(posted.get("next", "")))
        caller: Caller | None = await self._access.of_token(shown)
        if caller is None:
            self._access.gate.check_stranger(request, cost=1)
            refused = "This token is none of this tenant, or no longer."
            return render(request, "login.html", status=401, title="Sign in", refused=refused, next=where)
        answer = back(request, where)
        answer.set_cookie(
            TOKEN_COOKIE,
            shown,
            max_age=_LASTS_S,
            httponly=True,
            samesite="Strict",
            secure=request.secure or request.headers.get("X-Forwarded-Proto") == "https",
            path=request.app[API].base or "/",
        )
        return answer

    async def leave(self, request: web.Request) -> web.Response:
        """POST /dashboard/logout."""
        check_origin(request)
        answer = back(request, LOGIN)
        answer.del_cookie(TOKEN_COOKIE, path=request.app[API].base or "/")
        return answer


def _next(request: web.Request, text: str) -> str:
    """Return where to go on: a page of this tenant, whatever somebody has written; without the dashboard's own path."""
    path = text.removeprefix(page_at(request))
    return path if _OWN.fullmatch(path) else ""
