"""Who reads the pages: a token in a cookie that no script can read and no other host's page can use."""

from __future__ import annotations

import re

from aiohttp import web

from couchjobs.http.access import TOKEN_COOKIE, Access, Caller, check_origin
from couchjobs.http.pages.page import LOGIN, ROOT, back, render

_LASTS_S = 7 * 86_400
_OWN = re.compile(rf"{ROOT}(/[\w.~%-]+)*(\?[\w.~%&=+:,-]*)?", re.ASCII)


class Login:
    """Its routes. `access`: who knows tokens."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def ask(self, request: web.Request) -> web.Response:
        """GET /dashboard/login."""
        return render(request, "login.html", title="Sign in", refused="", next=_next(request.query.get("next", "")))

    async def take(self, request: web.Request) -> web.Response:
        """POST /dashboard/login: a token, which becomes a cookie."""
        self._access.check_stranger(request)
        check_origin(request)
        posted = await request.post()
        shown, where = str(posted.get("token", "")).strip(), _next(str(posted.get("next", "")))
        caller: Caller | None = await self._access.of_token(shown)
        if caller is None:
            self._access.check_stranger(request, cost=1)
            refused = "This token is none of this tenant, or no longer."
            return render(request, "login.html", status=401, title="Sign in", refused=refused, next=where)
        answer = back(where)
        answer.set_cookie(
            TOKEN_COOKIE,
            shown,
            max_age=_LASTS_S,
            httponly=True,
            samesite="Strict",
            secure=request.secure or request.headers.get("X-Forwarded-Proto") == "https",
            path="/",
        )
        return answer

    async def leave(self, request: web.Request) -> web.Response:
        """POST /dashboard/logout."""
        check_origin(request)
        answer = back(LOGIN)
        answer.del_cookie(TOKEN_COOKIE, path="/")
        return answer


def _next(text: str) -> str:
    """Return where to go on: a page of this server, whatever somebody has written."""
    return text if _OWN.fullmatch(text) else ROOT
