"""The embedded server: ways in from a page in a browser, and past its guard."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import orjson
import pytest
from yarl import URL

from couchjobs.couch.client import CouchServer
from couchjobs.couch.database import Database
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.errors import Conflict, Refused, Unavailable

ESCAPE = "function (doc) { var p = this.constructor.constructor('return process')(); throw({forbidden: p.pid}); }"
DEEPER = "function (doc, old, user) { throw({forbidden: '' + user.constructor.constructor('return process')().pid}); }"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """An embedded server of this module's own."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
async def database(server: EmbeddedServer) -> AsyncIterator[Database]:
    """A database in which user `p` is a member."""
    async with CouchServer(server.url) as client:
        await client.create_database("db")
        database = Database(client, "db")
        await database.set_security({"members": {"roles": ["some"]}, "admins": {"roles": ["_admin"]}})
        users = Database(client, "_users")
        if await users.find("org.couchdb.user:p") is None:
            user = {"name": "p", "type": "user", "roles": ["some"], "password": "pw"}
            await users.put({"_id": "org.couchdb.user:p", **user})
        yield database
        await client.delete_database("db")


async def ask(server: EmbeddedServer, method: str, path: str, *, user: str = "p:pw", **more: Any) -> tuple[int, Any]:
    """Return status and answer, as that user."""
    headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    headers |= more.pop("headers", {})
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, URL(f"{server.bare_url}/{path}", encoded=True), headers=headers, **more) as answer,
    ):
        text = await answer.read()
        return answer.status, orjson.loads(text) if text else None


async def test_design_document_when_a_member_sends_it_in_any_form_then_refused(
    server: EmbeddedServer, database: Database
) -> None:
    """JSON, multipart, bulk, replicated, as an attachment, by an index."""
    document = {"_id": "_design/evil", "validate_doc_update": ESCAPE}
    body = orjson.dumps(document)
    json = {"Content-Type": "application/json"}
    part = b"--x\r\nContent-Type: application/json\r\n\r\n" + body + b"\r\n--x--"
    multipart = {"Content-Type": 'multipart/related; boundary="x"'}
    bulk = orjson.dumps({"docs": [document], "new_edits": False})
    index = orjson.dumps({"index": {"fields": ["x"]}})
    for method, path, data, headers in (
        ("PUT", "db/_design/evil", body, json),
        ("PUT", "db/_design%2Fevil", body, json),
        ("PUT", "db/_design/evil", part, multipart),
        ("PUT", "db/_design/evil/x.txt", b"x", {"Content-Type": "text/plain"}),
        ("POST", "db/_index", index, json),
        ("PUT", "db/_local/_security", b'{"security": {}}', json),
        ("PUT", "db/_security", b"{}", json),
    ):
        status, _ = await ask(server, method, path, data=data, headers=headers)
        assert status in (401, 403, 404, 415), (method, path, status)
    _, rows = await ask(server, "POST", "db/_bulk_docs", data=bulk, headers=json)
    assert rows[0]["error"] == "forbidden"
    assert await database.find("_design/evil") is None


@pytest.mark.parametrize("function", [ESCAPE, DEEPER])
async def test_validator_when_it_reaches_for_the_process_then_it_finds_none(
    server: EmbeddedServer, database: Database, function: str
) -> None:
    """Not by `this`, not by what it is given."""
    await database.put({"_id": "_design/v", "validate_doc_update": function})
    with pytest.raises((Refused, Unavailable)) as refused:
        await database.put({"_id": "doc"})
    assert str(server.pid) not in str(refused.value)


async def test_requests_when_a_page_in_a_browser_sends_them_then_refused(
    server: EmbeddedServer, database: Database
) -> None:
    """Forms, other names of this machine; and nobody is blocked by a wish for many ids."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        status, _ = await ask(server, "POST", "db", data=b'{"x": 1}', headers={"Content-Type": kind})
        assert status == 415
    assert (await ask(server, "GET", "_up", headers={"Host": "evil.example"}))[0] == 403
    assert (await ask(server, "GET", "_up", headers={"Host": "localhost:1"}))[0] == 200
    assert (await ask(server, "GET", "_uuids?count=100000000", user=""))[0] == 403
    assert (await ask(server, "GET", "_uuids?count=-1", user=""))[0] == 400
    assert len((await ask(server, "GET", "_uuids?count=1000", user=""))[1]["uuids"]) == 1000
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.bare_url}/_session", data={"name": server.user, "password": server.password}) as answer,
    ):
        assert "SameSite=Strict" in answer.headers["Set-Cookie"]


async def test_ids_when_they_are_dots_then_documents_and_not_the_database(
    server: EmbeddedServer, database: Database
) -> None:
    """`DELETE /db/.` is about a document."""
    admin = f"{server.user}:{server.password}"
    for doc_id in (".", "..", "a/../b"):
        await database.put({"_id": doc_id})
    for path in ("db/.", "db/%2E", "db/..", "db/%2e%2e"):
        status, _ = await ask(server, "DELETE", path, user=admin)
        assert status == 409
    assert (await database.info())["doc_count"] == 3
    await database.delete(".", (await database.get("."))["_rev"])
    assert (await database.info())["doc_count"] == 2


async def test_bulk_when_it_edits_one_revision_twice_then_the_second_is_a_conflict(database: Database) -> None:
    """And leaves no branch behind."""
    rev = await database.put({"_id": "doc"})
    docs = [{"_id": "doc", "_rev": rev, "n": 1}, {"_id": "doc", "_rev": rev, "n": 2}]
    rows = await database.server.request("POST", f"{database.path}/_bulk_docs", body=orjson.dumps({"docs": docs}))
    assert [row.get("error") for row in rows] == [None, "conflict"]
    assert len(await database.leaves("doc")) == 1


async def test_edit_when_the_document_had_it_before_it_was_deleted_then_a_conflict_and_the_database_goes_on(
    database: Database,
) -> None:
    """Two daemons mark the same single tick alike, and one of them has deleted its trigger already."""
    first = await database.put({"_id": "at", "n": 1})
    second = await database.put({"_id": "at", "_rev": first, "n": 2})
    await database.delete("at", second)
    with pytest.raises(Conflict):
        await database.put({"_id": "at", "_rev": first, "n": 2})
    assert await database.put({"_id": "other"})
    assert await database.find("at") is None
