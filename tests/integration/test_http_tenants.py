"""Many tenants behind one address: whose jobs are told to whom, under which paths and host names."""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientError, ClientSession, CookieJar
from aiohttp.test_utils import TestClient, TestServer
from daemons import DaemonProcess
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.figures import last_hour
from couchjobs.http import events, streams, tenants
from couchjobs.http.gate import Gate
from couchjobs.http.server import make_front
from couchjobs.http.tokens import create_token, revoke_token
from couchjobs.installation import install
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now

Client = TestClient[Any, Any]


@pytest.fixture(autouse=True)
def _dropped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant that is not named by one look."""
    monkeypatch.setattr(tenants, "_MISSED_FOR_S", 0.0)


@pytest.fixture
async def two(connection: Connection, name: str) -> list[Prefixer]:
    """Two tenants, each with a job."""
    found = [Prefixer(f"{one}.example", f"{name}-{one}") for one in ("alice", "bob")]
    for db in found:
        await install(connection, db)
        job = {"_id": f"of-{db.domain}", "worker": "w", "message": None, "state": "queued"}
        await connection.database(db.database("jobs")).put(job)
    return found


@pytest.fixture
def listed(two: list[Prefixer], tmp_path: Path) -> Path:
    """The file that names them."""
    file = tmp_path / "tenants"
    file.write_text("".join(f"{db.db_prefix} {db.domain}\n" for db in two))
    return file


@pytest.fixture
async def http(connection: Connection, listed: Path) -> AsyncIterator[Client]:
    """A client of a server of both."""
    front = make_front(connection.of(Prefixer()), str(listed), None, Gate(connection))
    async with TestClient(TestServer(front), cookie_jar=CookieJar(unsafe=True)) as client:
        yield client


def bearer(token: str, **more: str) -> dict[str, str]:
    """Headers with a token."""
    return {"Authorization": f"Bearer {token}", **more}


async def ids(http: Client, path: str, headers: dict[str, str] | None = None) -> list[str]:
    """The ids of the jobs that are told."""
    response = await http.get(path, headers=headers)
    assert response.status == 200, await response.text()
    return [one["id"] for one in (await response.json(content_type=None))["data"]]


async def test_jobs_when_a_path_names_a_tenant_then_its_own_and_links_that_lead_there(
    http: Client, two: list[Prefixer]
) -> None:
    """Pushed, listed and shown below its path; no other tenant sees them; there is none that is not listed."""
    for db in two:
        base = f"/tenants/{db.key}"
        assert await eventually(lambda base=base: ids(http, f"{base}/jobs")) == [f"of-{db.domain}"]
        pushed = await http.post(f"{base}/jobs/queue/w", json={"data": {"attributes": {"arguments": 1}}})
        assert pushed.status == 202
        link = (await pushed.json(content_type=None))["data"]["links"]["self"]
        assert link.startswith(f"{base}/jobs/")
        assert (await http.get(link)).status == 200
        assert (await http.get(link.replace(db.key, next(one.key for one in two if one != db)))).status == 404
        described = await (await http.get(f"{base}/openapi.json")).json()
        assert described["servers"] == [{"url": base}]
    for path in ("/tenants/nobody/jobs", "/tenants/nobody", "/tenants/"):
        assert (await http.get(path)).status == 404
    assert (await http.get("/health/live")).status == 200


async def test_jobs_when_a_host_name_is_a_tenants_then_its_own_and_his_tokens_alone(
    http: Client, connection: Connection, two: list[Prefixer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of one is none of another, under whatever name; without one, only this machine's own names are taken."""
    monkeypatch.setattr("couchjobs.http.gate._LOOK_S", 0.0)
    alice, bob = two
    assert (await http.get("/jobs", headers={"Host": alice.domain})).status == 403
    token = await create_token(connection, alice, "alice", ["*"])
    assert await ids(http, "/jobs", bearer(token, Host="Alice.Example:8080")) == ["of-alice.example"]
    assert await ids(http, f"/tenants/{alice.key}/jobs", bearer(token)) == ["of-alice.example"]
    for path, host in ((f"/tenants/{bob.key}/jobs", ""), ("/jobs", bob.domain), ("/jobs", "")):
        headers = bearer(token, **({"Host": host} if host else {}))
        assert (await http.get(path, headers=headers)).status == 401
    assert (await http.get("/dashboard/tenants", headers=bearer(token))).status in (303, 200)
    own = await create_token(connection, Prefixer(), "root", ["*"])
    assert (await http.get("/dashboard/tenants", headers=bearer(own))).status == 403


async def test_pages_when_of_a_tenant_then_their_links_forms_and_cookies_stay_with_it(
    http: Client, connection: Connection, two: list[Prefixer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One signs in to each; the list of tenants leads to all."""
    monkeypatch.setattr("couchjobs.http.gate._LOOK_S", 0.0)
    page = await (await http.get("/")).text()
    assert all(f'href="/tenants/{db.key}/dashboard"' in page for db in two)
    alice, bob = two
    base = f"/tenants/{alice.key}"
    shown = await (await http.get(f"{base}/dashboard/jobs")).text()
    assert f'href="{base}/dashboard/jobs/of-alice.example"' in shown
    assert 'href="/dashboard' not in shown
    assert f'data-root="{base}/dashboard"' in shown
    assert (await http.get(f"{base}/dashboard/static/live.js")).status == 200
    token = await create_token(connection, alice, "alice", ["*"])
    refused = await http.get(f"{base}/dashboard/jobs?state=done", allow_redirects=False)
    assert refused.headers["Location"].startswith(f"{base}/dashboard/login?next=")
    login = await http.get(refused.headers["Location"])
    assert login.url.path == f"{base}/dashboard/login"
    signed = await http.post(
        f"{base}/dashboard/login", data={"token": token, "next": "/jobs?state=done"}, allow_redirects=False
    )
    assert signed.headers["Location"] == f"{base}/dashboard/jobs?state=done"
    assert (await http.get(f"{base}/dashboard/jobs")).url.path == f"{base}/dashboard/jobs"
    assert (await http.get(f"/tenants/{bob.key}/dashboard/jobs")).url.path.endswith("/login")


async def test_tenants_when_they_come_and_go_then_noticed_and_few_are_kept_ready(
    http: Client, connection: Connection, two: list[Prefixer], listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is dropped from the list is no more; one that was not asked for is made again when it is."""
    monkeypatch.setattr(tenants, "_LOOK_S", 0.0)
    monkeypatch.setattr(tenants, "_MOST", 1)
    alice, bob = two
    for db in (alice, bob, alice):
        assert await ids(http, f"/tenants/{db.key}/jobs") == [f"of-{db.domain}"]
    await asyncio.to_thread(listed.write_text, f"{bob.db_prefix}\n")
    assert (await http.get(f"/tenants/{alice.key}/jobs")).status == 404
    assert (await http.get("/jobs", headers={"Host": bob.domain})).status == 404
    await asyncio.to_thread(listed.unlink)  # what is not known now was known before
    assert await ids(http, f"/tenants/{bob.key}/jobs") == ["of-bob.example"]


async def test_health_when_couchdb_is_silent_then_told_at_once_and_the_old_list_serves(
    http: Client, connection: Connection, two: list[Prefixer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names the tenants does not answer."""
    assert (await http.get(f"/tenants/{two[0].key}/dashboard/static/live.js")).status == 200

    async def never(_: object) -> list[Prefixer]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(tenants, "_LOOK_S", 0.0)
    monkeypatch.setattr("couchjobs.tenants.named._File.tenants", never)
    async with asyncio.timeout(10):
        assert (await http.get("/health/live")).status == 200
        for db in two:
            assert (await http.get(f"/tenants/{db.key}/dashboard/static/live.js")).status == 200


async def test_passwords_when_wrong_then_shown_to_couchdb_once_whatever_tenants_are_asked_for(
    http: Client, connection: Connection, two: list[Prefixer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It locks an account after five; and who is refused for one tenant is so for all."""
    asked = []

    async def user_of(self: object, headers: dict[str, str]) -> None:
        asked.append(headers)

    monkeypatch.setattr("couchjobs.couch.client.CouchServer.user_of", user_of)
    answers = []
    for path, host in [(f"/tenants/{db.key}/jobs", "") for db in two] + [("/jobs", db.domain) for db in two]:
        more = {"Host": host} if host else {}
        for number in range(2):
            shown = base64.b64encode(f"admin:wrong{number}".encode()).decode()
            answers.append((await http.get(path, headers={"Authorization": f"Basic {shown}", **more})).status)
    assert (answers[0], len(asked)) == (401, 1)
    monkeypatch.setattr("couchjobs.http.gate._REFUSED_BURST", 3.0)
    monkeypatch.setattr("couchjobs.http.gate._REFUSED_PER_S", 0.001)
    statuses = [(await http.get(f"/tenants/{db.key}/jobs", headers=bearer("cj_bad"))).status for db in two * 3]
    assert statuses[-1] == 429


async def test_hosts_when_they_are_none_or_of_two_tenants_then_refused_or_nobodys(
    http: Client, two: list[Prefixer], listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a fault of the server, and without taking one for another."""
    monkeypatch.setattr(tenants, "_LOOK_S", 0.0)
    for host in ("a:x", "[::1", "bob.example@alice.example", "alice.example/../x", "a b"):
        assert (await http.get("/jobs", headers={"Host": host})).status == 400
    assert (await http.get("/jobs", headers={"Host": "[::1]:80"})).status != 500
    alice, bob = two
    text = f"{alice.db_prefix} same.example\n{bob.db_prefix} same.example\n"
    await asyncio.to_thread(listed.write_text, text)
    for host in ("same.example", "alice.example"):  # of two, and of none any more
        refused = await http.get("/jobs", headers={"Host": host})
        assert (refused.status, "host name of no tenant" in await refused.text()) == (404, True)
    other = await http.get("/jobs", headers={"Host": "other.example"})
    assert (other.status, "127.0.0.1" in await other.text()) == (403, True)


async def test_stream_when_its_token_is_revoked_or_its_tenant_is_gone_then_ends(
    http: Client, connection: Connection, two: list[Prefixer], listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next beat; at the next look."""
    monkeypatch.setattr(streams, "_ASK_S", 0.2)
    monkeypatch.setattr(streams, "BEAT_S", 0.2)
    monkeypatch.setattr(events, "BEAT_S", 0.2)
    monkeypatch.setattr(tenants, "_LOOK_S", 0.0)
    alice = two[0]
    tokens = [await create_token(connection, db, "any", ["*"]) for db in two]
    paths = [f"/tenants/{db.key}/events" for db in two]
    async with http.get(paths[0], headers=bearer(tokens[0])) as one:
        other = await http.get(paths[1], headers=bearer(tokens[1]))
        await revoke_token(connection, alice, tokens[0].split("_")[1])
        async with asyncio.timeout(15):
            await one.content.read()
        await asyncio.to_thread(listed.write_text, f"{alice.db_prefix}\n")
        assert (await http.get(paths[1], headers=bearer(tokens[1]))).status == 404
        async with asyncio.timeout(15):
            with suppress(ClientError):
                await other.content.read()


async def test_daemon_when_of_many_tenants_then_it_serves_their_pages_and_its_own_health(
    connection: Connection, two: list[Prefixer], listed: Path, tmp_path: Path, server_url: str, name: str
) -> None:
    """As `couchjobs run --tenants FILE --http` begins; its log names them; SIGTERM ends it, whoever still reads."""
    (tmp_path / "work.py").write_text('from couchjobs import worker\n\n\n@worker("w")\ndef w(ctx):\n    return 1\n')
    options = ("--tenants", str(listed), "--http", "127.0.0.1:0")
    daemon = DaemonProcess(tmp_path, "work", "daemon", options, url=server_url, control_db=f"{name}-control")
    try:
        await eventually(lambda: daemon.says('"event": "HTTP"'), 30)
        said = next(line for line in daemon.log.read_text().splitlines() if '"event": "HTTP"' in line)
        async with ClientSession(orjson.loads(said)["url"]) as http:

            async def is_done(key: str) -> bool:
                listed = await (await http.get(f"/tenants/{key}/jobs")).json(content_type=None)
                return [one["attributes"]["state"] for one in listed["data"]] == ["done"]

            for db in two:
                await eventually(lambda key=db.key: is_done(key), 20)
            assert (await http.get("/health/live")).status == 200
            told = await (await http.get("/metrics")).text()
            assert "couchjobs_tries_total" in told
            assert "couchjobs_couchdb_up 1.0" in told
            assert "couchjobs_daemons 1.0" in told
            for db in two:
                assert any(
                    f'"tenant": "{db.key}"' in line
                    and '"event": "job done"' in line
                    and f'"job": "of-{db.domain}"' in line
                    for line in daemon.log.read_text().splitlines()
                )
            async with http.get(f"/tenants/{two[0].key}/events") as stream:
                assert await stream.content.readline() == b": couchjobs\n"
                daemon.signal(signal.SIGTERM)
                assert await asyncio.to_thread(daemon.wait, 20) == 0
        for db in two:  # what it did is in its charts

            async def is_told(db: Prefixer = db) -> bool:
                return sum(bar.figures.done for bar in await last_hour(connection, db, now())) == 1

            await eventually(is_told)
    finally:
        daemon.end()
