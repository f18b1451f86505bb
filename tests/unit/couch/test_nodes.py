"""Several nodes of a cluster: which one is asked, and when another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientHttpProxyError, RequestInfo, web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict, CIMultiDictProxy
from waiting import eventually
from yarl import URL

from couchjobs.couch import nodes, transport
from couchjobs.couch.client import CouchServer
from couchjobs.couch.login import split_urls
from couchjobs.couch.nodes import Nodes
from couchjobs.couch.transport import Transport
from couchjobs.errors import ConfigurationError, Unavailable, Unreachable


class Node:
    """A server that tells its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = 200
        self.cuts = False
        self.hangs = False
        self.status = 200
        self.page: web.Response | None = None
        self.asked = 0
        self._server: TestServer | None = None
        self._port: int | None = None

    async def start(self) -> None:
        """Answer, at the same port as before."""
        app = web.Application()
        app.router.add_get("/_up", self._say_up)
        app.router.add_get("/", self._say)
        app.router.add_post("/_session", self._log_in)
        app.router.add_post("/db/{what}", self._say)
        self._server = TestServer(app, port=self._port)
        await self._server.start_server()
        self._port = self._server.port

    async def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            await self._server.close()
            self._server = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._port}"

    async def _say_up(self, _request: web.Request) -> web.Response:
        if self.hangs:
            await asyncio.sleep(60)
        return self._page() or web.json_response({"status": "ok"}, status=self.up)

    async def _log_in(self, _request: web.Request) -> web.Response:
        answer = self._page() or web.json_response({"ok": True})
        if self.page is None:
            answer.set_cookie("AuthSession", self.name)
        return answer

    def _page(self) -> web.Response | None:
        if self.page is None:
            return None
        return web.Response(body=self.page.body, status=self.page.status, headers=self.page.headers)

    async def _say(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.cuts and request.transport is not None:
            request.transport.abort()
        if self.hangs:
            await asyncio.sleep(60)
        return self._page() or web.json_response({"couchdb": self.name}, status=self.status)


@pytest.fixture
async def two() -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that answer."""
    found = Node("first"), Node("second")
    for node in found:
        await node.start()
    yield found
    for node in found:
        await node.stop()


async def test_nodes_when_the_first_stops_then_the_next_is_asked_until_it_is_up(
    two: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent to a node that is not there: the request itself goes on; one that is being mended waits."""
    monkeypatch.setattr(nodes, "LOOK_BACK_S", 0.0)
    first, second = two
    async with CouchServer(f"{first.url}, {second.url}") as server:
        assert (await server.welcome())["couchdb"] == "first"
        await first.stop()
        assert (await server.welcome())["couchdb"] == "second"
        assert server.nodes.in_use == second.url
        assert server.url == first.url, "by which all are called"
        first.up = 404
        await first.start()
        for _ in range(3):
            assert (await server.welcome())["couchdb"] == "second"
        first.up = 200

        async def back() -> bool:
            return (await server.welcome())["couchdb"] == "first"

        await eventually(back)
        await first.stop()
        await second.stop()
        with pytest.raises(Unreachable):
            await server.welcome()
        await second.start()
        assert (await server.welcome())["couchdb"] == "second"


async def test_nodes_when_an_answer_is_lost_then_the_caller_is_told_and_the_next_request_goes_elsewhere(
    two: tuple[Node, Node],
) -> None:
    """It may have been taken: nobody sends it again but who knows what it was."""
    first, second = two
    async with CouchServer(f"{first.url},{second.url}") as server:
        await server.welcome()
        first.cuts = True
        with pytest.raises(Unavailable):
            await server.welcome()
        asked = first.asked
        assert (await server.welcome())["couchdb"] == "second"
        assert first.asked == asked


async def test_nodes_when_the_first_hangs_or_is_broken_then_the_next_is_asked_soon(
    two: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before a request's own time is over; a slow answer of a node that is there is waited for."""
    monkeypatch.setattr(transport, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(transport, "_LOOK_BACK_S", 0.3)
    first, second = two
    async with CouchServer(f"{first.url},{second.url}") as server:
        await server.welcome()
        first.hangs, began = True, time.monotonic()
        with pytest.raises(Unavailable, match="hangs"):
            await server.welcome()
        assert (await server.welcome())["couchdb"] == "second"
        assert time.monotonic() - began < 10
    first.hangs, first.status = False, 503
    async with CouchServer(f"{first.url},{second.url}") as server:
        with pytest.raises(Unavailable):
            await server.welcome()
        assert (await server.welcome())["couchdb"] == "second"


@pytest.mark.parametrize(
    ("error", "reason", "path", "is_left"),
    [
        ("unknown_error", "function_clause", "db/_bulk_docs", False),
        ("case_clause", "5", "db/_bulk_docs", False),
        ("unknown_error", "function_clause", "db/_all_docs", True),
        ("unknown_error", "No DB shards could be opened.", "db/_bulk_docs", True),
    ],
)
async def test_nodes_when_couchdb_stumbles_over_a_document_then_the_node_is_not_left(
    two: tuple[Node, Node], error: str, reason: str, path: str, is_left: bool
) -> None:
    """Every node would, over what is written; over what is read, something is wrong with that one."""
    first, second = two
    first.page = web.json_response({"error": error, "reason": reason}, status=500)
    async with CouchServer(f"{first.url},{second.url}") as server:
        with pytest.raises(Unavailable, match=reason):
            await server.request("POST", path, body=b"{}")
        assert (server.nodes.in_use == second.url) is is_left


async def test_nodes_when_many_ask_at_once_then_the_answers_of_the_one_that_was_left_count_no_more(
    two: tuple[Node, Node],
) -> None:
    """Its successor is well."""
    first, second = two
    first.page = PAGES["a page"]
    async with CouchServer(f"{first.url},{second.url}") as server:
        for _ in range(3):
            await asyncio.gather(*(server.welcome() for _ in range(12)), return_exceptions=True)
            assert server.nodes.in_use == second.url
        assert (await server.welcome())["couchdb"] == "second"


PAGES = {
    "a page": web.Response(text="<html>We are back soon</html>", content_type="text/html"),
    "an error's page": web.Response(text="<html>Not here</html>", content_type="text/html", status=404),
    "a refusal's page": web.Response(text="<html>No</html>", content_type="text/html", status=403),
    "other JSON": web.json_response({}),
    "another place": web.Response(status=302, headers={"Location": "https://elsewhere.example"}),
}


@pytest.mark.parametrize("what", PAGES)
@pytest.mark.parametrize("user", ["", "a:b@"])
async def test_nodes_when_something_else_answers_at_the_first_then_the_next_is_asked(
    two: tuple[Node, Node], what: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, and once it was well; nobody goes back to it before it is CouchDB that says that it is up."""
    monkeypatch.setattr(nodes, "LOOK_BACK_S", 0.0)
    first, second = two
    first.page = PAGES[what]

    async with CouchServer(f"{first.url},{second.url}".replace("//", f"//{user}")) as server:

        async def is_asked(name: str) -> bool:
            try:
                return (await server.welcome())["couchdb"] == name
            except Unavailable:
                return False

        for page, name in ((PAGES[what], "second"), (None, "first"), (PAGES[what], "second")):
            first.page = page
            await eventually(lambda name=name: is_asked(name))
            for _ in range(10):
                assert await is_asked(name)


def test_urls_when_of_several_nodes_then_one_user() -> None:
    """A comma in a password is none between two URLs."""
    assert split_urls("http://a:b,c@h:1") == (["http://h:1"], "a", "b,c")
    assert split_urls("http://a:b@h:1 , https://i") == (["http://h:1", "https://i"], "a", "b")
    assert split_urls("http://h:1,http://a:b@i:2")[1:] == ("a", "b")
    with pytest.raises(ConfigurationError, match="same user"):
        split_urls("http://a:b@h:1,http://c:d@i:2")
    with pytest.raises(ConfigurationError, match="must look like"):
        split_urls("h,i")


async def test_request_when_its_body_comes_in_pieces_then_it_takes_no_place_of_those_that_are_quick() -> None:
    """Whoever gives the pieces may take an hour: 64 of them would hold up claims and ends."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    for body, waits in ((b"x", False), (None, False), (pieces(), True)):
        transport = Transport(1.0, None, Nodes(["http://127.0.0.1:9"]))
        with pytest.raises(Unreachable):
            await transport.send("PUT", "http://127.0.0.1:9/db/doc/name", headers={}, body=body)
        assert [*transport._sessions] == [waits]
        await transport.close()


def test_request_when_a_proxy_refuses_then_its_password_is_not_in_the_error() -> None:
    """Aiohttp quotes the URL of the proxy, and errors of requests are shown to people."""
    transport = Transport(1.0, None, Nodes(["http://127.0.0.1:9"]))
    url = URL("http://svc:hunter2@127.0.0.1:8080")
    with pytest.raises(Unavailable) as raised, transport._told("GET", "http://127.0.0.1:9/"):
        raise ClientHttpProxyError(RequestInfo(url, "CONNECT", CIMultiDictProxy(CIMultiDict()), url), (), status=407)
    assert "hunter2" not in str(raised.value)
    assert "407" in str(raised.value)
