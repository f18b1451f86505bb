"""10,000 odd documents through a running daemon: each bad one gets its reason, and the rest goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import BadDocumentError
from couchjobs.jobs.job import Job, State, is_job
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

JOBS, TRIGGERS, CONTROL = 8000, 1500, 500
SCALARS = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1e300,
    4_611_686_018_427_388_000,  # 2**62, as JavaScript has it: the embedded server refuses what it would round
    "",
    "x",
    "queued",
    "soon",
    "é\u0000",
    "9" * 400,
    "2026-13-45",
    "@at",
]
JOB = {"worker": "echo", "message": 1, "state": "queued"}
TRIGGER = {"type": "@every", "arguments": "1h", "worker": "echo", "message": 1}


def anything(chance: random.Random, depth: int = 4) -> Any:
    """Random JSON."""
    kind = chance.random()
    if depth == 0 or kind < 0.6:
        return chance.choice(SCALARS)
    if kind < 0.8:
        return [anything(chance, depth - 1) for _ in range(chance.randrange(4))]
    return {f"k{chance.randrange(9)}": anything(chance, depth - 1) for _ in range(chance.randrange(4))}


def spoilt(chance: random.Random, base: dict[str, Any], fields: list[str]) -> dict[str, Any]:
    """A good document with some fields replaced or taken away."""
    document = dict(base)
    for name in chance.sample(fields, chance.randrange(1, 4)):
        if chance.random() < 0.2:
            document.pop(name, None)
        else:
            document[name] = anything(chance)
    return document


@pytest.mark.timeout(500)
async def test_daemon_when_10000_odd_documents_are_written_then_each_bad_one_has_its_reason(
    connection: Connection, db: Prefixer, start: Callable[..., Any]
) -> None:
    """Jobs, triggers and documents of the control database, spoilt from good ones or random altogether."""

    @worker("echo", concurrency=50, max_exec_count=1)
    async def echo(ctx: WorkerContext, message: Any) -> Any:
        return message

    chance = random.Random(1)  # noqa: S311  the same documents in each run
    job_fields = [field.alias or name for name, field in Job.model_fields.items() if name not in ("id", "rev")]
    trigger_fields = [
        field.alias or name for name, field in TriggerInfos.model_fields.items() if name not in ("id", "rev")
    ]
    system = await start(echo, sweep_interval=3600, request_timeout=120)
    store, triggers = JobStore(connection, db), connection.database(db.database("triggers"))
    plans = [(store.database, JOB, job_fields, JOBS), (triggers, TRIGGER, trigger_fields, TRIGGERS)]
    writes = []
    for database, base, fields, count in plans:
        writer = connection.writer(database.name)
        for number in range(count):
            random_one = {f"f{n}": anything(chance) for n in range(3)} | ({"worker": "echo"} if number % 2 else {})
            document = random_one if number % 10 == 0 else spoilt(chance, base, fields)
            writes.append(writer.write({**document, "_id": f"doc-{number:05}"}))
    kinds = ("daemon:", "schedule:", "checkpoint:", "debounce:")
    for number in range(CONTROL):
        document = {name: anything(chance) for name in ("beat", "worker_types", "seq", "anchor", "domain", "at")}
        doc_id = f"{chance.choice(kinds)}{number}"
        writes.append(connection.writer(connection.control.name).write({**document, "_id": doc_id}))
    assert all(answer.stored for answer in await asyncio.gather(*writes))
    await store.database.put({**JOB, "_id": "good"})
    assert (await wait(db, "good", 200)).state is State.DONE

    async def unsettled() -> list[str]:
        found = []
        async for documents in store.database.all_docs():
            for document in documents:
                if is_job(document) and document.get("state") not in ("running", "done", "errored"):
                    try:
                        job = store.check(document)
                    except BadDocumentError:
                        found.append(document["_id"])
                    else:
                        found += [job.id] * (job.worker == "echo" and job.scheduled_at is None)
        return found

    async def settled() -> bool:
        return await unsettled() == []

    await eventually(settled, 200)
    async for documents in store.database.all_docs():
        assert all(document.get("error") for document in documents if document.get("state") == "errored")

    async def explained() -> bool:
        known = system.scheduler.triggers
        return len(known.bad) > TRIGGERS // 4 and all(known.bad.values())

    await eventually(explained, 30)
    assert system.broker.tasks.failures == {}
    assert system.scheduler._tasks.failures == {}
