"""The outage matrix: each kind of request of a daemon answered for some seconds in each way that goes wrong.

A cell is one kind and one way. While it lasts, documents change, ticks come, webhooks are fired, jobs fail and are
tried again, and one is cancelled; afterwards everything that should exist exists, once. A daemon runs at its default
settings, in this process, through a proxy that answers in the server's place. Beats and sweeps come each second where
they are what is refused: by default none might fall into the outage. Where it is logins, the session ends at once.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database
from couchjobs.errors import CouchjobsError
from couchjobs.installation import install
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.settings import load_settings
from couchjobs.system import JobSystem, system_start
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker

LASTS_S = 3.0
SETTLED_WITHIN_S = 45.0
EVENTS = 6
PLAIN = 6
_HANG = "hang"
_CUT = "cut"
_EMPTY = "empty"
_HTML = "html"
_ROW = "row error"
_MOVED = "301"

WAYS: list[str] = [
    *("400", "401", "403", "404", "405", "408", "409", "412", "413", "421", "429", "429 later", "451", "500", "503"),
    *("404 html", "403 html", "200 html", _MOVED, _HANG, _CUT, _EMPTY, _ROW),
]


def kind_of(method: str, path: str, body: bytes, control: str) -> str:  # noqa: PLR0911
    """Return which kind of request of a daemon this is; empty for one that is none of them."""
    if path == "/_session":
        return "logins"
    if "/_changes" in path:
        return "feeds"
    if "/_view/" in path:
        return "views"
    if path.endswith("/_bulk_get"):
        return "reads"
    if method in ("GET", "HEAD") or (b'"docs":[]' in body and "_bulk_docs" in path):
        return ""
    text = (path + " ").encode().replace(b"%3A", b":") + body
    if f"/{control}".encode() in text:
        named = [name for name in ("checkpoint:", "schedule:", "debounce:", "daemon:") if name.encode() in text]
        return {"checkpoint:": "checkpoints", "daemon:": "beats"}.get(named[0], "states") if named else ""
    if "triggers" in path:
        return "trigger deletions"
    if b'"state":"running"' in body:
        return "claims"
    if b'"state":"done"' in body or b'"state":"errored"' in body or b'"errors":[' in body:
        return "ends"
    return "firings" if b'"trigger_id"' in body else ""


KINDS = (
    *("claims", "ends", "firings", "checkpoints", "states", "beats", "feeds", "views", "reads", "trigger deletions"),
    "logins",
)
_OFTEN: dict[str, dict[str, float]] = {
    "beats": {"beat_interval": 1, "dead_after": 10},
    "views": {"sweep_interval": 1},
}


class OutageProxy:
    """Passes everything on to `target`, but for one kind of request, which it answers in one way while `on`."""

    def __init__(self, target: str, control: str, kind: str, way: str) -> None:
        url = URL(target)
        self._target = f"{url.scheme}://{url.host}:{url.port}"
        self._credentials = f"{url.raw_user}:{url.raw_password}@" if url.user else ""
        self._control = control
        self._kind = kind
        self._way = way
        self._session_ends = kind == "logins"
        self.on = False
        self.hit = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://{self._credentials}127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, body = request.raw_path, await request.read()
        if self.on and kind_of(request.method, path.split("?")[0], body, self._control) == self._kind:
            self.hit += 1
            answer = await self._instead(request)
            if answer is not None:
                return answer
        if self.on and self._session_ends and "Cookie" in request.headers:
            self._session_ends = False
            return web.json_response({"error": "unauthorized", "reason": "The session has ended."}, status=401)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        try:
            async with self._session.request(
                request.method, URL(self._target + path, encoded=True), data=body, headers=headers
            ) as found:
                data, status = await found.read(), found.status
                cookies = CIMultiDict(("Set-Cookie", value) for value in found.headers.getall("Set-Cookie", []))
        except (aiohttp.ClientError, OSError):
            return _close(request)
        if self.on and kind_of(request.method, path.split("?")[0], body, self._control) == self._kind:
            if self._way == _CUT:
                return await _cut(request, data)
            if self._way == _ROW and path.split("?")[0].endswith("/_bulk_get"):
                data = data.replace(b'"ok":', b'"error":{"error":"timeout","reason":"by the proxy"},"was":')
        return web.Response(status=status, body=data, headers=cookies, content_type="application/json")

    async def _instead(self, request: web.Request) -> web.StreamResponse | None:
        """Return the answer in the server's place; None where the server is asked."""
        way = self._way
        if way == _HANG:
            while self.on:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return _close(request)
        if way in (_CUT, _ROW):
            return None
        if way == _EMPTY:
            return web.json_response({"results": [], "last_seq": "0"} if self._kind == "feeds" else {})
        if way == _MOVED:
            return web.Response(status=301, headers={"Location": "https://elsewhere.invalid/"})
        status, _, what = way.partition(" ")
        if what == _HTML:
            return web.Response(status=int(status), text="<html>by the proxy</html>", content_type="text/html")
        headers = {"Retry-After": "1"} if what == "later" else {}
        names = {"404": "not_found", "409": "conflict", "401": "unauthorized", "403": "forbidden"}
        return web.json_response(
            {"error": names.get(status, "refused"), "reason": "by the proxy"}, status=int(status), headers=headers
        )


def _close(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _cut(request: web.Request, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(data)
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    return _close(request)


@dataclass
class Cell:
    """What came of one cell: what should exist and does not, what exists or ran twice, what has no end."""

    kind: str
    way: str
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    hit: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing of it is wrong, so far."""
        return not (self.lost or self.doubled or self.stuck)


async def run_cell(url: str, kind: str, way: str) -> Cell:
    """Run one cell on the server at that URL, in databases of its own, which are removed afterwards."""
    cell, name = Cell(kind, way), f"m{secrets.token_hex(5)}"
    began = time.monotonic()
    given = {"prefix": name, "domain": "test.example", "control_db": f"{name}-control"}
    async with connect(load_settings(url=url, **given)) as direct:
        await install(direct, direct.settings.tenant)
        await direct.server.create_database(f"{name}/orders")
        try:
            async with OutageProxy(url, f"{name}-control", kind, way) as proxy:
                async with connect(load_settings(url=proxy.url, **given, **_OFTEN.get(kind, {}))) as connection:
                    await _Play(cell, direct, connection, proxy).run()
                cell.hit = proxy.hit
                if not cell.hit:
                    cell.stuck.append("the outage: no request of this kind was made")
        finally:
            for database in await direct.server.all_databases():
                if database.startswith(name):
                    await direct.server.delete_database(database)
    cell.seconds = time.monotonic() - began
    return cell


class _Play:
    """What happens in a cell."""

    def __init__(self, cell: Cell, direct: Connection, connection: Connection, proxy: OutageProxy) -> None:
        self._cell = cell
        self._db = direct.settings.tenant
        self._proxy = proxy
        self._connection = connection
        self._jobs = self._database(direct, "jobs")
        self._triggers = self._database(direct, "triggers")
        self._orders = self._database(direct, "orders")
        self._ended_well: Counter[str] = Counter()
        self._failed_once: set[str] = set()
        self._webhooks = 0
        self._cancelled = asyncio.Event()

    def _database(self, connection: Connection, doctype: str) -> Database:
        return connection.database(self._db.database(doctype))

    def _workers(self) -> WorkersList:
        @worker("note", concurrency=20)
        async def note(ctx: WorkerContext) -> None:
            self._ended_well[ctx.id] += 1

        @worker("fails", concurrency=20, retry_delay=0.5, max_exec_count=20)
        async def fails(ctx: WorkerContext) -> None:
            if ctx.id not in self._failed_once:
                self._failed_once.add(ctx.id)
                raise ValueError("once")
            self._ended_well[ctx.id] += 1

        @worker("long", concurrency=5, max_exec_count=20)
        async def long(ctx: WorkerContext) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self._cancelled.set()
                raise

        return WorkersList(config_of(one) for one in (note, fails, long))

    async def run(self) -> None:
        every = {"type": "@every", "arguments": "1s", "worker": "note", "message": None}
        event = {"type": "@event", "arguments": "orders:CREATED,UPDATED", "worker": "note", "message": None}
        hook = {"type": "@webhook", "arguments": "", "worker": "note", "message": None, "debounce": "1s"}
        for trigger_id, trigger in (("every", every), ("event", event), ("hook", hook)):
            await self._triggers.put({"_id": trigger_id, **trigger})
        system = await system_start(CouchBroker(self._connection), CouchScheduler(self._connection), self._workers())
        try:
            await self._warm_up()
            await self._outage(system)
            await self._until_settled()
        finally:
            self._proxy.on = False
            async with asyncio.timeout(60):
                await system.shutdown(timeout=0)

    async def _warm_up(self) -> None:
        """Wait until all is well: each trigger has fired once."""
        await self._orders.put({"_id": "before"})
        await self._put_job("warm", "note")
        await self._put_job("runs", "long")
        await self._until(lambda docs: self._count(docs, "event") >= 1 or None, 20)
        await self._until(lambda docs: self._count(docs, "every") >= 1 or None, 20)
        await self._until(lambda docs: docs.get("runs", {}).get("state") == "running" or None, 20)

    async def _outage(self, system: JobSystem) -> None:
        soon = datetime.now(UTC) + timedelta(seconds=1.0)
        at = {"type": "@at", "arguments": soon.isoformat().replace("+00:00", "Z"), "worker": "note", "message": None}
        self._proxy.on = True
        hooks: list[asyncio.Task[bool]] = []
        await self._triggers.put({"_id": "at", **at})
        for number in range(EVENTS):
            await self._orders.put({"_id": f"order-{number}"})
            await self._put_job(f"plain-{number}", "note")
            await self._put_job(f"fails-{number}", "fails")
            hooks.append(asyncio.create_task(self._fire_hook(system, number)))
            if number == 2:
                running = await self._jobs.get("runs")
                await self._jobs.put({**running, "cancel_requested": True})
            await asyncio.sleep(LASTS_S / EVENTS)
        await self._until(lambda _: self._proxy.hit, SETTLED_WITHIN_S)  # a busy machine may be late with such a request
        self._proxy.on = False
        self._webhooks = sum(await asyncio.gather(*hooks))

    async def _fire_hook(self, system: JobSystem, number: int) -> bool:
        """Fire until it is taken, as a client would; return True."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            try:
                await system.scheduler.fire_webhook("hook", {"number": number})
                return True
            except CouchjobsError:
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.2)

    async def _put_job(self, job_id: str, worker_type: str) -> None:
        await self._jobs.put({"_id": job_id, "worker": worker_type, "message": None, "state": "queued"})

    async def _documents(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        async for page in self._jobs.all_docs():
            found |= {document["_id"]: document for document in page}
        return found

    async def _until(self, condition: Callable[[dict[str, Any]], Any], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition(await self._documents()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    @staticmethod
    def _count(documents: dict[str, Any], trigger_id: str) -> int:
        return sum(document.get("trigger_id") == trigger_id for document in documents.values())

    async def _until_settled(self) -> None:
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            await self._judge()
            if self._cell.good or self._cell.doubled or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.5)

    async def _judge(self) -> None:
        """Compare what is there with what should be."""
        documents, cell = await self._documents(), self._cell
        expected = [f"{kind}-{n}" for kind in ("plain", "fails") for n in range(EVENTS)]
        events = {
            document["event"]["doc"]["_id"] for document in documents.values() if document.get("trigger_id") == "event"
        }
        cell.lost = [f"job {one}" for one in expected if one not in documents]
        cell.lost += [f"event of order-{n}" for n in range(EVENTS) if f"order-{n}" not in events]
        if self._count(documents, "at") != 1:
            cell.lost.append("@at")
        cell.lost += self._missing_ticks(documents)
        payloads = [
            payload["number"]
            for document in documents.values()
            if document.get("trigger_id") == "hook"
            for payload in (document.get("payload") or {}).get("payloads", [])
        ]
        cell.lost += [f"payload {n}" for n in range(EVENTS) if n not in payloads]
        cell.doubled = [f"{job_id} ran {count} times" for job_id, count in self._ended_well.items() if count > 1]
        if len(events) < self._count(documents, "event"):
            cell.doubled.append("an event")
        recent = (datetime.now(UTC) - timedelta(seconds=2.5)).isoformat()
        cell.stuck = [
            f"{job_id} is {document['state']}"
            for job_id, document in documents.items()
            if document.get("worker") and document["state"] in ("queued", "running")
            if not (document.get("trigger_id") == "every" and document.get("queued_at", "") > recent)
        ]
        cell.stuck += [
            f"{job_id} errored: {document.get('error')}"
            for job_id, document in documents.items()
            if document.get("state") == "errored" and job_id != "runs"
        ]
        if not self._cancelled.is_set():
            cell.stuck.append("the cancellation")
        if await self._triggers.find("at") is not None:
            cell.stuck.append("the trigger @at")

    @staticmethod
    def _missing_ticks(documents: dict[str, Any]) -> list[str]:
        ticks = sorted(
            datetime.fromisoformat(document["queued_at"])
            for document in documents.values()
            if document.get("trigger_id") == "every"
        )
        return [
            f"ticks between {one:%S.%f} and {other:%S.%f}"
            for one, other in itertools.pairwise(ticks)
            if (other - one).total_seconds() > 1.5
        ]
