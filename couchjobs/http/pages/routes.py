"""Which pages there are."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from couchjobs.http.access import Access
from couchjobs.http.api import API
from couchjobs.http.pages import jobs, triggers
from couchjobs.http.pages.changes import Changes
from couchjobs.http.pages.login import Login
from couchjobs.http.pages.overview import Overview
from couchjobs.http.pages.page import LOGIN, ROOT, STATIC, back, render, set_up
from couchjobs.http.pages.trouble import Trouble
from couchjobs.http.routes import Route

OPEN = ("/", f"{ROOT}{LOGIN}", f"{ROOT}/logout", f"{ROOT}/api", STATIC)
"""What is for everybody."""


async def _home(request: web.Request) -> web.Response:
    return back(request, "/tenants" if request.app[API].is_of_many else "")


def add_pages(app: web.Application, access: Access, routes: Sequence[Route]) -> None:
    """Add the dashboard to an application, with a page about its other routes."""

    async def api(request: web.Request) -> web.Response:
        return render(request, "api.html", title="HTTP API", routes=routes)

    set_up(app)
    overview, trouble, login, changes = Overview(), Trouble(), Login(access), Changes()

    async def close(_: web.Application) -> None:
        await changes.close()

    app.on_shutdown.append(close)
    app.router.add_routes(
        [
            web.get("/", _home),
            web.get(f"{ROOT}{LOGIN}", login.ask),
            web.post(f"{ROOT}{LOGIN}", login.take),
            web.post(f"{ROOT}/logout", login.leave),
            web.get(f"{ROOT}/api", api),
            web.get(f"{ROOT}/changes", changes.answer),
            web.get(ROOT, overview.show),
            web.get(f"{ROOT}/queues", overview.queues),
            web.post(f"{ROOT}/queues/{{worker}}/{{action}}", overview.set_paused),
            web.get(f"{ROOT}/jobs", jobs.index),
            web.post(f"{ROOT}/jobs", jobs.change_many),
            web.get(f"{ROOT}/jobs/{{id}}", jobs.show),
            web.post(f"{ROOT}/jobs/{{id}}/{{action}}", jobs.change),
            web.get(f"{ROOT}/triggers", triggers.index),
            web.get(f"{ROOT}/triggers/{{id}}", triggers.show),
            web.post(f"{ROOT}/triggers/{{id}}/try", triggers.attempt),
            web.post(f"{ROOT}/triggers/{{id}}/{{action}}", triggers.change),
            web.get(f"{ROOT}/trouble", trouble.show),
            web.post(f"{ROOT}/trouble", trouble.examine),
            web.post(f"{ROOT}/trouble/mend", trouble.mend),
        ]
    )
