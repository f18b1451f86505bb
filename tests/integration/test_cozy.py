"""Documents that a cozy-stack wrote: read, run, updated, and everything else in them left as it was.

Written by hand after its public documentation of the doctypes io.cozy.jobs and io.cozy.triggers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import orjson
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.queries import get_jobs
from couchjobs.prefixer import Prefixer
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]
COZY = {"jobs_doctype": "io.cozy.jobs", "triggers_doctype": "io.cozy.triggers", "go_durations": True}
NEVER = "0001-01-01T00:00:00Z"
METADATA = {
    "cozyMetadata": {"doctypeVersion": "1", "metadataVersion": 1, "createdByApp": "banks", "createdAt": NEVER},
    "couch_cluster": 2,
}


def old_message(value: Any) -> dict[str, Any]:
    """The form in which messages were stored at first."""
    return {"Type": "json", "Data": base64.b64encode(orjson.dumps(value)).decode()}


def cozy_job(job_id: str, **more: Any) -> dict[str, Any]:
    """A queued job as the stack stores it: every field, zero times included."""
    return {
        "_id": job_id,
        "domain": "alice.example.com",
        "prefix": "prefix0123",
        "worker": "konnector",
        "trigger_id": "",
        "message": {"konnector": "trainline", "account": "a-1"},
        "event": None,
        "payload": None,
        "manual_execution": True,
        "options": {"max_exec_count": 1, "max_exec_time": 0, "timeout": 30_000_000_000},
        "state": "queued",
        "queued_at": "2026-11-20T10:00:00.123456789+01:00",
        "started_at": NEVER,
        "finished_at": NEVER,
        "forward_logs": True,
        **METADATA,
        **more,
    }


TRIGGERS: list[dict[str, Any]] = [
    {
        "_id": "every",
        "type": "@every",
        "arguments": "1h",
        "worker": "konnector",
        "debounce": "",
        "options": None,
        "message": {"konnector": "trainline"},
    },
    {
        "_id": "event",
        "type": "@event",
        "arguments": "io.cozy.files:CREATED,UPDATED:image/jpeg:mime",
        "worker": "konnector",
        "debounce": "",
        "options": {"max_exec_count": 2, "max_exec_time": 0, "timeout": 20_000_000_000},
        "message": old_message({"konnector": "thumbnail"}),
        "current_state": {"status": "done"},
    },
]


async def test_cozy_documents_when_a_daemon_runs_then_read_run_and_updated_and_nothing_else_changed(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Old messages, zero times, Go's nanoseconds, fields that only the stack knows."""
    seen: dict[str, tuple[Any, Any]] = {}

    @worker("konnector")
    async def konnector(ctx: WorkerContext, message: dict[str, Any]) -> None:
        seen[ctx.id] = (message, ctx.job.options and ctx.job.options.timeout)
        if message["konnector"] == "breaks":
            raise OSError("down")

    written = [
        cozy_job("new"),
        cozy_job("old", message=old_message({"konnector": "ameli"})),
        cozy_job("breaks", message={"konnector": "breaks"}, note={"kept": [1, {"deep": True}]}),
        cozy_job(
            "zeros", message={"konnector": "zeros"}, options={"max_exec_count": 0, "max_exec_time": 0, "timeout": 0}
        ),
        cozy_job("done", state="done", finished_at="2026-11-20T10:00:07Z"),
    ]
    for doctype in (*COZY.values(), "io.cozy.files"):
        if isinstance(doctype, str):
            await connection.server.create_database(db.database(doctype))
    jobs = connection.database(db.database("io.cozy.jobs"))
    triggers = connection.database(db.database("io.cozy.triggers"))
    files = connection.database(db.database("io.cozy.files"))
    for document in written:
        await jobs.put(document)
    for trigger in TRIGGERS:
        await triggers.put({**trigger, "domain": "alice.example.com", "prefix": "prefix0123", **METADATA})
    system = await start(konnector, **COZY)

    async def ended() -> Any:
        found = await jobs.get_many(document["_id"] for document in written)
        return found if all(job["state"] in ("done", "errored") for job in found.values()) else None

    found = await eventually(ended)
    assert {job_id: job["state"] for job_id, job in found.items()} == {
        "new": "done",
        "old": "done",
        "breaks": "errored",
        "zeros": "done",
        "done": "done",
    }
    assert seen["new"] == ({"konnector": "trainline", "account": "a-1"}, 30)
    assert seen["old"] == ({"konnector": "ameli"}, 30)
    assert seen["zeros"] == ({"konnector": "zeros"}, None), "zero is what Go writes for nothing"
    assert "done" not in seen
    moved = {"_rev", "state", "started_at", "finished_at", "exec_count", "claim", "error", "errors"}
    for document in written:
        after = found[document["_id"]]
        assert {name: after[name] for name in document if name not in moved} == {
            name: value for name, value in document.items() if name not in moved
        }
    assert {infos.id for infos in await system.scheduler.get_all_triggers(db)} == {"every", "event"}
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await files.put({"_id": "photo", "mime": "image/jpeg", "name": "a.jpg"})

    async def fired() -> list[Job]:
        return [job for job in await get_jobs(db, "event") if job.state is State.DONE]

    (job,) = await eventually(fired)
    assert seen[job.id] == ({"konnector": "thumbnail"}, 20)
    assert job.document()["options"] == {"max_exec_count": 2, "timeout": 20_000_000_000}


async def test_options_when_in_gos_nanoseconds_then_so_wherever_they_are_read_or_written(
    connection: Connection, db: Prefixer, settings_for: Callable[..., Any]
) -> None:
    """Where only `timeout` was set, Go stores zeros beside it; what people give in seconds is stored as Go reads it."""
    for doctype in ("io.cozy.jobs", "io.cozy.triggers"):
        await connection.server.create_database(db.database(doctype))
    jobs = connection.database(db.database("io.cozy.jobs"))
    options = {"max_exec_count": 0, "max_exec_time": 0, "timeout": 20_000_000_000}
    await jobs.put(cozy_job("good", options=options))
    await jobs.put(cozy_job("odd", options=options, started_at=["then"]))
    async with Couchjobs(settings=settings_for(**COZY)) as client:
        for job_id in ("good", "odd"):
            found = (await client.get(job_id)).options
            assert found is not None
            assert (found.max_exec_count, found.max_exec_time, found.timeout) == (None, None, 20)
        cron = {"type": "@cron", "arguments": "0 3 * * *", "worker": "konnector", "message": None}
        added = await client.triggers.add(TriggerInfos.from_document({**cron, "options": {"timeout": 30}}))
        changed = await client.triggers.update(added.id, options={"timeout": 60_000_000_000, "max_exec_count": 2})
        assert added.options is not None
        assert changed.options is not None
        assert (added.options.timeout, changed.options.timeout) == (30, 60)
    stored = await connection.database(db.database("io.cozy.triggers")).get(added.id)
    assert stored["options"] == {"timeout": 60_000_000_000, "max_exec_count": 2}
