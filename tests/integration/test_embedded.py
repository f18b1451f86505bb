"""The embedded server, where the stock layer under it does not behave as CouchDB does. Needs no COUCHJOBS_TEST_URL."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from couchjobs.couch.answers import Written
from couchjobs.couch.client import CouchServer
from couchjobs.couch.database import Database
from couchjobs.couch.writer import GroupWriter
from couchjobs.embedded.node import install_server
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.errors import BadRequest, ConfigurationError, Forbidden, NotFound, Unauthorized


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server of this module's own, on disk."""
    with EmbeddedServer(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[CouchServer]:
    """The administrator's client."""
    async with CouchServer(server.url) as client:
        yield client


@pytest.fixture
async def database(client: CouchServer) -> AsyncIterator[Database]:
    """A database, fresh for each test."""
    await client.create_database("db")
    yield Database(client, "db")
    await client.delete_database("db")


class Raw:
    """Requests as any client sends them."""

    def __init__(self, server: EmbeddedServer, session: aiohttp.ClientSession) -> None:
        self._url = server.bare_url
        self._session = session
        credentials = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
        self.admin = {"Authorization": f"Basic {credentials}"}

    async def __call__(
        self, method: str, path: str, body: Any = None, *, user: str = "admin", **headers: str
    ) -> tuple[int, Any, Any]:
        """Return status, body and headers."""
        who = self.admin if user == "admin" else {}
        data = None if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        if method == "POST":
            headers = {"Content_Type": "application/json", **headers}
        async with self._session.request(
            method,
            f"{self._url}/{path}",
            data=data and BytesIO(data),
            headers={**who, **{name.replace("_", "-"): value for name, value in headers.items()}},
        ) as answer:
            text = await answer.read()
            return answer.status, orjson.loads(text) if text else None, answer.headers


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    """Requests as any client sends them."""
    async with aiohttp.ClientSession() as session:
        yield Raw(server, session)


async def test_database_names_when_odd_then_as_couchdb(client: CouchServer, raw: Raw) -> None:
    """A slash stays, two names never share a file, illegal names are refused, a missing database is missing."""
    for name in ("a/b", "ab", "a-b", "a$b(c)+d"):
        assert await client.create_database(name)
        assert not await client.create_database(name)
        await Database(client, name).put({"_id": name.replace("/", "-")})
    assert {"a/b", "ab", "a-b", "a$b(c)+d"} <= set(await client.all_databases())
    assert (await Database(client, "a/b").info())["doc_count"] == 1
    for name in ("Upper", "_own", "1a", "a b", "a.b"):
        with pytest.raises(BadRequest):
            await client.create_database(name)
    for name in ("a/b", "ab", "a-b", "a$b(c)+d"):
        assert await client.delete_database(name)
    assert not await client.delete_database("a/b")
    assert (await raw("GET", "a%2Fb"))[0] == 404


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"n":9007199254740991}', True),
        (b'{"n":-9007199254740992}', True),
        (b'{"n":9007199254740993}', False),
        (b'{"n":[{"deep":-9007199254740993}]}', False),
        (b'{"n":123456789012345678901234567890}', False),
        (b'{"n":"9007199254740993","m":"\\\\\\"9007199254740993"}', True),
        (b'{"n":1764399999000001,"9007199254740993":1}', True),
        (b'{"n":0.12345678901234567890,"m":1.5e3,"t":"2026-11-29T00:00:00.000000Z"}', True),
    ],
)
async def test_whole_numbers_when_javascript_rounds_them_then_that_document_is_refused_and_its_neighbours_are_not(
    database: Database, raw: Raw, body: bytes, kept: bool
) -> None:
    """CouchDB keeps them as they are; what is stored here comes back as it was, but for the form of 5.0."""
    status, told, _ = await raw("PUT", "db/one", body)
    assert status == (201 if kept else 400)
    fields = orjson.loads(body)
    if kept:
        assert {**fields, "_id": "one", "_rev": told["rev"]} == await database.get("one")
    else:
        assert "would be rounded" in told["reason"]
    many = b'{"docs":[{"_id":"before"},{"_id":"x",' + body[1:] + b',{"_id":"after"}]}'
    status, rows, _ = await raw("POST", "db/_bulk_docs", many)
    assert (status, [row["id"] for row in rows]) == (201, ["before", "x", "after"])
    assert ["rev" in row for row in rows] == [True, kept, True]


@pytest.mark.parametrize(
    "body",
    [
        b'{"_id":"one","docs":[{"n":9007199254740993}]}',
        b'{"_id":"one","docs":["a.pdf"],"n":9007199254740993}',
        b'{"_id":"one","n":9007199254740993,"n":1}',
    ],
)
@pytest.mark.parametrize(("method", "path"), [("PUT", "db/one"), ("POST", "db")])
async def test_a_document_when_it_looks_like_a_batch_then_refused_as_a_whole(
    database: Database, raw: Raw, body: bytes, method: str, path: str
) -> None:
    """A field `docs` is anybody's."""
    status, told, _ = await raw(method, path, body)
    assert (status, told["error"]) == (400, "bad_request")
    assert "9007199254740993 would be rounded" in told["reason"]
    assert (await raw("GET", "db/one"))[0] == 404


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (b'{"__proto__":1}', "the field __proto__ would be lost"),
        (b'{"deep":[{"__proto__" : {"x":1}}]}', "the field __proto__ would be lost"),
        (b"[1e400]", "the number 1e400 is too large"),
        (b"-1.5E+999", "the number -1.5E+999 is too large"),
    ],
)
async def test_values_when_javascript_would_lose_them_then_that_document_is_refused(
    database: Database, raw: Raw, part: bytes, told: str
) -> None:
    """And its neighbours are not."""
    status, answer, _ = await raw("PUT", "db/one", b'{"v":' + part + b"}")
    assert (status, answer["error"]) == (400, "bad_request")
    assert told in answer["reason"]
    many = b'{"docs":[{"_id":"before"},{"_id":"x","v":' + part + b'},{"_id":"after","v":["__proto__",1e300]}]}'
    status, rows, _ = await raw("POST", "db/_bulk_docs", many)
    assert status == 201
    assert [(row["id"], "rev" in row) for row in rows] == [("before", True), ("x", False), ("after", True)]
    assert (await database.get("after"))["v"] == ["__proto__", 1e300]


async def test_text_when_it_holds_half_a_character_then_no_json_as_couchdb_says(database: Database, raw: Raw) -> None:
    """A whole one, written as two escapes, is text."""
    for half in (b'"\\ud83d"', b'"x\\uDC00y"'):
        status, answer, _ = await raw("PUT", "db/one", b'{"v":' + half + b"}")
        assert (status, answer["reason"]) == (400, "invalid UTF-8 JSON")
    assert (await raw("PUT", "db/one", b'{"v":"\\ud83d\\ude00"}'))[0] == 201
    assert (await database.get("one"))["v"] == "\N{GRINNING FACE}"


async def test_a_job_when_it_holds_a_number_that_is_rounded_then_the_push_says_so(
    server: EmbeddedServer, database: Database
) -> None:
    """Refused by name, at once, and alone."""
    async with CouchServer(server.url) as client:
        writer = GroupWriter(Database(client, "db"))
        answers = await asyncio.gather(*(writer.write({"_id": f"{n}", "n": 2**53 + n}) for n in range(3)))
        await writer.close()
    assert [answer.written for answer in answers] == [Written.OK, Written.REFUSED, Written.OK]
    assert "9007199254740993 would be rounded" in answers[1].reason


async def test_strangers_when_they_ask_then_refused_and_the_server_lives(database: Database, raw: Raw) -> None:
    """Databases are the administrator's until `_security` says otherwise."""
    for method, path in (
        ("PUT", "mine"),
        ("DELETE", "db"),
        ("GET", "db"),
        ("GET", "_all_dbs"),
        ("PUT", "db/x"),
        ("GET", "db/_changes"),
    ):
        status, body, _ = await raw(method, path, {} if path == "db/x" else None, user="nobody")
        assert (status, body["error"]) == (401, "unauthorized")
    assert (await raw("GET", "_up", user="nobody"))[0] == 200
    assert (await raw("DELETE", "db"))[0] == 200
    assert (await raw("PUT", "db"))[0] == 201


async def test_users_when_members_then_they_read_and_write_but_not_design_documents(
    server: EmbeddedServer, client: CouchServer, database: Database
) -> None:
    """Passwords are hashed; a user who is no member is forbidden; a wrong password is refused."""
    users = Database(client, "_users")
    for name, roles in (("ann", ["workers"]), ("bob", [])):
        await users.put(
            {"_id": f"org.couchdb.user:{name}", "name": name, "type": "user", "roles": roles, "password": "pw"}
        )
    stored = await users.get("org.couchdb.user:ann")
    assert "password" not in stored
    assert stored["derived_key"]
    await database.set_security({"members": {"roles": ["workers"]}, "admins": {}})
    async with CouchServer(f"http://ann:pw@127.0.0.1:{server.port}") as ann:
        mine = Database(ann, "db")
        await mine.put({"_id": "hers"})
        with pytest.raises(Forbidden):
            await mine.put({"_id": "_design/x"})
        with pytest.raises(Forbidden):
            await ann.create_database("another")
        with pytest.raises(Forbidden):
            await mine.set_security({})
    async with CouchServer(f"http://bob:pw@127.0.0.1:{server.port}") as bob:
        with pytest.raises(Forbidden):
            await Database(bob, "db").get("hers")
    async with CouchServer(f"http://ann:wrong@127.0.0.1:{server.port}") as wrong:
        with pytest.raises(Unauthorized):
            await Database(wrong, "db").get("hers")
    for name in ("ann", "bob"):
        user = await users.get(f"org.couchdb.user:{name}")
        await users.delete(user["_id"], user["_rev"])


async def test_session_when_logged_in_then_the_cookie_is_enough(
    server: EmbeddedServer, database: Database, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`name` or `username`; and the client's own session credentials, renewed once they are refused."""
    for field in ("name", "username"):
        status, body, headers = await raw(
            "POST", "_session", {field: server.user, "password": server.password}, user="nobody"
        )
        assert (status, body["roles"]) == (200, ["_admin"])
        cookie = headers["Set-Cookie"].split(";")[0]
        assert (await raw("GET", "db", user="nobody", Cookie=cookie))[0] == 200
    assert (await raw("GET", "db", user="nobody", Cookie="AuthSession=YWRtaW46NjU6YWJj"))[0] == 401
    monkeypatch.setenv("COUCHJOBS_AUTH_TYPE", "COUCHDB_SESSION")
    async with CouchServer(server.url) as session:
        assert (await Database(session, "db").info())["doc_count"] == 0
        session._credentials._headers = {"Cookie": "AuthSession=YWRtaW46NjU6YWJj"}
        assert (await Database(session, "db").info())["doc_count"] == 0


async def test_documents_when_sent_without_a_content_type_then_stored(database: Database, raw: Raw) -> None:
    """JSON is JSON; the answer is JSON whatever is accepted; the ETag is the revision."""
    status, body, headers = await raw("PUT", "db/doc", b'{"x": 1}', Content_Type="text/plain", Accept="*/*")
    assert status == 201
    assert headers["Content-Type"] == "application/json"
    assert headers["ETag"] == f'"{body["rev"]}"'
    assert (await database.get("doc"))["x"] == 1
    assert (await raw("PUT", "db/doc", b"{"))[0] == 400
    assert (await raw("PUT", "db/doc", b"[]"))[0] == 400
    assert (await raw("HEAD", "db/doc"))[0] == 200
    assert (await raw("PUT", "db/doc", {"x": 2}, If_Match=body["rev"]))[0] == 201
    assert (await raw("PUT", "db/doc", {"x": 3}, If_Match=body["rev"]))[0] == 409
    assert (await raw("DELETE", "db/doc"))[0] == 409
    assert (await raw("DELETE", "db/nothing"))[0] == 404
    assert (await raw("POST", "db", {"y": 1}))[0] == 201


async def test_bulk_rows_when_answered_then_in_the_order_of_the_documents(database: Database, raw: Raw) -> None:
    """Conflicts among them; leveldb answers in its own order."""
    docs = [{"_id": f"{(n * 37) % 100:02}"} for n in range(100)]
    status, rows, _ = await raw("POST", "db/_bulk_docs", {"docs": docs})
    assert status == 201
    assert [row["id"] for row in rows] == [doc["_id"] for doc in docs]
    _, rows, _ = await raw("POST", "db/_bulk_docs", {"docs": [{"_id": "50"}, {"_id": "new"}, {"_id": "51"}]})
    assert [row.get("error") for row in rows] == ["conflict", None, "conflict"]


async def test_writers_when_racing_then_one_wins(database: Database) -> None:
    """Compare-and-swap on `_rev`."""
    rev = await database.put({"_id": "doc"})
    writers = [GroupWriter(database) for _ in range(20)]
    answers = await asyncio.gather(
        *(writer.write({"_id": "doc", "_rev": rev, "n": n}) for n, writer in enumerate(writers))
    )
    assert sorted(answer.written.value for answer in answers) == ["conflict"] * 19 + ["ok"]
    assert Written.OK.value == "ok"


async def test_validation_when_a_function_refuses_then_forbidden(database: Database) -> None:
    """With the old document, the user and the security object, for single writes and bulk ones."""
    refusal = "{forbidden: 'no ' + user.name + (old ? ' old' : '')}"
    function = f"function (doc, old, user, security) {{ if (doc.bad) throw({refusal}); }}"
    await database.put({"_id": "_design/v", "validate_doc_update": function})
    rev = await database.put({"_id": "doc"})
    with pytest.raises(Forbidden, match="no admin old"):
        await database.put({"_id": "doc", "_rev": rev, "bad": True})
    answer = await GroupWriter(database).write({"_id": "other", "bad": True})
    assert (answer.written, answer.reason) == (Written.REFUSED, "forbidden: no admin")


@pytest.mark.parametrize(
    "query", ["feed=longpoll&filter=_selector&timeout=100", "filter=x/y", "feed=weird", "since=abc"]
)
async def test_changes_when_parameters_kill_the_stock_layer_then_it_lives(
    database: Database, raw: Raw, query: str
) -> None:
    """A missing filter is a 404, a malformed sequence a 400."""
    status, _, _ = await raw(
        "POST" if "_selector" in query else "GET",
        f"db/_changes?{query}",
        {"selector": {}} if "_selector" in query else None,
    )
    assert status in (200, 400, 404)
    assert (await raw("GET", "db"))[0] == 200


async def test_changes_when_asked_in_every_way_then_as_documented(database: Database, raw: Raw) -> None:
    """limit, pending, descending, include_docs, _doc_ids, timeout, last-event-id, event source, continuous."""
    for number in range(5):
        await database.put({"_id": f"doc-{number}", "even": number % 2 == 0})
    _, body, _ = await raw("GET", "db/_changes?limit=2")
    assert (len(body["results"]), body["pending"]) == (2, 3)
    _, body, _ = await raw("GET", f"db/_changes?since={body['last_seq']}&include_docs=true")
    assert [row["doc"]["_id"] for row in body["results"]] == ["doc-2", "doc-3", "doc-4"]
    _, body, _ = await raw("GET", "db/_changes?descending=true&limit=1")
    assert body["results"][0]["id"] == "doc-4"
    _, body, _ = await raw("POST", "db/_changes?filter=_doc_ids", {"doc_ids": ["doc-3"]})
    assert [row["id"] for row in body["results"]] == ["doc-3"]
    _, body, _ = await raw("POST", "db/_changes?filter=_selector", {"selector": {"even": True}})
    assert [row["id"] for row in body["results"]] == ["doc-0", "doc-2", "doc-4"]
    _, body, _ = await raw("GET", "db/_changes?feed=longpoll&since=5&timeout=50")
    assert (body["results"], body["last_seq"].split("-")[0], body["pending"]) == ([], "5", 0)
    made_anew = f"99-{int(body['last_seq'].split('-')[1]) - 1}"
    assert len((await raw("GET", f"db/_changes?since={made_anew}"))[1]["results"]) == 5


async def test_continuous_feed_when_client_takes_gzip_then_rows_come_at_once(database: Database, raw: Raw) -> None:
    """Aiohttp's default; headers come before the first row; the feed ends at its limit."""
    url = f"{raw._url}/db/_changes?feed=continuous&heartbeat=1000&limit=2"
    async with raw._session.get(url, headers={**raw.admin, "Accept-Encoding": "gzip"}) as answer:
        for number in range(2):
            await database.put({"_id": f"doc-{number}"})
            line = await asyncio.wait_for(answer.content.readline(), 5)
            assert orjson.loads(line)["id"] == f"doc-{number}"
        assert "last_seq" in orjson.loads(await asyncio.wait_for(answer.content.readline(), 5))
    async with raw._session.get(
        f"{raw._url}/db/_changes?feed=eventsource&since=0&timeout=50", headers={**raw.admin, "last-event-id": "1"}
    ) as answer:
        text = (await asyncio.wait_for(answer.read(), 5)).decode()
        assert '"id":"doc-1"' in text
        assert '"id":"doc-0"' not in text


async def test_feeds_when_abandoned_then_writes_stay_fast(database: Database, raw: Raw) -> None:
    """Nothing is left behind by 200 clients that went away."""
    for _ in range(200):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await raw("GET", "db/_changes?feed=continuous&since=now&heartbeat=100")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(50):
        await database.put({"_id": f"doc-{number}"})
    assert loop.time() - began < 2


async def test_views_when_paged_by_key_then_complete(database: Database) -> None:
    """Also where many rows have the same key, in both directions."""
    await database.put(
        {"_id": "_design/d", "views": {"v": {"map": "function (doc) { emit(doc.k, null); }", "reduce": "_count"}}}
    )
    await asyncio.gather(*(database.put({"_id": f"doc-{n:02}", "k": n // 10}) for n in range(40)))
    for descending in (False, True):
        low, high = (3, 1) if descending else (1, 3)
        ids = [
            row["id"]
            async for page in database.view_pages("d/v", low, high, page=7, descending=descending)
            for row in page
        ]
        assert sorted(ids) == [f"doc-{n:02}" for n in range(10, 40)]
        assert ids == sorted(ids, reverse=descending)
    assert (await database.reduced("d/v", 1, 2))[0]["value"] == 20
    with pytest.raises(NotFound):
        await database.view("d/nothing", None, None, limit=1)
    many = await database.server.request(
        "POST",
        "db/_design/d/_view/v/queries",
        body=orjson.dumps({"queries": [{"key": 1, "reduce": False}, {"reduce": True}]}),
    )
    assert [len(result["rows"]) for result in many["results"]] == [10, 1]


async def test_document_when_larger_than_couchdb_takes_then_refused_as_couchdb_does(
    database: Database, raw: Raw
) -> None:
    """By its fields alone, in any request; a list that is no document may be long."""
    large, small = {"text": "x" * 8_000_001}, {"text": "x" * 7_999_900}
    for method, path, body in (
        ("PUT", "db/large", large),
        ("POST", "db", {"_id": "large", **large}),
        ("POST", "db/_bulk_docs", {"docs": [{"_id": "small"}, {"_id": "large", **large}]}),
    ):
        assert (await raw(method, path, body))[:2] == (413, {"error": "document_too_large", "reason": "large"})
    assert await database.find("small") is None
    assert (await raw("PUT", "db/small", small))[0] == 201
    attached = {"_attachments": {"a": {"content_type": "text/plain", "data": "AAAA" * 2_500_000}}}
    assert (await raw("PUT", "db/attached", attached))[0] == 201
    assert (await raw("POST", "db/_all_docs", {"keys": ["x" * 1000] * 9000}))[0] == 200


async def test_routes_when_the_stock_layer_lacks_them_then_there(
    client: CouchServer, database: Database, raw: Raw
) -> None:
    """What CouchDB has and our tools ask for; the rest still comes from the stock layer."""
    assert (await raw("GET", "_up"))[1]["status"] == "ok"
    assert (await raw("POST", "_dbs_info", {"keys": ["db", "nope"]}))[1][0]["info"]["db_name"] == "db"
    assert (await raw("GET", "_node/_local/_config/couchdb/max_document_size"))[0] == 200
    await database.put({"_id": "_design/x", "views": {}})
    assert (await raw("GET", "db/_design_docs"))[1]["rows"][0]["id"] == "_design/x"
    await database.put({"_id": "_local/mine", "n": 1})
    assert (await raw("GET", "db/_local/mine"))[1]["n"] == 1
    await database.put({"_id": "doc", "n": 1})
    _, found, _ = await raw("POST", "db/_find", {"selector": {"n": 1}})
    assert [doc["_id"] for doc in found.get("docs", [found])] == ["doc"]
    assert (await raw("POST", "db/_revs_diff", {"doc": ["9-z"]}))[1]["doc"]["missing"] == ["9-z"]
    assert (await raw("GET", "db/_purge"))[0] == 404
    await client.create_database("copy")
    assert (await raw("POST", "_replicate", {"source": "db", "target": "copy"}))[0] == 200
    assert (await Database(client, "copy").info())["doc_count"] >= 1
    await client.delete_database("copy")
    assert len(await database.leaves("doc")) == 1


def test_server_when_stopped_and_started_then_data_and_password_are_there(tmp_path: Path) -> None:
    """On disk; a port that is taken is said plainly."""

    async def write(url: str) -> None:
        async with CouchServer(url) as client:
            await client.create_database("kept")
            await Database(client, "kept").put({"_id": "doc"})

    async def read(url: str) -> dict[str, Any]:
        async with CouchServer(url) as client:
            return await Database(client, "kept").get("doc")

    with EmbeddedServer(tmp_path) as first:
        asyncio.run(write(first.url))
        with pytest.raises(ConfigurationError, match=f"did not start on port {first.port}: EADDRINUSE"):
            EmbeddedServer(None, first.port).start()
    with EmbeddedServer(tmp_path) as second:
        assert second.password == first.password
        assert "hush" not in repr(second)
        assert asyncio.run(read(second.url))["_id"] == "doc"


def test_install_when_done_already_then_at_once() -> None:
    """Once per user."""
    assert install_server() == install_server()


TAKES_OVER = """function (doc) {
  Array.prototype.forEach = function (given) { given.constructor("return process")().exit(); };
  emit(doc._id);
}"""


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("function (doc) { doc.k = 1; emit(doc._id); }", ["a", "b"]),
        ("function (doc) { emit(doc._id); }; // a comment", ["a", "b"]),
        ("(doc) => { emit(doc._id, sum([1, 2])); };;", ["a", "b"]),
        ("function (doc) { if (doc._id === 'a') throw new Error('no'); emit(doc._id); }", ["b"]),
        ("function (doc) { emit(emit.constructor('return typeof process')()); }", ["undefined"] * 2),
        (TAKES_OVER, ["a", "b"]),
        ("function (doc) { emitted = given = call = null; emit(doc._id); }", ["a", "b"]),
        ("function (doc { emit(1); }", []),
    ],
)
async def test_view_when_its_function_is_odd_then_as_with_couchdb(
    database: Database, source: str, keys: list[str]
) -> None:
    """It is compiled once, may change what it is given, and gets at nothing of the server."""
    await database.put({"_id": "_design/d", "views": {"v": {"map": source}}})
    for doc_id in "ab":
        await database.put({"_id": doc_id})
    for _ in range(2):
        assert [row["key"] for row in await database.view("d/v", None, {}, limit=10)] == keys


@pytest.mark.parametrize(
    ("reduce", "value"),
    [
        ("_sum", 3),
        ("_count", 2),
        ("_stats", {"sum": 3, "min": 1, "max": 2, "count": 2, "sumsqr": 5}),
        ("function (keys, values) { return sum(values) + keys.length; }", 5),
        ("function (keys, values { }", None),
    ],
)
async def test_reduce_when_built_in_or_ones_own_then_its_value(database: Database, reduce: str, value: object) -> None:
    """One that is no function has none."""
    views = {"v": {"map": "function (doc) { emit(doc._id, doc.n); }", "reduce": reduce}}
    await database.put({"_id": "_design/d", "views": views})
    for number, doc_id in enumerate("ab", 1):
        await database.put({"_id": doc_id, "n": number})
    assert [row["value"] for row in await database.reduced("d/v", None, {}, group_level=0)] == [value]
