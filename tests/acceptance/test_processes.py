"""A daemon with child processes: they run the functions, and their deaths cost nothing but a try."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import DaemonProcess
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings

PROGRAM = """
import asyncio, os, time
from pydantic import BaseModel
from couchjobs import WorkerContext, get_jobs, worker

def ready() -> None:
    if os.environ.get("FAILS"):
        raise RuntimeError("not today")

@worker("pid", concurrency=4, worker_init=ready)
async def pid(ctx: WorkerContext, message: float) -> int:
    await asyncio.sleep(message)
    return os.getpid()

@worker("thread", concurrency=2)
def thread(ctx: WorkerContext, message: float) -> int:
    time.sleep(message)
    return os.getpid()

@worker("dies", max_exec_count=2)
async def dies(ctx: WorkerContext) -> None:
    os.kill(os.getpid(), 9)

@worker("stuck", max_exec_count=1, timeout=0.1)
async def stuck(ctx: WorkerContext) -> None:
    time.sleep(600)

@worker("waits", timeout=None)
async def waits(ctx: WorkerContext) -> int:
    if ctx.exec_count > 1:
        return ctx.exec_count
    with open("began", "a") as file:
        file.write(f"{os.getpid()}\\n")
    await asyncio.Event().wait()

@worker("blocks", timeout=None)
async def blocks(ctx: WorkerContext, message: float) -> None:
    open("blocks", "w").close()
    time.sleep(message)

async def commits(ctx: WorkerContext, error: BaseException | None) -> None:
    open("commits", "w").close()
    await asyncio.sleep(600)

@worker("commits", max_exec_count=1, timeout=None, worker_commit=commits)
async def commit(ctx: WorkerContext) -> str:
    return "done"

class Big(BaseModel):
    number: int

@worker("big", max_exec_count=1, timeout=None)
async def big(ctx: WorkerContext) -> Big:
    return Big(number=2 ** 70)

@worker("connects", max_exec_count=1)
async def connects(ctx: WorkerContext) -> int:
    from couchjobs.couch.connection import connected
    async with connected() as connection:
        return len(await connection.control.with_prefix("daemon:"))
"""


@pytest.fixture
def pooled(tmp_path: Path, settings_for: Callable[..., Settings]) -> Iterator[Callable[..., DaemonProcess]]:
    """Start a daemon with two child processes."""
    (tmp_path / "pooled.py").write_text(PROGRAM)
    started: list[DaemonProcess] = []
    settings = settings_for()
    names = ("url", "domain", "prefix", "control_db", "beat_interval", "dead_after", "sweep_interval")
    environment = {name: getattr(settings, name) for name in names}

    def start(*arguments: str) -> DaemonProcess:
        process = DaemonProcess(tmp_path, "pooled", "pooled", arguments=("--processes", "2", *arguments), **environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()


async def push(connection: Connection, db: Prefixer, jobs: dict[str, tuple[str, Any]]) -> None:
    """Write jobs: by id, the worker and the message."""
    writer = connection.writer(db.database("jobs"))
    await asyncio.gather(
        *(
            writer.write({"_id": job_id, "worker": worker, "message": message, "state": "queued"})
            for job_id, (worker, message) in jobs.items()
        )
    )


async def test_processes_when_jobs_come_then_children_run_them_and_have_a_connection(
    connection: Connection, db: Prefixer, pooled: Callable[..., DaemonProcess]
) -> None:
    """Coroutines and plain functions, in both children, neither of which is the daemon."""
    daemon = pooled()
    jobs: dict[str, tuple[str, Any]] = {f"pid-{n}": ("pid", 0.2) for n in range(16)}
    jobs |= {f"thread-{n}": ("thread", 0.2) for n in range(4)} | {"connects": ("connects", None)}
    await push(connection, db, jobs)
    results = {job_id: await wait(db, job_id, 30) for job_id in jobs}
    assert {job.state for job in results.values()} == {State.DONE}
    assert results.pop("connects").result == 1
    assert len({job.result for job in results.values()}) == 2
    assert daemon.process.pid not in {job.result for job in results.values()}
    daemon.signal(signal.SIGTERM)
    assert await asyncio.to_thread(daemon.wait, 20) == 0
    for pid in {job.result for job in results.values()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_processes_when_a_neighbour_blocks_the_child_for_longer_than_a_daemon_may_be_still_then_the_others_wait(
    connection: Connection, db: Prefixer, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """The daemon lives all the time: nobody else has their jobs, and they are not put back."""
    (tmp_path / "pooled.py").write_text(PROGRAM)
    settings = settings_for(beat_interval=0.5, dead_after=1.5)
    names = ("url", "domain", "prefix", "control_db", "beat_interval", "dead_after")
    environment = {name: getattr(settings, name) for name in names}
    daemon = DaemonProcess(tmp_path, "pooled", "pooled", arguments=("--processes", "1"), **environment)
    try:
        await push(connection, db, {"blocks": ("blocks", 4.0)})
        await eventually((tmp_path / "blocks").exists, 30)
        await push(connection, db, {f"pid-{n}": ("pid", 0) for n in range(4)})
        for job_id in ("blocks", "pid-0", "pid-1", "pid-2", "pid-3"):
            ended = await wait(db, job_id, 30)
            assert (ended.state, ended.rev.partition("-")[0]) == (State.DONE, "3"), "claimed once, and done"
    finally:
        daemon.end()


@pytest.mark.parametrize("where", ["children", "one process"])
async def test_sigterm_when_a_hook_runs_or_a_function_blocks_its_child_then_all_ends_are_stored(
    connection: Connection, db: Prefixer, tmp_path: Path, settings_for: Callable[..., Settings], where: str
) -> None:
    """What a function has returned is kept; the others go back with their tries, the one that blocks among them."""
    (tmp_path / "pooled.py").write_text(PROGRAM)
    settings = settings_for()
    environment = {name: getattr(settings, name) for name in ("url", "domain", "prefix", "control_db")}
    children = where == "children"
    arguments = ("--processes", "1") if children else ()
    daemon = DaemonProcess(tmp_path, "pooled", "pooled", arguments=arguments, shutdown_timeout=0.5, **environment)
    try:
        await push(connection, db, {"commits": ("commits", None), "waits": ("waits", None)})
        await eventually(lambda: (tmp_path / "commits").exists() and (tmp_path / "began").exists(), 30)
        if children:
            await push(connection, db, {"blocks": ("blocks", 600.0)})
            await eventually((tmp_path / "blocks").exists, 30)
        daemon.signal(signal.SIGTERM)
        assert await asyncio.to_thread(daemon.wait, 30) == 0
        assert not daemon.says("the end takes too long")
    finally:
        daemon.end()
    waits = await get_job(db, "waits")
    assert (waits.state, waits.exec_count) == (State.QUEUED, 0)
    if children:  # the child that was blocked could say nothing
        blocks = await get_job(db, "blocks")
        assert (blocks.state, blocks.exec_count) == (State.QUEUED, 0)
    else:
        commits = await get_job(db, "commits")
        assert (commits.state, commits.result) == (State.DONE, "done")


async def test_cancel_when_a_coroutine_blocks_its_child_then_the_child_is_replaced(
    connection: Connection, db: Prefixer, pooled: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    """Though it has no time limit; other jobs run on."""
    pooled()
    await push(connection, db, {"blocks": ("blocks", 600.0)})
    await eventually((tmp_path / "blocks").exists, 30)
    await Couchjobs.over(connection).cancel("blocks")
    ended = await wait(db, "blocks", 30)
    assert (ended.state, ended.error) == (State.ERRORED, "cancelled")
    await push(connection, db, {f"pid-{n}": ("pid", 0) for n in range(8)})
    for number in range(8):
        assert (await wait(db, f"pid-{number}", 30)).state is State.DONE


async def test_processes_when_a_child_dies_then_its_jobs_are_tried_again_at_once(
    connection: Connection, db: Prefixer, pooled: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    """Killed from outside, by its own function, or because its loop is stuck: worker lost."""
    pooled()
    await push(connection, db, {"waits": ("waits", None)})
    began = tmp_path / "began"
    await eventually(lambda: began.exists() and began.read_text().endswith("\n"), 30)
    os.kill(int(began.read_text()), signal.SIGKILL)
    again = await wait(db, "waits", 10)
    assert (again.state, again.result) == (State.DONE, 2)
    assert "worker lost: its process has ended (signal 9)" in again.errors[0].error
    await push(connection, db, {"dies": ("dies", None), "stuck": ("stuck", None)})
    for job_id, tries in (("dies", 2), ("stuck", 1)):
        ended = await wait(db, job_id, 30)
        assert (ended.state, ended.exec_count) == (State.ERRORED, tries)
        assert str(ended.error).startswith("worker lost")
    await push(connection, db, {"big": ("big", None)})
    large = await wait(db, "big", 10)
    assert large.state is State.DONE  # and its child lives on
    assert large.result is not None or "not stored" in large.errors[-1].error
    await push(connection, db, {"after": ("pid", 0)})
    assert (await wait(db, "after", 10)).state is State.DONE


async def test_processes_when_jobs_are_cancelled_or_the_daemon_stops_then_as_in_one_process(
    connection: Connection, db: Prefixer, pooled: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    """A second SIGTERM hurries."""
    daemon = pooled()
    await push(connection, db, {"cancelled": ("waits", None), "kept": ("waits", None)})
    began = tmp_path / "began"
    await eventually(lambda: began.exists() and len(began.read_text().splitlines()) == 2, 30)
    jobs = connection.database(db.database("jobs"))
    await jobs.put({**await jobs.get("cancelled"), "cancel_requested": True})
    assert (await wait(db, "cancelled", 10)).error == "cancelled"
    daemon.signal(signal.SIGTERM)
    await eventually(lambda: daemon.says("daemon stops"))
    daemon.signal(signal.SIGTERM)
    assert await asyncio.to_thread(daemon.wait, 20) == 0
    kept = await get_job(db, "kept")
    assert (kept.state, kept.exec_count) == (State.QUEUED, 0)


async def test_processes_when_a_child_has_had_its_jobs_then_replaced(
    connection: Connection, db: Prefixer, pooled: Callable[..., DaemonProcess]
) -> None:
    """Nothing is lost on the way."""
    pooled("--max-jobs-per-child", "5")
    jobs: dict[str, tuple[str, Any]] = {f"pid-{n}": ("pid", 0.01) for n in range(40)}
    await push(connection, db, jobs)
    results = [await wait(db, job_id, 30) for job_id in jobs]
    assert {(job.state, job.exec_count) for job in results} == {(State.DONE, 1)}
    assert len({job.result for job in results}) > 2


async def test_processes_when_a_worker_cannot_begin_then_the_daemon_does_not_start(
    pooled: Callable[..., DaemonProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says why."""
    monkeypatch.setenv("FAILS", "1")
    daemon = pooled()
    assert await asyncio.to_thread(daemon.wait, 30) == 2
    assert daemon.says("a child process cannot start: RuntimeError('not today')")
