"""Failures that explain themselves: what is recorded of a try, what the log says, and who is told of an end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemons import AS_USERS_HAVE, DaemonProcess
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import JobFailedError, MessageNilError
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers import failure
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.failure import on_failed
from couchjobs.workers.registry import worker

Start = Callable[..., Any]
PROGRAM = """
import os, signal, sys
from pathlib import Path
from couchjobs import worker

HERE = Path(__file__).parent

def told(ctx, error):
    with (HERE / "told.txt").open("a") as file:
        print(ctx.id, ctx.exec_count, error.cause, str(error), sep="|", file=file)
    if (HERE / "dies-once").exists():
        (HERE / "dies-once").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

@worker("dies", max_exec_count=1, on_failed=told)
async def dies(ctx):
    os.kill(os.getpid(), signal.SIGKILL)

@worker("fails", max_exec_count=1, on_failed=told)
async def fails(ctx):
    raise ValueError("for good")
"""


async def test_try_when_it_fails_then_the_document_and_the_log_say_where_and_how_long(
    connection: Connection, db: Prefixer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """The frames are the user's own; credentials are left out; the waits between tries are not counted."""
    caplog.set_level(logging.INFO)

    def look_up(order: dict[str, Any]) -> str:
        return str(order["order"])

    @worker("receipts", max_exec_count=2, retry_delay=0.3)
    async def receipts(ctx: WorkerContext) -> None:
        try:
            look_up({})
        except KeyError as error:
            raise ValueError("no order at https://ann:s3cret@db.example.org/") from error

    system = await start(receipts)
    job = await wait(db, (await system.broker.push_job(db, JobRequest(worker_type="receipts"))).id, 10)
    assert (job.state, job.exec_count) == (State.ERRORED, 2)
    first, second = job.errors
    for error in (first, second):
        assert error.traceback is not None
        assert "in look_up" in error.traceback
        assert "KeyError: 'order'" in error.traceback
        assert error.traceback.endswith("ValueError: no order at https://***@db.example.org/")
        assert "couchjobs/workers" not in error.traceback
        assert len(error.traceback) <= 4003
        assert error.seconds is not None
        assert error.seconds < 0.25
        assert error.started_at is not None
    assert first.started_at < second.started_at
    assert job.seconds == second.seconds
    assert "s3cret" not in str(job.document())


async def test_seconds_when_done_then_those_of_the_try(connection: Connection, db: Prefixer, start: Start) -> None:
    """Of a job that waited for its second try, the second alone."""

    @worker("slow", retry_delay=0.5)
    def slow(ctx: WorkerContext) -> None:
        if ctx.exec_count == 1:
            raise ValueError("once")

    system = await start(slow)
    job = await wait(db, (await system.broker.push_job(db, JobRequest(worker_type="slow"))).id, 10)
    assert job.state is State.DONE
    assert job.seconds is not None
    assert 0 <= job.seconds < 0.4
    await JobStore(connection, db).requeue(job)
    assert "seconds" not in job.document()


async def test_cancelled_when_it_was_then_told_from_failed(connection: Connection, db: Prefixer, start: Start) -> None:
    """By a field of its own; done again, it is gone."""
    store = JobStore(connection, db)
    await store.database.put(
        {"_id": "a", "worker": "none", "message": None, "state": "queued", "cancel_requested": True}
    )

    @worker("none")
    async def none(ctx: WorkerContext) -> None:
        """Do nothing."""

    await start(none)
    job = await wait(db, "a", 10)
    assert (job.state, job.cancelled, job.error) == (State.ERRORED, True, "cancelled")
    await store.requeue(job)
    job = await wait(db, "a", 10)
    assert (job.state, job.cancelled) == (State.DONE, False)


async def test_on_failed_when_a_job_has_failed_for_good_then_told_once_with_the_cause(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tries spent, an error that is never tried again, a bad document, one that its worker does not take."""
    monkeypatch.setattr(failure, "_for_all", [])
    told: dict[str, list[Any]] = {}
    for_all: list[str] = []

    async def note(ctx: WorkerContext, error: JobFailedError) -> None:
        told.setdefault(ctx.id, []).append((error.cause, str(error), bool(error.traceback), ctx.job.state))

    @on_failed
    def all_types(ctx: WorkerContext, error: JobFailedError) -> None:
        for_all.append(ctx.id)
        raise RuntimeError("which is logged")

    @worker("w", max_exec_count=2, retry_delay=0.01, on_failed=note)
    async def fails(ctx: WorkerContext) -> None:
        if ctx.id == "nil":
            raise MessageNilError("none")
        if ctx.id != "good":
            raise ValueError("no")

    @worker("admin", admin_only=True, on_failed=note)
    async def admin(ctx: WorkerContext) -> None:
        """Do nothing."""

    await start(fails, admin)
    jobs = JobStore(connection, db).database
    base = {"worker": "w", "message": None, "state": "queued"}
    for job_id, more in {
        "tries": {},
        "nil": {},
        "good": {},
        "cancelled": {"cancel_requested": True},
        "bad": {"priority": "high"},
        "refused": {"worker": "admin"},
    }.items():
        await jobs.put({"_id": job_id, **base, **more})
    ids = ("tries", "nil", "good", "cancelled", "bad", "refused")
    ended = {job_id: await wait(db, job_id, 60) for job_id in ids}
    assert {job_id for job_id, job in ended.items() if job.state is State.DONE} == {"good"}
    assert told.keys() == {"tries", "nil", "bad", "refused"}
    assert told["tries"] == [("tries", "ValueError: no", True, State.RUNNING)]
    assert told["nil"] == [("tries", "MessageNilError: none", True, State.RUNNING)]
    assert [told[job_id][0][0] for job_id in ("bad", "refused")] == ["refused", "refused"]
    assert "admin=True" in told["refused"][0][1]
    assert sorted(for_all) == sorted(told)
    for job_id in ("tries", "nil"):
        assert ended[job_id].error == told[job_id][0][1]
        assert "ending" not in ended[job_id].document()


@pytest.mark.parametrize("dies_while_telling", [False, True])
async def test_on_failed_when_daemons_are_killed_then_told_by_another(
    connection: Connection, db: Prefixer, server_url: str, name: str, tmp_path: Path, *, dies_while_telling: bool
) -> None:
    """Kill -9 in the function, or while it is told: who finds the job tells of it, and stores that end."""
    (tmp_path / "program.py").write_text(PROGRAM)
    worker_type = "fails" if dies_while_telling else "dies"
    if dies_while_telling:
        (tmp_path / "dies-once").touch()
    quick = {**AS_USERS_HAVE, "beat_interval": 0.5, "dead_after": 2}
    given = {"url": server_url, "prefix": db.db_prefix, "domain": db.domain, "control_db": connection.control.name}
    first = DaemonProcess(tmp_path, "program", "first", **quick, **given)
    second: DaemonProcess | None = None
    try:
        await eventually(lambda: first.says("daemon runs"))
        store = JobStore(connection, db)
        await store.database.put({"_id": "job", "worker": worker_type, "message": None, "state": "queued"})
        assert first.wait() == -signal.SIGKILL
        second = DaemonProcess(tmp_path, "program", "second", **quick, **given)
        ended = await wait(db, "job", 30)
    finally:
        first.end()
        if second is not None:
            second.end()
    lines = (tmp_path / "told.txt").read_text().splitlines()
    assert (ended.state, ended.exec_count) == (State.ERRORED, 1)
    if dies_while_telling:
        assert lines == ["job|1|tries|ValueError: for good"] * 2
        assert ended.error == "ValueError: for good"
        assert ended.errors[-1].traceback is not None
    else:
        (line,) = lines
        assert line.startswith("job|1|worker lost|worker lost: daemon ")
    assert (await get_job(db, "job")).ending is None
