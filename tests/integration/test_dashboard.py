"""The dashboard without a browser: who may see and do what, what a form must carry, and what pages say of errors."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from copies import put_on_all
from waiting import eventually

from couchjobs.cluster.pauses import paused
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import Unavailable
from couchjobs.figures import FigureKeeper, Figures, last_day, last_hour
from couchjobs.http.server import make_app
from couchjobs.http.tokens import create_token
from couchjobs.jobs import freshness
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.sources import write_list
from couchjobs.stats import Stats

PAGES = ("", "/queues", "/jobs", "/triggers", "/trouble")


@pytest.fixture
async def http(connection: Connection) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of a server for the tenant of this test; nobody has a token."""
    async with TestClient(TestServer(make_app(connection))) as client:
        yield client


async def page_of(response: ClientResponse, status: int = 200) -> str:
    """What a page says, which has that status."""
    found = await response.text()
    assert response.status == status, found
    assert response.content_type == "text/html"
    assert "default-src 'none'; script-src 'self'" in response.headers["Content-Security-Policy"]
    return found


def csrf_in(page: str) -> str:
    """What the forms of a page carry."""
    found = re.search(r'name="_csrf" value="([0-9a-f]{64})"', page)
    assert found is not None, page
    return found[1]


async def job(connection: Connection, db: Prefixer, job_id: str, **fields: Any) -> None:
    """A job document, as somebody has written it."""
    document = {"_id": job_id, "worker": "w", "message": None, "state": "queued", **fields}
    await JobStore(connection, db).database.put(document)


async def test_pages_when_there_is_nothing_then_they_say_what_to_do_next(http: TestClient[Any, Any]) -> None:
    """And each is there, with its files."""
    for path in PAGES:
        assert 'class="empty"' in await page_of(await http.get(f"/dashboard{path}"))
    assert (await http.get("/", allow_redirects=False)).headers["Location"] == "/dashboard"
    for name in ("style.css", "live.js", "icon.svg"):
        assert (await http.get(f"/dashboard/static/{name}")).status == 200
    assert "there is no job" in await page_of(await http.get("/dashboard/jobs/none"), 404)
    assert "no such trigger" in await page_of(await http.get("/dashboard/triggers/none"), 404)
    assert "state:" in await page_of(await http.get("/dashboard/jobs?state=odd"), 400)
    assert "Not Found" in await page_of(await http.get("/dashboard/nothing"), 404)


async def test_action_when_its_form_is_not_of_a_page_of_this_server_then_refused(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Whatever is missing or wrong: the token, the origin, the form."""
    await job(connection, db, "one")
    csrf = csrf_in(await page_of(await http.get("/dashboard/jobs/one")))
    url = "/dashboard/jobs/one/cancel"
    await page_of(await http.post(url), 415)
    await page_of(await http.post(url, data={"_csrf": csrf[::-1]}), 403)
    await page_of(await http.post(url, json={"_csrf": csrf}), 415)
    other = {"Origin": "https://evil.example"}
    assert (await http.post(url, data={"_csrf": csrf}, headers=other)).status == 403
    assert (await connection_state(connection, db, "one")).get("cancel_requested") is None
    answer = await http.post(url, data={"_csrf": csrf}, allow_redirects=False)
    assert answer.status == 303
    assert (await connection_state(connection, db, "one"))["cancel_requested"] is True


async def connection_state(connection: Connection, db: Prefixer, job_id: str) -> dict[str, Any]:
    """The document of a job."""
    return await JobStore(connection, db).database.find(job_id) or {}


async def test_pages_when_a_token_is_wanted_then_asked_for_and_kept_in_a_cookie(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """It says no more than it does over HTTP; a page of another host cannot use it."""
    reader = await create_token(connection, db, "reader", ["jobs:GET", "queues:GET"])
    await job(connection, db, "one")
    asked = await http.get("/dashboard/jobs", allow_redirects=False)
    assert (asked.status, asked.headers["Location"]) == (303, "/dashboard/login?next=%2Fdashboard%2Fjobs")
    await page_of(await http.get("/dashboard/login"))
    await page_of(await http.post("/dashboard/login", data={"token": "cj_0_0"}), 401)
    for where, then in (("/dashboard/jobs", "/dashboard/jobs"), ("https://evil.example", "/dashboard")):
        taken = await http.post("/dashboard/login", data={"token": reader, "next": where}, allow_redirects=False)
        assert (taken.status, taken.headers["Location"]) == (303, then)
    cookie = taken.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie

    async def seen() -> bool:
        return "one" in await page_of(await http.get("/dashboard/jobs"))

    await eventually(seen)
    page = await page_of(await http.get("/dashboard/jobs/one"))
    assert "Cancel" not in page, "it may not"
    await page_of(await http.get("/dashboard/trouble"), 403)
    await page_of(await http.get("/dashboard/triggers"))
    http.session.cookie_jar.clear()
    assert (await http.get("/dashboard", allow_redirects=False)).status == 303


async def test_overview_when_a_token_is_of_one_worker_then_its_row_alone(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """And no charts, which are of all of them."""
    await http.post(
        "/dashboard/login", data={"token": await create_token(connection, db, "w", ["queues:GET:w:worker"])}
    )
    for number, name in enumerate(("w", "hidden")):
        queued = {"_id": f"j{number}", "worker": name, "message": None, "state": "queued"}
        await connection.database(db.database("jobs")).put(queued)

    async def seen() -> str:
        page = await page_of(await http.get("/dashboard"))
        return page if "worker=w" in page else ""

    page = await eventually(seen)
    assert "hidden" not in page
    assert "minute by minute" not in page


async def test_forms_when_a_reader_sends_them_all_the_same_then_refused(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Each action asks what the API asks."""
    reader = await create_token(connection, db, "reader", ["jobs:GET", "queues:GET", "triggers:GET"])
    await job(connection, db, "one")
    await http.post("/dashboard/login", data={"token": reader})
    page = await page_of(await http.get("/dashboard"))
    assert "_csrf" not in page.partition('id="queues"')[2], "there is nothing that it may do"
    for path in ("/jobs/one/cancel", "/queues/w/pause", "/trouble", "/jobs"):
        refused = await http.post(f"/dashboard{path}", data={"_csrf": "0" * 64, "job": "one", "action": "cancel"})
        assert refused.status == 403
    assert await paused(connection, db) == frozenset()


async def test_jobs_when_all_of_a_list_are_cancelled_then_those_of_other_pages_too(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """And what the list does not name stays."""
    for number in range(60):
        await job(connection, db, f"job-{number:02}", worker="v" if number % 6 else "w")
    csrf = csrf_in(await page_of(await http.get("/dashboard/jobs?state=queued&worker=v")))
    form = {"_csrf": csrf, "action": "cancel-all", "state": "queued", "worker": "v"}
    said = await page_of(await http.post("/dashboard/jobs", data=form))
    assert "50 cancelled" in said
    documents = await JobStore(connection, db).database.with_prefix("job-")
    assert {one["worker"] for one in documents if one.get("cancel_requested")} == {"v"}

    async def all_are_shown() -> bool:  # where much changes, the list is of a moment before
        page = await page_of(await http.get("/dashboard/jobs"))
        older = re.search(r'<a href="([^"]+)" rel="next">', page)
        rest = await page_of(await http.get(older[1].replace("&amp;", "&"))) if older is not None else ""
        ids = re.findall(r'name="job" value="([^"]+)"', page + rest)
        return len(ids) == len(set(ids)) == 60

    await eventually(all_are_shown)


async def test_jobs_when_their_views_take_long_then_shown_as_they_are_and_said_so(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of a million jobs may be built for minutes."""
    await job(connection, db, "one")

    async def seen() -> bool:
        return "one" in await page_of(await http.get("/dashboard/jobs"))

    async def behind(*_: Any) -> int:
        return 1

    await eventually(seen)
    monkeypatch.setattr(freshness, "unindexed", behind)
    view = Database.view

    async def slow(self: Database, *given: Any, update: str = "true", **more: Any) -> Any:
        if update == "true":
            raise TimeoutError
        return await view(self, *given, update=update, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "view", slow)
    page = await page_of(await http.get("/dashboard/jobs"))
    assert "is behind" in page
    assert "one" in page


async def test_triggers_when_odd_then_told_on_both_pages(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """What `triggers ls` says: a field that is misspelt, events that may not come, a secret that is not there."""
    await write_list(connection, db, {"orders"})
    triggers = connection.database(db.database("triggers"))
    base = {"worker": "w", "message": None}
    await put_on_all(triggers, {"_id": "odd", "type": "@hourly", "debounse": "5s", **base})
    await put_on_all(triggers, {"_id": "barred", "type": "@event", "arguments": "salaries:CREATED", **base})
    await put_on_all(triggers, {"_id": "hook", "type": "@webhook", "verify": {"stripe": "shop"}, **base})
    page = await page_of(await http.get("/dashboard/triggers"))
    told = {"odd": "did you mean debounce?", "barred": "does not fire", "hook": "there is no secret"}
    for trigger_id, what in told.items():
        assert what in page
        assert what in await page_of(await http.get(f"/dashboard/triggers/{trigger_id}"))


async def test_triggers_when_there_are_many_then_a_page_at_a_time_and_others_have_their_turns(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process runs jobs, and beats: a thousand triggers held its loop for eight seconds."""
    monkeypatch.setattr("couchjobs.waits._SLICE_S", 0.0)
    triggers = connection.database(db.database("triggers"))
    base = {"worker": "w", "message": None}
    for number in range(51):
        await put_on_all(
            triggers, {"_id": f"t{number:02}", "type": "@cron", "arguments": f"{number} */5 * * * *", **base}
        )
    await put_on_all(triggers, {"_id": "bad", "type": "@cron", "arguments": "never", **base})
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    page = await page_of(await http.get("/dashboard/triggers"))
    counting.cancel()
    assert turns > 50 * 100
    assert len(set(re.findall(r'href="/dashboard/triggers/(\w+)"', page))) == 50
    assert "1 document of the triggers database" in page
    assert "more than 100 times" in page
    assert 'href="/dashboard/triggers?page=2"' in page
    last = await page_of(await http.get("/dashboard/triggers?page=2"))
    assert set(re.findall(r'href="/dashboard/triggers/(\w+)"', last)) >= {"bad"}
    assert "fewer than would fill" in await page_of(await http.get("/dashboard/triggers?page=3"))
    await page_of(await http.get("/dashboard/triggers?page=x"), 400)


async def test_trouble_when_examined_then_found_and_mended_at_a_click(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """A job that nobody can understand is marked with the reason."""
    await job(connection, db, "bad", priority="high")
    csrf = csrf_in(await page_of(await http.get("/dashboard/trouble")))
    page = await page_of(await http.post("/dashboard/trouble", data={"_csrf": csrf}))
    assert "priority" in page
    key = re.search(r'name="finding" value="(job bad [^"]*)"', page)
    assert key is not None
    form = {"_csrf": csrf, "finding": key[1].replace("&#39;", "'").replace("&#34;", '"')}
    assert "errored, with the reason" in await page_of(await http.post("/dashboard/trouble/mend", data=form))
    assert (await connection_state(connection, db, "bad"))["state"] == "errored"
    assert "not as it was" in await page_of(await http.post("/dashboard/trouble/mend", data=form))


def _counts(figures: Figures) -> tuple[int, ...]:
    return figures.done, figures.failed, figures.retried


async def test_figures_when_daemons_come_and_go_then_one_picture(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two daemons and two hours; a write that is not taken is told the next time; a day later nothing is left."""
    stats = Stats()
    keepers = [FigureKeeper(connection, db, name, stats) for name in ("a", "b")]
    at = datetime(2026, 1, 2, 9, 58, 30, tzinfo=UTC)
    stats.ended["w", "done"] += 3
    stats.ran["w"].note(0.5)
    for keeper in keepers:
        await keeper.write(at)
    stats.ended["w", "failed"] += 1
    put = Database.put

    async def away(*_: Any, **__: Any) -> str:
        raise Unavailable("nobody answers")

    monkeypatch.setattr(Database, "put", away)
    with pytest.raises(Unavailable):
        await keepers[0].write(at + timedelta(seconds=10))
    monkeypatch.setattr(Database, "put", put)
    await keepers[0].write(at + timedelta(seconds=20))
    for number in range(120):
        stats.ended[f"type-{number}", "retry"] += 1
    await keepers[0].write(at + timedelta(minutes=3))
    hour = await last_hour(connection, db, at + timedelta(minutes=5))
    assert [bar.start.minute for bar in hour[-2:]] == [2, 3]

    async def comes_to(ask: Callable[[], Awaitable[Any]], wanted: Any) -> None:
        """Wait until that is told: each copy of a cluster has it by and by."""

        async def is_told() -> bool:
            return bool(await ask() == wanted)

        await eventually(is_told)

    async def minutes() -> dict[str, tuple[float, ...]]:
        bars = await last_hour(connection, db, at + timedelta(minutes=5))
        return {f"{one.start:%H:%M}": (*_counts(one.figures), one.figures.ran_s) for one in bars if one.figures}

    async def hours() -> dict[int, tuple[int, ...]]:
        bars = await last_day(connection, db, at + timedelta(hours=5))
        return {one.start.hour: _counts(one.figures) for one in bars if one.figures}

    async def kept() -> dict[tuple[str, ...], str]:
        documents = await connection.control.with_prefix("figures:")
        return {tuple(one["_id"].split(":")[-2:]): "hour" if "hour" in one else "minutes" for one in documents}

    await comes_to(minutes, {"09:58": (6, 1, 0, 1.0), "10:01": (0, 0, 120, 0.0)})
    await comes_to(hours, {9: (6, 1, 0), 10: (0, 0, 120)})
    stats.ended["w", "done"] += 1
    await keepers[0].write(at + timedelta(hours=2))
    hour_and_minutes = {
        ("2026-01-02T09", "a"): "hour",
        ("2026-01-02T09", "b"): "minutes",
        ("2026-01-02T10", "a"): "minutes",
        ("2026-01-02T11", "a"): "minutes",
    }
    await comes_to(kept, hour_and_minutes)
    later = itertools.count(40, 40)

    async def is_one_left() -> bool:  # what a copy of a cluster does not list yet goes the next time
        stats.ended["w", "done"] += 1
        await keepers[0].write(at + timedelta(hours=next(later)))
        return len(await connection.control.with_prefix("figures:")) == 1

    await eventually(is_one_left)


async def test_token_when_others_of_its_address_are_refused_then_not_locked_out(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Behind a proxy all callers have one address."""
    token = await create_token(connection, db, "shop", ["jobs:GET"])
    good = {"Authorization": f"Bearer {token}"}
    assert (await http.get("/jobs", headers=good)).status == 200
    statuses = {(await http.get("/jobs", headers={"Authorization": "Bearer no"})).status for _ in range(150)}
    assert statuses == {401, 429}
    assert (await http.get("/jobs", headers=good)).status == 200


async def test_pages_when_nobody_has_a_token_and_a_cookie_is_old_then_open_all_the_same(
    http: TestClient[Any, Any],
) -> None:
    """Another server of this host may have set it."""
    for cookie in ("AuthSession=b2xk", "couchjobs_token=cj_0_0"):
        await page_of(await http.get("/dashboard", headers={"Cookie": cookie}))


async def test_forms_when_a_selection_holds_jobs_of_others_then_the_rest_is_done(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """And nothing of theirs is shown."""
    token = await create_token(connection, db, "mine", ["jobs:GET,POST:mine:worker"])
    for number in range(60):
        await job(connection, db, f"mine-{number:02}", worker="mine")
    await job(connection, db, "other", worker="other")
    await job(connection, db, "mine-00:child", worker="other")
    await job(connection, db, "other:child", worker="mine")
    await http.post("/dashboard/login", data={"token": token})
    page = await page_of(await http.get("/dashboard/jobs/mine-00"))
    assert "mine-00:child" not in page
    assert 'jobs/other"' not in await page_of(await http.get("/dashboard/jobs/other%3Achild"))
    chosen = ["other", *(f"mine-{number:02}" for number in range(60))]
    form = [("_csrf", csrf_in(page)), ("action", "cancel"), *(("job", one) for one in chosen)]
    answer = await http.post("/dashboard/jobs", data=form, allow_redirects=False)
    assert answer.status == 303
    assert "60%20cancelled%2C%201%20could%20not%20be" in answer.headers["Set-Cookie"]
    assert (await connection_state(connection, db, "other")).get("cancel_requested") is None
    await page_of(await http.post("/dashboard/jobs", data=[("_csrf", csrf_in(page)), ("action", "again")]), 400)


async def test_requests_when_odd_then_refused_and_nothing_breaks(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Numbers without end, lines in a place to go on, figures that nobody can have counted, text in a link."""
    assert (await http.get(f"/jobs?page[size]={'9' * 5000}")).status == 400
    await create_token(connection, db, "any", ["*"])
    token = await create_token(connection, db, "all", ["*"])
    login = {"token": token, "next": "/dashboard/jobs\r\nX-Evil: 1"}
    assert (await http.post("/dashboard/login", data=login, allow_redirects=False)).headers["Location"] == "/dashboard"
    present = datetime.now(UTC)
    odd = {"w": [-5, 1, 1, 1, 1, 1], "v": [1e30, 0, 0, 0, 0, 0], "u": "x", "t": [1, 0, 0, 0.5, 0, 0]}
    minutes = {present.strftime("%M"): odd, "99": 1}
    document_id = f"figures:{db.key}:{present.strftime('%Y-%m-%dT%H')}:odd"
    await connection.control.put({"_id": document_id, "minutes": minutes})
    await connection.control.put({"_id": "daemon:odd", "worker_types": ["x<y", 5], "domain": db.domain, "prefix": 7})
    page = await page_of(await http.get("/dashboard?said=Your+password+please"))
    assert "password" not in page
    assert "1 done" in page


async def test_queues_when_their_views_take_long_then_shown_as_they_are_and_said_so(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the page, and for Prometheus."""
    await job(connection, db, "one")
    reduced = Database.reduced

    async def slow(self: Database, *given: Any, update: str = "true", **more: Any) -> Any:
        if update == "true":
            raise TimeoutError
        return await reduced(self, *given, update="true", **more)

    async def behind(*_: Any) -> int:
        return 1

    monkeypatch.setattr(freshness, "unindexed", behind)
    monkeypatch.setattr(Database, "reduced", slow)
    page = await page_of(await http.get("/dashboard/queues"))
    assert "is behind" in page
    assert ">w</a>" in page
    assert 'couchjobs_queued_jobs{worker="w"} 1.0' in await (await http.get("/metrics")).text()
