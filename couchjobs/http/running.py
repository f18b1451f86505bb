"""Routes of what runs: queues, daemons, health."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from couchjobs.cluster.pauses import set_paused
from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.couch.codec import encode
from couchjobs.errors import CouchError
from couchjobs.http.access import CALLER
from couchjobs.http.api import API
from couchjobs.http.jsonapi import answer
from couchjobs.jobs.request import JobRequest
from couchjobs.overview import queues as summary

_PROBE_S = 0.08
"""Seconds that a probe waits for CouchDB: it is answered within 100 ms, whatever CouchDB does."""


async def queues(request: web.Request) -> web.Response:
    """GET /queues: each worker type, what waits and runs, what came of the last hour, who takes it."""
    api = request.app[API]
    rows = await summary(api.connection, api.db)
    may = request[CALLER].may
    return answer(
        [
            {"type": "queues", "id": row["worker"], "attributes": {name: row[name] for name in row if name != "worker"}}
            for row in rows
            if may("GET", "queues", JobRequest(worker_type=row["worker"]))
        ]
    )


async def pause(request: web.Request) -> web.Response:
    """POST /queues/{worker}/pause: no daemon claims its jobs any more, within a second."""
    return await _set_paused(request, is_paused=True)


async def resume(request: web.Request) -> web.Response:
    """POST /queues/{worker}/resume."""
    return await _set_paused(request, is_paused=False)


async def _set_paused(request: web.Request, *, is_paused: bool) -> web.Response:
    api, worker = request.app[API], request.match_info["worker"]
    request[CALLER].check("POST", "queues", JobRequest(worker_type=worker))
    changed = await set_paused(api.connection, api.db, worker, is_paused=is_paused)
    return answer({"type": "queues", "id": worker, "attributes": {"paused": is_paused}}, meta={"changed": changed})


async def daemons(request: web.Request) -> web.Response:
    """GET /daemons: the documents of those that serve the tenant."""
    api = request.app[API]
    request[CALLER].check("GET", "daemons")
    found = [one for one in await api.connection.control.with_prefix(DAEMON) if api.serves(one)]
    return answer([_daemon(one) for one in found])


def _daemon(document: dict[str, Any]) -> dict[str, Any]:
    attributes = {name: value for name, value in document.items() if name[:1] != "_" and name != "tenants"}
    return {"type": "daemons", "id": document["_id"].removeprefix(DAEMON), "attributes": attributes}


async def live(_request: web.Request) -> web.Response:
    """GET /health/live: 200: this process answers."""
    return _plain({"status": "ok"}, 200)


async def ready(request: web.Request) -> web.Response:
    """GET /health/ready: 200 where CouchDB answers, and the daemon, if there is one, beats; else 503."""
    api = request.app[API]
    began = time.monotonic()
    told: dict[str, Any] = {}
    try:
        async with asyncio.timeout(_PROBE_S):
            await api.connection.server.welcome()
        told["couchdb_ms"] = round(1000 * (time.monotonic() - began), 1)
    except (CouchError, TimeoutError):
        told["couchdb_ms"] = None
    if api.presence is not None:
        told["beat_age_s"] = round(api.presence.beat_age_s, 1)
        told["lost"] = api.presence.is_lost
        told["feed_age_s"] = round(api.feed_age_s or 0.0, 1)
        told["stopping"] = api.is_stopping
    is_ready = told["couchdb_ms"] is not None and not told.get("lost") and not told.get("stopping")
    return _plain({"status": "ok" if is_ready else "not ready", **told}, 200 if is_ready else 503)


def _plain(value: dict[str, Any], status: int) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type="application/json")
