"""What each role may do through the Python API in guarded mode; where it is refused, nothing is stored."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp.test_utils import TestClient, TestServer
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.access import admit, give_role
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database
from couchjobs.errors import Forbidden, Refused, Unauthorized, Unavailable
from couchjobs.http.gate import Gate
from couchjobs.http.server import make_app, make_front
from couchjobs.http.tokens import create_token
from couchjobs.installation import PRODUCER_ROLE, WORKER_ROLE, guard, install, producer_role, secure
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.sources import read_sources, write_list
from couchjobs.settings import Settings
from couchjobs.triggers.event import parse_event

REFUSED = (Forbidden, Refused, Unauthorized)
OLD = "2026-01-01T00:00:00.000000Z"
TRIGGER = {"type": "@every", "arguments": "1h", "worker": "w", "message": None}
Call = Callable[[Couchjobs, int], Awaitable[Any]]

# what is asked, whether a producer may, whether a worker may
TABLE: list[tuple[str, Call, bool, bool]] = [
    ("push", lambda one, n: one.push("w", 1, id=f"new-{n}"), True, True),
    ("push with a delay", lambda one, n: one.push("w", 1, id=f"later-{n}", delay="1h", priority=3), True, True),
    ("push of an id that is there", lambda one, n: one.push("w", 1, id=f"queued-{n}"), True, True),
    ("get", lambda one, n: one.get(f"queued-{n}"), True, True),
    ("jobs", lambda one, n: one.jobs(worker="w"), True, True),
    ("queue_len", lambda one, n: one.queue_len("w"), True, True),
    ("cancel", lambda one, n: one.cancel(f"queued-{n}"), True, True),
    ("retry", lambda one, n: one.retry(f"failed-{n}"), False, True),
    ("delete", lambda one, n: one.delete(f"failed-{n}"), False, True),
    ("fire_webhook", lambda one, n: one.fire_webhook(f"hook-{n}", 1), False, True),
    ("triggers.list", lambda one, n: one.triggers.list(), True, True),
    ("triggers.get", lambda one, n: one.triggers.get(f"hook-{n}"), True, True),
    ("triggers.add", lambda one, n: one.triggers.add({"_id": f"t-{n}", **TRIGGER}), False, True),
    ("triggers.update", lambda one, n: one.triggers.update(f"hook-{n}", worker="v"), False, True),
    ("triggers.disable", lambda one, n: one.triggers.disable(f"hook-{n}"), False, True),
    ("triggers.delete", lambda one, n: one.triggers.delete(f"hook-{n}"), False, True),
]


@pytest.fixture
async def clients(
    connection: Connection, db: Prefixer, name: str, server_url: str, settings_for: Callable[..., Settings]
) -> AsyncIterator[dict[str, Couchjobs]]:
    """A client for each role."""
    await secure(connection, db)
    await guard(connection, db)
    at = urlsplit(server_url)
    opened: dict[str, Couchjobs] = {}
    users = Database(connection.server, "_users")
    for role in (PRODUCER_ROLE, WORKER_ROLE):
        user = f"{name}-{role}"
        await give_role(connection.server, user, role, "pw")
        url = f"http://{user}:pw@{at.hostname}:{at.port}"
        opened[role] = await Couchjobs(settings=settings_for(url=url)).open()
    yield opened
    for role, one in opened.items():
        await one.close()
        user_id = f"org.couchdb.user:{name}-{role}"
        await users.delete(user_id, (await users.get(user_id))["_rev"])


@pytest.mark.parametrize("role", [PRODUCER_ROLE, WORKER_ROLE])
async def test_role_when_it_asks_then_as_the_table_says_and_nothing_is_stored_where_refused(
    connection: Connection, db: Prefixer, clients: dict[str, Couchjobs], role: str
) -> None:
    """Each method of the Python API."""
    jobs, triggers = (connection.database(db.database(doctype)) for doctype in ("jobs", "triggers"))
    base = {"worker": "w", "message": None, "queued_at": "2026-01-01T00:00:00.000000Z"}
    for number, (what, call, producer, works) in enumerate(TABLE):
        await jobs.put({"_id": f"queued-{number}", **base, "state": "queued"})
        await jobs.put({"_id": f"failed-{number}", **base, "state": "errored", "exec_count": 1})
        await triggers.put({"_id": f"hook-{number}", "type": "@webhook", "worker": "w", "message": None})
        before = await stored(jobs, triggers, number)
        if producer if role == PRODUCER_ROLE else works:
            await call(clients[role], number)
        else:
            with pytest.raises(REFUSED):
                await call(clients[role], number)
            assert await stored(jobs, triggers, number) == before, what


async def test_producer_when_he_looks_from_the_command_line_then_told_what_he_may_not_know(
    connection: Connection, db: Prefixer, clients: dict[str, Couchjobs]
) -> None:
    """A good schedule is not a bad one; what is refused says who may."""
    await connection.database(db.database("triggers")).put({"_id": "tick", **TRIGGER})
    settings = clients[PRODUCER_ROLE].settings
    told = {
        "URL": settings.url,
        "PREFIX": settings.prefix,
        "DOMAIN": settings.domain,
        "CONTROL_DB": settings.control_db,
    }
    environment = {**os.environ, **{f"COUCHJOBS_{name}": value or "" for name, value in told.items()}}

    async def run(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "couchjobs", *arguments),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return process.returncode or await process.wait(), (await process.communicate())[0].decode()

    code, text = await run("triggers", "ls")
    assert (code, "bad" in text, "its next time is not known" in text) == (0, False, True), text
    code, text = await run("top", "--once")
    assert (code, "last minute: not known" in text) == (0, True), text
    for refused in (("doctor",), ("retention", "show"), ("pause", "w"), ("tokens", "ls"), ("triggers", "next", "tick")):
        code, text = await run(*refused)
        assert (code, "for workers and administrators" in text) == (2, True), (refused, text)


@pytest.fixture
async def own_users(connection: Connection, name: str) -> AsyncIterator[None]:
    """Users whose names begin with that of the test are removed after it."""
    yield
    users = Database(connection.server, "_users")
    for user in await users.with_prefix(f"org.couchdb.user:{name}"):
        await users.delete(user["_id"], user["_rev"])


@pytest.mark.usefixtures("own_users")
async def test_producer_when_of_one_tenant_then_no_other_is_his(
    connection: Connection, name: str, server_url: str, settings_for: Callable[..., Settings]
) -> None:
    """As `init --prefix alice --producer-user` makes him: by CouchDB, guarded, and over HTTP."""
    alice, bob = (Prefixer("", f"{name}-{one}") for one in ("alice", "bob"))
    for db in (alice, bob):
        await install(connection, db)
        await secure(connection, db, own_producers=True)
        await guard(connection, db)
    at, user = urlsplit(server_url), f"{name}-shop"
    await give_role(connection.server, user, producer_role(alice), "pw")
    url = f"http://{user}:pw@{at.hostname}:{at.port}"
    async with Couchjobs(settings=settings_for(url=url, prefix=alice.prefix)) as his:
        assert (await his.push("w", 1, id="mine")).created
        assert [job.id for job in await eventually(his.jobs)] == ["mine"]
    async with Couchjobs(settings=settings_for(url=url, prefix=bob.prefix, push_timeout=0.5)) as others:
        with pytest.raises((*REFUSED, Unavailable)):
            await others.push("w", 1, id="not-mine")
        with pytest.raises(REFUSED):
            await others.jobs()
    assert await connection.database(bob.database("jobs")).find("not-mine") is None

    shown = {"Authorization": "Basic " + base64.b64encode(f"{user}:pw".encode()).decode()}
    front = make_front(connection.of(Prefixer()), "all", None, Gate(connection))
    async with TestClient(TestServer(front)) as http:
        for db, status in ((alice, 200), (bob, 401)):
            asked = await http.get(f"/tenants/{db.key}/jobs", headers=shown)
            assert asked.status == status, await asked.text()


@pytest.mark.usefixtures("own_users")
async def test_producer_when_he_asks_over_http_then_no_more_than_couchdb_lets_him_do(
    connection: Connection, db: Prefixer, name: str
) -> None:
    """The server's own rights are larger: by routes and by pages he pushes, sees and cancels, and nothing else."""
    await secure(connection, db)
    await guard(connection, db)
    await give_role(connection.server, f"{name}-shop", PRODUCER_ROLE, "pw")
    jobs = connection.database(db.database("jobs"))
    ended = {"worker": "w", "message": None, "queued_at": "2026-01-01T00:00:00.000000Z", "exec_count": 1}
    await jobs.put({"_id": "failed", **ended, "state": "errored"})
    await jobs.put({"_id": "done", **ended, "state": "done", "admin_proof": "of an administrator"})
    await jobs.put({"_id": "waits", **ended, "state": "queued", "exec_count": 0})
    await jobs.put({"_id": "browser", **ended, "worker": "client", "state": "queued", "exec_count": 0})
    before = {one: await jobs.get(one) for one in ("failed", "done", "browser")}
    front = make_app(connection.of(db))
    shown = {"Authorization": "Basic " + base64.b64encode(f"{name}-shop:pw".encode()).decode()}
    async with TestClient(TestServer(front), headers=shown) as http:
        told = {"data": {"attributes": {"state": "done", "result": "forged"}}}
        for path in ("/jobs/failed/retry", "/jobs/done/retry?again=true", "/jobs/retry?worker=w"):
            assert (await http.post(path)).status == 403, path
        assert (await http.patch("/jobs/browser", json=told)).status == 403
        assert (await http.delete("/jobs/purge?duration=1s")).status == 403
        page = await (await http.get("/dashboard/jobs/failed")).text()
        assert "Retry" not in page
        csrf = re.search(r'name="_csrf" value="([^"]+)"', await (await http.get("/dashboard/jobs")).text())
        assert csrf is not None
        for path in ("/dashboard/jobs/failed/retry", "/dashboard/jobs/done/again"):
            answer = await http.post(path, data={"_csrf": csrf[1]}, allow_redirects=False)
            assert answer.status == 403, path
        chosen = {"_csrf": csrf[1], "action": "retry", "job": "failed"}
        assert (await http.post("/dashboard/jobs", data=chosen)).status == 200
        assert {one: await jobs.get(one) for one in before} == before
        attributes = {"data": {"attributes": {"arguments": 1}}}
        assert (await http.post("/jobs/queue/w", json=attributes)).status == 202
        assert (await http.post("/jobs/waits/cancel")).status == 200
    assert (await jobs.get("waits"))["cancel_requested"] is True


async def test_token_when_it_may_post_then_what_an_administrator_has_pushed_is_not_run_again(
    connection: Connection, db: Prefixer
) -> None:
    """Its proof does not expire; others of that worker it may."""
    jobs = connection.database(db.database("jobs"))
    ended = {"worker": "w", "message": None, "queued_at": "2026-01-01T00:00:00.000000Z", "state": "errored"}
    await jobs.put({"_id": "failed", **ended})
    await jobs.put({"_id": "proved", **ended, "admin_proof": "of an administrator"})
    narrow, wide = [await create_token(connection, db, "", scopes) for scopes in (["jobs:POST:w:worker"], ["*"])]
    async with TestClient(TestServer(make_app(connection.of(db)))) as http:

        async def retry(path: str, token: str) -> Any:
            return await http.post(path, headers={"Authorization": f"Bearer {token}"})

        assert (await retry("/jobs/proved/retry", narrow)).status == 403
        many = await (await retry("/jobs/retry?worker=w", narrow)).json()
        assert many["meta"] == {"changed": 1, "refused": 1}
        assert (await retry("/jobs/proved/retry", wide)).status == 200


async def test_token_when_it_makes_event_triggers_then_of_what_the_list_names_and_no_more(
    connection: Connection, db: Prefixer
) -> None:
    """The daemon could copy all jobs into those of a trigger, whose jobs whoever may see the trigger sees."""
    await write_list(connection, db, ["orders", "*s"])
    token = await create_token(connection, db, "", ["triggers:ALL:@event:type"])
    status = {"orders:CREATED": 201, "users": 201, "jobs:CREATED": 403, "orders jobs": 403, "_users": 403, "o*s": 201}
    status |= {"u*": 403, "log": 403}
    headers = {"Authorization": f"Bearer {token}"}
    async with TestClient(TestServer(make_app(connection.of(db))), headers=headers) as http:
        for arguments, wanted in status.items():
            attributes = {"type": "@event", "arguments": arguments, "worker": "w", "message": None}
            answer = await http.post("/jobs/triggers", json={"data": {"attributes": attributes}})
            assert answer.status == wanted, (arguments, await answer.text())
    sources = await read_sources(connection, db)
    assert await sources.existing_of(["*s"], {"*s": ["orders", "jobs", "triggers"]}) == {"orders"}


async def test_sources_when_jobs_are_named_otherwise_then_the_same_database(
    connection: Connection, db: Prefixer, settings_for: Callable[..., Settings]
) -> None:
    """A dot is a dash in the name of a database: what a token may not have as one it may not have as the other."""
    settings = settings_for(jobs_doctype="io.cozy.jobs", triggers_doctype="io.cozy.triggers")
    async with connect(settings) as own:
        await install(own, db)
        await write_list(own, db, ["io*"])
        sources = await read_sources(own, db)
        for arguments in ("io.cozy.jobs", "io-cozy-jobs"):
            assert sources.unlisted(parse_event(arguments)) == [arguments]
        assert sources.unlisted(parse_event("io.cozy.files io-cozy-files io*")) == []
        assert await sources.existing_of(["io*"], {"io*": ["io-cozy-jobs", "io-cozy-files"]}) == {"io-cozy-files"}
        await write_list(own, db, ["io*", "io.cozy.jobs"])
        assert (await read_sources(own, db)).unlisted(parse_event("io-cozy-jobs")) == []


async def test_token_when_it_may_post_alone_then_told_no_more_than_what_has_become_of_it(
    connection: Connection, db: Prefixer
) -> None:
    """The answer of a change holds nothing of a job or trigger that he may not see."""
    jobs, triggers = (connection.database(db.database(doctype)) for doctype in ("jobs", "triggers"))
    secret = {"card": "4111"}
    await jobs.put({"_id": "ended", "worker": "w", "message": secret, "state": "done", "queued_at": OLD})
    await jobs.put({"_id": "waits", "worker": "w", "message": secret, "state": "queued", "queued_at": OLD})
    await jobs.put({"_id": "theirs", "worker": "client", "message": secret, "state": "queued", "queued_at": OLD})
    await triggers.put({"_id": "tick", **TRIGGER, "message": secret})
    scopes = ["jobs:POST,PATCH", "triggers:POST,PATCH"]
    headers = {"Authorization": f"Bearer {await create_token(connection, db, '', scopes)}"}
    async with TestClient(TestServer(make_app(connection.of(db))), headers=headers) as http:
        ended, off = ({"data": {"attributes": one}} for one in ({"state": "done"}, {"disabled": True}))
        answers = [
            await http.post("/jobs/ended/retry?again=true"),
            await http.post("/jobs/waits/cancel"),
            await http.patch("/jobs/theirs", json=ended),
            await http.post("/jobs/triggers/tick/launch"),
            await http.patch("/jobs/triggers/tick", json=off),
        ]
        for answer in answers:
            text = await answer.text()
            assert (answer.status // 100, "4111" in text) == (2, False), text


@pytest.mark.usefixtures("own_users")
async def test_sources_when_two_producer_roles_write_triggers_then_both_must_read_what_fires(
    connection: Connection, name: str
) -> None:
    """That of the tenant is one of them: an event carries nothing to him that he may not read."""
    db = Prefixer("", f"{name}-alice")
    await install(connection, db)
    await secure(connection, db, own_producers=True)
    await connection.server.create_database(db.database("orders"))
    orders = connection.database(db.database("orders"))
    await write_list(connection, db, ["orders"])
    await admit(orders, (PRODUCER_ROLE,))
    for number, role in enumerate((PRODUCER_ROLE, producer_role(db))):
        await give_role(connection.server, f"{name}-{number}", role, "pw")
    sources = await read_sources(connection, db)
    assert f"let the roles {PRODUCER_ROLE} and {producer_role(db)} read it" in await sources.refusal("orders")
    await admit(orders, (producer_role(db),))
    assert await (await read_sources(connection, db)).refusal("orders") == ""


async def stored(jobs: Database, triggers: Database, number: int) -> list[Any]:
    """What there is of the documents of one row of the table."""
    found = [await jobs.find(f"{name}-{number}") for name in ("queued", "failed", "new", "later")]
    return [*found, *[await triggers.find(f"{name}-{number}") for name in ("hook", "t")]]
