"""What a daemon puts right, where the first attempt is not answered or not allowed."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from fault_proxy import FaultProxy, Refusal
from triggering import note, triggers_of
from waiting import eventually

from couchjobs.cluster.peers import Peers
from couchjobs.couch import surely
from couchjobs.couch.connection import Connection, connect
from couchjobs.installation import guard
from couchjobs.jobs.job import Job
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.audit import Audit
from couchjobs.recovery.conflicts import settle_conflicts
from couchjobs.recovery.lost import LostJobs
from couchjobs.settings import Settings
from couchjobs.timestamps import format_time
from couchjobs.workers.config import WorkersList
from couchjobs.workers.failure import Failures

A_DAY_S = 86_400
JOB = {"worker": "note", "message": None}


async def test_running_leaf_when_it_loses_in_guarded_mode_then_deleted_once(
    connection: Connection, db: Prefixer, urls: dict[str, str], settings_for: Callable[..., Settings]
) -> None:
    """By a worker, who is no administrator."""
    store = JobStore(connection, db)
    claim = {"id": "c", "daemon": "ghost", "at": "2026-01-01T00:00:00.000000Z"}
    ends = {"a": {**JOB, "state": "running", "exec_count": 1, "claim": claim}, "f": {**JOB, "state": "done"}}
    docs = [
        {
            "_id": "job",
            **leaf,
            "_rev": f"3-{name * 32}",
            "_revisions": {"start": 3, "ids": [name * 32, name * 31 + "0"]},
        }
        for name, leaf in ends.items()
    ]
    body = orjson.dumps({"docs": docs, "new_edits": False})
    await connection.server.request("POST", f"{store.database.path}/_bulk_docs", body=body)
    await guard(connection, db)
    peers = Peers("own", dead_after=1000)
    async with connect(settings_for(url=urls["worker"])) as of_worker:
        assert [await settle_conflicts(JobStore(of_worker, db).ends, peers, ["job"]) for _ in range(2)] == [1, 1]
    assert [leaf["state"] for leaf in await store.database.leaves("job")] == ["done"]


async def test_unconfirmed_claim_when_it_is_gone_then_the_others_are_given_up(
    connection: Connection, db: Prefixer
) -> None:
    """One that was purged, and one whose claim is still there."""
    store = JobStore(connection, db)
    rev = await store.database.put({"_id": "there", **JOB, "state": "queued"})
    job = Job.from_document({"_id": "there", "_rev": rev, **JOB, "state": "queued"})
    assert await store.claim(job, "own")
    claims = OwnClaims()
    claims.unconfirmed = dict.fromkeys(("purged", "there"), time.monotonic() - 60)
    await Audit(LostJobs(store, Peers("own", 1000), Failures(WorkersList(), "own")), claims).unconfirmed()
    assert claims.unconfirmed == {}
    assert (await store.get("there")).state == "queued"


async def test_mark_when_it_is_not_answered_then_asked_again_and_not_at_the_next_sweep(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """For longer than a request's patience."""
    until = time.monotonic() + 5

    def before(method: str, path: str, body: bytes) -> None:
        if b'"state":"errored"' in body and time.monotonic() < until:
            raise Refusal(503)

    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        await begin(note, url=proxy.url, request_timeout=1, sweep_interval=A_DAY_S)
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "bad", "worker": "note", "state": "queued"})

        async def is_marked() -> bool:
            return (await jobs.get("bad"))["state"] == "errored"

        await eventually(is_marked, 20)


async def test_firing_when_it_is_refused_and_its_errored_job_is_not_answered_then_that_is_written_later(
    connection: Connection, db: Prefixer, begin: Any, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An @at is deleted only once there is something to see of it."""
    monkeypatch.setattr(surely, "INSIST_S", 1.0)
    refused: list[float] = []

    def before(method: str, path: str, body: bytes) -> None:
        if b'"trigger_id":"at"' not in body or "_bulk_docs" not in path:
            return
        if b'"state":"queued"' in body:
            raise Refusal(403, {"by": "a firewall"})
        refused.append(time.monotonic())
        if refused[-1] - refused[0] < 4:
            raise Refusal(503)

    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        soon = format_time(datetime.now(UTC) + timedelta(seconds=0.5))
        triggers = triggers_of(connection, db)
        await begin(note, url=proxy.url, request_timeout=1, sweep_interval=A_DAY_S)
        await triggers.put({"_id": "at", "type": "@at", "arguments": soon, **JOB})

        async def is_fired() -> bool:
            return await triggers.find("at") is None

        await eventually(is_fired, 40)
        found = [doc async for page in connection.database(db.database("jobs")).all_docs() for doc in page]
        assert [doc["state"] for doc in found] == ["errored"]
        assert "firewall" in found[0]["error"] or "403" in found[0]["error"]
