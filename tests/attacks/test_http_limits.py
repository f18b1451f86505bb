"""Who asks over HTTP and does not listen, does not finish, or asks for very much: the process has jobs to do."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import aiohttp
import orjson
import pytest
from copies import put_on_all
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.http import limits
from couchjobs.http.server import HttpServer
from couchjobs.jobs.queries import JobFilter, page_of
from couchjobs.prefixer import Prefixer

OLD = "2026-01-01T00:00:{:02}.000000Z"
HALF = b"POST /jobs/webhooks/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture
async def server(connection: Connection) -> AsyncIterator[HttpServer]:
    """One that listens on a free port."""
    server = HttpServer(connection, ("127.0.0.1", 0))
    await server.start()
    yield server
    await server.stop()


def port_of(server: HttpServer) -> int:
    """Where it listens."""
    return int(server.url.rpartition(":")[2])


async def health(server: HttpServer) -> int:
    """The status of an answer to somebody new."""
    async with aiohttp.ClientSession() as http, http.get(f"{server.url}/health/live") as answer:
        return answer.status


async def put_jobs(connection: Connection, db: Prefixer, count: int, size: int) -> None:
    """Ended jobs with messages of so many bytes, the last one being the newest."""
    jobs = connection.database(db.database("jobs"))
    for number in range(count):
        ended = {"state": "done", "queued_at": OLD.format(number), "worker": f"w{number % 3}"}
        await put_on_all(jobs, {"_id": f"job-{number:02}", "message": "x" * size, **ended})


async def test_connections_when_strangers_hold_too_many_then_one_more_is_closed_and_later_taken(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a request each; the descriptors that CouchDB and jobs need are left alone."""
    held = []
    most = min(limits._MOST_CONNECTIONS, 40)
    monkeypatch.setattr(server._limits, "_most", most)
    for _ in range(most):
        held.append(await asyncio.open_connection("127.0.0.1", port_of(server)))
        held[-1][1].write(HALF)

    async def all_there() -> bool:
        return len(cast("Any", server._runner).server.connections) == most

    await eventually(all_there)
    with pytest.raises(aiohttp.ClientError):
        await health(server)
    for _, writer in held:
        writer.close()
    async with asyncio.timeout(10):
        while True:
            with suppress(aiohttp.ClientError):
                assert await health(server) == 200
                break


async def test_connection_when_its_request_does_not_come_then_closed(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing at all, half a head, and half a body."""
    monkeypatch.setattr(limits, "_FIRST_REQUEST_S", 0.3)
    monkeypatch.setattr("couchjobs.http.jsonapi._BODY_S", 0.3)
    for part in (b"", HALF[:20], HALF + b"12345"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(part)
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                told = await reader.read(4096)
                assert told == b"" or b" 408 " in told
        writer.close()
    assert await health(server) == 200

    async def nobody_there() -> bool:  # what comes after the answer is read for a while
        return not cast("Any", server._runner).server.connections

    await eventually(nobody_there, 20)


async def test_connection_when_it_has_had_its_answer_then_not_kept_for_long(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else strangers hold all there are, after one refused request each."""
    monkeypatch.setattr("couchjobs.http.server.KEPT_S", 0.3)
    server = HttpServer(connection, ("127.0.0.1", 0))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    async with asyncio.timeout(20):
        assert b" 200 " in await reader.read()
    writer.close()
    await server.stop()


async def test_list_when_its_jobs_are_large_then_a_page_holds_fewer_and_none_is_left_out(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch, server: HttpServer
) -> None:
    """By one range of the views or several; the pages together hold each job once, the newest first."""
    await put_jobs(connection, db, 12, 2000)
    page, after = await page_of(connection, db, JobFilter(), 50)
    assert (len(page), after) == (12, None)
    for wanted in (JobFilter(), JobFilter(workers=("w0", "w1", "w2"))):
        page, after = await page_of(connection, db, wanted, 50, most_bytes=5000)
        assert ([one["_id"] for one in page], after is not None) == (["job-11", "job-10"], True)
    page, after = await page_of(connection, db, JobFilter(), 50, most_bytes=1)
    assert ([one["_id"] for one in page], after is not None) == (["job-11"], True)

    monkeypatch.setattr("couchjobs.http.jobs.MOST_BYTES", 5000)
    found: list[str] = []
    url = "/jobs?page[size]=500"
    async with aiohttp.ClientSession(server.url) as http:
        while url:
            told: dict[str, Any] = await (await http.get(url)).json(content_type=None)
            assert len(told["data"]) <= 3
            found += [one["id"] for one in told["data"]]
            url = told.get("links", {}).get("next", "")
    assert found == [f"job-{number:02}" for number in reversed(range(12))]


async def test_answer_when_nobody_reads_it_then_the_connection_ends(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch, server: HttpServer
) -> None:
    """And what waits for its turn behind it gets it."""
    monkeypatch.setattr(limits, "_UNREAD_S", 1.0)
    await put_jobs(connection, db, 4, 900_000)
    path = b"/jobs?page[size]=500"
    held = []
    for _ in range(6):  # of one caller four at once
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port_of(server)))
        request = b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(one, request)
        held.append(one)
    async with aiohttp.ClientSession(server.url) as http, asyncio.timeout(40):
        answer = await http.get(path.decode())
        assert len(orjson.loads(await answer.read())["data"]) == 4
    for one in held:
        one.close()


async def test_events_when_the_token_is_revoked_while_the_backlog_is_read_then_it_ends(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch, server: HttpServer
) -> None:
    """What has happened since the reader was here is asked for, page by page."""
    monkeypatch.setattr("couchjobs.http.streams._ASK_S", 0.0)
    monkeypatch.setattr("couchjobs.http.events._PAGE", 2)
    await put_jobs(connection, db, 12, 10)
    asked = 0

    async def still(*_: Any) -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    monkeypatch.setattr("couchjobs.http.access.Access._is_still", still)
    beginning = base64.urlsafe_b64encode(orjson.dumps({db.database("jobs"): "0"})).decode()
    async with aiohttp.ClientSession(server.url) as http, asyncio.timeout(20):
        answer = await http.get("/events", headers={"Last-Event-ID": beginning})
        told = await answer.text()
    assert 1 <= told.count("event: job") <= 4


async def test_events_when_many_read_the_past_then_who_waits_hears_that_the_connection_lives(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch, server: HttpServer
) -> None:
    """A proxy cuts what says nothing for half a minute."""
    monkeypatch.setattr("couchjobs.http.streams.BEAT_S", 0.05)
    await put_jobs(connection, db, 1, 10)
    release = asyncio.Event()

    async def slow(*_: Any) -> AsyncIterator[Any]:
        await release.wait()
        return
        yield

    monkeypatch.setattr("couchjobs.http.events.pages_since", slow)
    beginning = base64.urlsafe_b64encode(orjson.dumps({db.database("jobs"): "0"})).decode()
    async with (
        asyncio.timeout(20),
        aiohttp.ClientSession(server.url) as http,
        http.get("/events", headers={"Last-Event-ID": beginning}) as answer,
    ):
        told = b""
        while told.count(b": beat") < 2:
            told += await answer.content.readany()
        release.set()
