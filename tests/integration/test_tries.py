"""Tries of a job: what its errors, its time limit and its result lead to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from copies import put_on_all
from pydantic import BaseModel
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import (
    AbortJob,
    BadTriggerError,
)
from couchjobs.jobs.job import State
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


class Mail(BaseModel):
    """A message."""

    to: str
    times: int = 1


async def test_failure_when_tries_are_left_then_retried_in_the_document(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Each failed try is in `errors`; the last one makes the job errored."""
    tries: list[int] = []

    @worker("flaky", max_exec_count=3, retry_delay=0.05)
    def flaky(ctx: WorkerContext) -> str:
        tries.append(ctx.exec_count)
        if ctx.exec_count < 3:
            raise ValueError(f"try {ctx.exec_count}")
        return "at last"

    system = await start(flaky)
    job = await system.broker.push_job(db, JobRequest(worker_type="flaky"))
    ended = await wait(db, job.id, 10)
    assert tries == [1, 2, 3]
    assert ended.state is State.DONE
    assert [error.error for error in ended.errors] == ["ValueError: try 1", "ValueError: try 2"]
    assert ended.result == "at last"


async def test_failure_when_tries_are_spent_then_errored(connection: Connection, db: Prefixer, start: Start) -> None:
    """Options lower the tries that the worker allows, and never raise them."""

    @worker("bad", max_exec_count=2, retry_delay=0.01)
    async def bad(ctx: WorkerContext) -> None:
        raise RuntimeError("no")

    system = await start(bad)
    store = JobStore(connection, db)
    await store.database.put(
        {"_id": "a", "worker": "bad", "message": None, "state": "queued", "options": {"max_exec_count": 9}}
    )
    await store.database.put(
        {"_id": "b", "worker": "bad", "message": None, "state": "queued", "options": {"max_exec_count": 1}}
    )
    one, other = await wait(db, "a", 10), await wait(db, "b", 10)
    assert (one.state, one.exec_count, one.error) == (State.ERRORED, 2, "RuntimeError: no")
    assert (other.state, other.exec_count) == (State.ERRORED, 1)
    assert system.broker.workers_types() == ["bad"]


async def test_outcomes_when_worker_raises_then_as_the_table_says(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """AbortJob, a message that does not fit, no message, set_no_retry, a bad trigger: none is tried again."""

    @worker("raises", retry_delay=0.01, max_exec_count=5)
    async def raises(ctx: WorkerContext, message: str) -> None:
        match message:
            case "abort":
                raise AbortJob("enough")
            case "no retry":
                ctx.set_no_retry()
                raise ValueError("once")
            case "bad trigger":
                raise BadTriggerError(ValueError("nobody there"))

    @worker("mail", retry_delay=0.01, max_exec_count=5)
    async def mail(ctx: WorkerContext, message: Mail) -> str:
        return message.to

    system = await start(raises, mail)
    triggers = connection.database(db.database("triggers"))
    await triggers.put(
        {"_id": "trigger", "type": "@in", "arguments": "1h", "worker": "raises", "message": "bad trigger"}
    )

    async def end(worker_type: str, message: Any, **more: Any) -> Any:
        job = await system.broker.push_job(db, JobRequest(worker_type=worker_type, message=message, **more))
        ended = await wait(db, job.id, 10)
        assert ended.exec_count == 1
        return ended

    aborted = await end("raises", "abort")
    assert (aborted.state, aborted.result) == (State.DONE, "enough")
    assert (await end("raises", "no retry")).error == "ValueError: once"
    assert "does not fit" in (await end("mail", {"to": 5, "times": "x"})).error
    assert "to: " in (await end("mail", {"to": 5, "times": "x"})).error
    assert "no message" in (await end("mail", None)).error
    assert (await end("mail", {"to": "ann"})).result == "ann"
    ended = await end("raises", "bad trigger", trigger_id="trigger")
    assert ended.state is State.ERRORED
    await eventually(lambda: _gone(triggers, "trigger"))


async def _gone(database: Any, doc_id: str) -> bool:
    return await database.find(doc_id) is None


async def test_timeout_when_a_try_takes_too_long_then_it_fails(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """For coroutines and for threads; the option of the job may lower the limit."""
    cancelled = asyncio.Event()

    @worker("slow", timeout=30, max_exec_count=1)
    async def slow(ctx: WorkerContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @worker("slow thread", timeout=0.2, max_exec_count=1)
    def slow_thread(ctx: WorkerContext) -> None:
        while not ctx.cancelled:
            time.sleep(0.01)

    system = await start(slow, slow_thread)
    from couchjobs.jobs.job import JobOptions

    one = await system.broker.push_job(db, JobRequest(worker_type="slow", options=JobOptions(timeout=0.2)))
    other = await system.broker.push_job(db, JobRequest(worker_type="slow thread"))
    assert "no end within 0.2 s" in str((await wait(db, one.id, 10)).error)
    assert "no end within 0.2 s" in str((await wait(db, other.id, 10)).error)
    assert cancelled.is_set()


async def test_result_when_the_server_refuses_it_then_done_without_it_and_not_run_again(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The work is done; the job says what became of its result."""
    runs: list[int] = []

    @worker("large")
    async def large(ctx: WorkerContext) -> str:
        runs.append(1)
        return "refuse me"

    function = "function (doc) { if (doc.result) throw({forbidden: 'no results'}); }"
    await put_on_all(connection.database(db.database("jobs")), {"_id": "_design/v", "validate_doc_update": function})
    system = await start(large)
    job = await system.broker.push_job(db, JobRequest(worker_type="large"))
    ended = await wait(db, job.id, 10)
    assert (ended.state, ended.result) == (State.DONE, None)
    assert "no results" in ended.errors[-1].error
    assert len(runs) == 1
