"""What the pages have in common: how they are made, who may act on them, and how they tell of errors.

An action is a form. It carries a token that only a page of this server, shown to the same caller, can have; a page of
another host cannot send it, and the browser is told to run no script but this server's own (Content-Security-Policy).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp_jinja2
import jinja2
from aiohttp import web

from couchjobs import errors
from couchjobs.http.access import CALLER, TOKEN_COOKIE, Caller
from couchjobs.http.api import API
from couchjobs.http.jsonapi import ApiError, in_time, told
from couchjobs.http.pages import text
from couchjobs.log import get_logger

ROOT = "/dashboard"
STATIC = f"{ROOT}/static"
LOGIN = "/login"
PATIENCE_S = 0.6
"""Seconds that the views may take to be brought up to date; then they are read as they are, and the page says so."""
_FOLDER = Path(__file__).parent
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_logger = get_logger(__name__)
_SECRET = secrets.token_bytes(32)
_CSRF = "_csrf"
_SAID = "couchjobs_said"
"""A cookie with what the next page says first: a link could have any page say anything."""
_SAID_FOR_S = 10
_LONGEST_SAID = 500

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def set_up(app: web.Application) -> None:
    """Have an application make pages, and serve what belongs to them."""
    environment = aiohttp_jinja2.setup(
        app,
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.undefined = jinja2.StrictUndefined
    environment.filters |= text.FILTERS
    app.router.add_static(STATIC, _FOLDER / "static")


def page_at(request: web.Request, path: str = "") -> str:
    """Return the path of a page: what comes after that of the dashboard, as links of this tenant have it."""
    return f"{request.app[API].base}{ROOT}{path}"


def render(request: web.Request, template: str, *, status: int = 200, **context: Any) -> web.Response:
    """Return a page."""
    caller = request.get(CALLER)
    common = {
        "root": page_at(request),
        "base": request.app[API].base,
        "path": request.path,
        "caller": caller.name if caller is not None else "",
        "may_leave": TOKEN_COOKIE in request.cookies,
        "csrf": _csrf(request, caller) if caller is not None else "",
        "tenant": request.app[API].db,
        "said": unquote(request.cookies.get(_SAID, "")),
        "may": _may(caller),
        "may_retry": (lambda _: False) if caller is None else caller.may_retry,
    }
    response = aiohttp_jinja2.render_template(template, request, common | context, status=status)
    if _SAID in request.cookies:
        response.del_cookie(_SAID, path=page_at(request))
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def _may(caller: Caller | None) -> Callable[..., bool]:
    return (lambda *_: False) if caller is None else caller.may


def _csrf(request: web.Request, caller: Caller) -> str:
    """Return what the forms of a caller carry: made of what he has shown, so that all servers of a tenant know it."""
    shown = request.headers.get("Authorization", "") or request.cookies.get(TOKEN_COOKIE, "")
    secret = shown.encode("utf-8", "replace") or _SECRET
    return hmac.new(secret, f"form of {caller.key}".encode("utf-8", "replace"), sha256).hexdigest()


async def form_of(request: web.Request) -> dict[str, list[str]]:
    """Return the fields of a form of one of these pages.

    Raises:
        ApiError: 415: it was no form; 403: it was not of such a page.
    """
    if request.content_type not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        raise ApiError(415, f"a form is wanted, and not {request.content_type}")
    posted = await in_time(request, request.post())
    fields: dict[str, list[str]] = {}
    for name, value in posted.items():
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
    shown = fields.pop(_CSRF, [""])[0]
    if not hmac.compare_digest(shown.encode("utf-8", "replace"), _csrf(request, request[CALLER]).encode()):
        raise ApiError(403, "this form is of an older page: load it again, and do it once more")
    return fields


def back(request: web.Request, where: str = "", said: str = "") -> web.Response:
    """Return an answer that has the browser load a page of the dashboard, which says something first."""
    where = page_at(request, where)
    answer = web.Response(status=303, headers={"Location": where})
    if said:
        shown = text.segment(said[:_LONGEST_SAID])
        answer.set_cookie(_SAID, shown, max_age=_SAID_FOR_S, httponly=True, samesite="Strict", path=page_at(request))
    return answer


@web.middleware
async def tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell errors of pages as pages; who must say who he is, is asked."""
    if not request.path.startswith(page_at(request)):
        return await handler(request)
    try:
        return await handler(request)
    except (ApiError, errors.CouchjobsError) as error:
        status, detail = told(error, request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        status, detail = error.status, error.reason
    except Exception:
        _logger.exception("a page fails", path=request.path)
        status, detail = 500, "this is a fault of couchjobs; its log says more"
    if status == 401 and request.path != page_at(request, LOGIN):
        return back(request, f"{LOGIN}?next={text.segment(request.rel_url)}")
    return render(request, "error.html", status=status, title=f"{status}", detail=detail)
