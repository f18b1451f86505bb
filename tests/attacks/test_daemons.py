"""Daemons as processes: children that die, hang or cannot start, an end that nobody answers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import AS_USERS_HAVE, DaemonProcess
from fault_proxy import FaultProxy
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings

PROGRAM = """
import asyncio, os, subprocess, sys, time
from couchjobs import WorkerContext, worker

@worker("pid", concurrency=2)
async def pid(ctx: WorkerContext) -> int:
    return os.getpid()

@worker("forks", concurrency=2, max_exec_count=1, timeout=None)
async def forks(ctx: WorkerContext) -> None:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    with open("forked", "w") as file:
        file.write(f"{os.getpid()}\\n")
    await asyncio.sleep(600)

@worker("hangs", concurrency=2, max_exec_count=1, timeout=0.2)
def hangs(ctx: WorkerContext) -> None:
    time.sleep(600)

@worker("plain", concurrency=2)
def plain(ctx: WorkerContext) -> int:
    return os.getpid()

@worker("terminates", concurrency=1)
def terminates(ctx: WorkerContext) -> int:
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(0.5)
    program.terminate()
    return program.wait(10)

@worker("sleeps", timeout=None)
async def sleeps(ctx: WorkerContext) -> None:
    await asyncio.sleep(600)

@worker("deep")
async def deep(ctx: WorkerContext, message) -> int:
    return 1
"""

Start = Callable[..., DaemonProcess]


@pytest.fixture
def daemon(tmp_path: Path, settings_for: Callable[..., Settings]) -> Iterator[Start]:
    """Start a daemon at default settings; it is ended after the test."""
    started: list[DaemonProcess] = []
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(*arguments: str, **given: Any) -> DaemonProcess:
        settings = settings_for(**(AS_USERS_HAVE | given)).model_dump(exclude_unset=True, mode="json")
        one = DaemonProcess(tmp_path, "program", f"daemon-{len(started)}", arguments, **settings)
        started.append(one)
        return one

    yield start
    for one in started:
        one.end()


async def push(connection: Connection, db: Prefixer, **jobs: str) -> None:
    """Queue jobs: ids and worker types."""
    for job_id, kind in jobs.items():
        document = {"_id": job_id, "worker": kind, "message": None, "state": "queued"}
        await connection.database(db.database("jobs")).put(document)


async def test_child_when_killed_while_a_process_it_forked_lives_then_noticed_and_replaced(
    connection: Connection, db: Prefixer, daemon: Start, tmp_path: Path
) -> None:
    """The end of a process is what wait() says."""
    daemon("--processes", "1")
    await push(connection, db, fork="forks")
    forked = tmp_path / "forked"
    await eventually(lambda: forked.exists() and forked.read_text().endswith("\n"), 30)
    os.kill(int(forked.read_text()), signal.SIGKILL)
    ended = await wait(db, "fork", 10)
    assert (ended.state, "signal 9" in str(ended.error)) == (State.ERRORED, True)
    await push(connection, db, next="pid")
    assert (await wait(db, "next", 20)).state is State.DONE


@pytest.mark.parametrize("arguments", [(), ("--max-jobs-per-child", "1")])
async def test_child_when_plain_functions_hang_past_their_time_then_replaced_and_slots_are_free_again(
    connection: Connection, db: Prefixer, daemon: Start, arguments: tuple[str, ...]
) -> None:
    """All slots of a type; its own process is the only way to end a thread."""
    one = daemon("--processes", "1", *arguments)
    await push(connection, db, hang0="hangs", hang1="hangs", hang2="hangs", other="plain")
    assert (await wait(db, "other", 30)).state is State.DONE
    for job_id in ("hang0", "hang1", "hang2"):
        assert "no end within 0.2 s" in str((await wait(db, job_id, 40)).error)
    await push(connection, db, last="plain")
    assert (await wait(db, "last", 20)).state is State.DONE
    assert arguments or one.says("does not end after its time")


async def test_children_when_they_cannot_start_any_more_then_nothing_is_claimed(
    connection: Connection, db: Prefixer, daemon: Start, tmp_path: Path
) -> None:
    """A healthy daemon has them done; SIGTERM is heard."""
    sick = daemon("--processes", "1")
    await push(connection, db, first="pid")
    child = (await wait(db, "first", 30)).result
    (tmp_path / "program.py").write_text("raise RuntimeError('not today')")
    os.kill(child, signal.SIGKILL)
    await eventually(lambda: sick.says("cannot start"), 20)
    await push(connection, db, second="pid")
    await asyncio.sleep(2)
    assert (await get_job(db, "second")).state is State.QUEUED
    sick.signal(signal.SIGTERM)
    assert sick.wait(20) == 0
    (tmp_path / "program.py").write_text(PROGRAM)
    daemon()
    assert (await wait(db, "second", 30)).state is State.DONE


async def test_program_when_a_function_in_a_child_terminates_it_then_it_ends(
    connection: Connection, db: Prefixer, daemon: Start
) -> None:
    """Ignored signals are inherited."""
    daemon("--processes", "1")
    await push(connection, db, job="terminates")
    assert (await wait(db, "job", 30)).result == -signal.SIGTERM


async def test_deep_message_when_there_are_children_then_run_or_refused(
    connection: Connection, db: Prefixer, daemon: Start
) -> None:
    """The way to a child nests it a little deeper."""
    daemon("--processes", "1")
    jobs = connection.database(db.database("jobs"))
    for levels in (150, 198, 253):
        message: Any = 1
        for _ in range(levels):
            message = [message]
        await jobs.put({"_id": f"deep-{levels}", "worker": "deep", "message": message, "state": "queued"})
    states = [(await wait(db, f"deep-{levels}", 20)).state for levels in (150, 198, 253)]
    assert states == [State.DONE, State.DONE, State.ERRORED]


@pytest.fixture
async def hanging(server_url: str) -> AsyncIterator[tuple[FaultProxy, asyncio.Event]]:
    """A proxy that accepts and does not answer, once the event is set."""
    hangs = asyncio.Event()

    async def before(method: str, path: str, body: bytes) -> None:
        if hangs.is_set():
            await asyncio.sleep(120)

    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        yield proxy, hangs


@pytest.mark.parametrize("again", [False, True])
async def test_sigterm_when_couchdb_hangs_then_gone_within_one_deadline(
    connection: Connection,
    db: Prefixer,
    daemon: Start,
    hanging: tuple[FaultProxy, asyncio.Event],
    again: bool,
) -> None:
    """With a job that runs; a second signal hurries."""
    proxy, hangs = hanging
    one = daemon(url=proxy.url, shutdown_timeout=3)
    await push(connection, db, job="sleeps")

    async def runs() -> bool:
        return (await get_job(db, "job")).state is State.RUNNING

    await eventually(runs, 20)
    hangs.set()
    began = time.monotonic()
    one.signal(signal.SIGTERM)
    if again:
        await asyncio.sleep(0.5)
        one.signal(signal.SIGTERM)
    code = await asyncio.to_thread(one.wait, 30)
    took = time.monotonic() - began
    assert (code, took < (4 if again else 15)) == (0, True), took


async def test_log_when_documents_hold_escape_sequences_then_none_reaches_the_terminal(
    connection: Connection, db: Prefixer, daemon: Start, tmp_path: Path
) -> None:
    """Neither a log nor a table; markup is text."""
    jobs = connection.database(db.database("jobs"))
    evil = "\x1b[31m[red]x[/]\x9b5m\u202e"
    await jobs.put({"_id": "[/]", "worker": "[/]", "message": None, "state": "queued"})
    await jobs.put({"_id": evil, "worker": evil, "message": None, "state": "errored", "error": evil})
    environment = {
        **os.environ,
        "COUCHJOBS_URL": str(connection.settings.url),
        "COUCHJOBS_PREFIX": str(db.prefix),
        "COUCHJOBS_CONTROL_DB": connection.settings.control_db,
    }
    for command in (("jobs", "ls"), ("triggers", "ls"), ("jobs", "show", evil)):
        words = [sys.executable, "-m", "couchjobs", *command]
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode()
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)
