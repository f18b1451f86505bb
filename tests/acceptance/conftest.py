"""Daemons as processes, and the program that they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import DaemonProcess

from couchjobs.couch.connection import Connection
from couchjobs.settings import Settings

PROGRAM = """
import asyncio, os, time
from couchjobs import WorkerContext, worker

def note(line):
    handle = os.open("ran.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (line + "\\n").encode())
    os.close(handle)

@worker("append", concurrency=20)
async def append(ctx: WorkerContext) -> None:
    note(f"{ctx.id} {ctx.daemon}")

@worker("sleeps", concurrency=20, timeout=None)
async def sleeps(ctx: WorkerContext, message: float) -> None:
    note(f"{ctx.id} {ctx.daemon}")
    await asyncio.sleep(message)

@worker("collect")
async def collect(ctx: WorkerContext) -> int:
    note(f"{ctx.id} {ctx.daemon}")
    return len(ctx.job.payload["payloads"])

@worker("thread", concurrency=4)
def thread(ctx: WorkerContext, message: float) -> str:
    note(f"{ctx.id} {ctx.daemon}")
    time.sleep(message)
    return "slept"

@worker("huge")
def huge(ctx: WorkerContext) -> str:
    return "x" * 20_000_000
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with the module `program`."""
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture
def daemon(
    program: Path, settings_for: Callable[..., Settings], connection: Connection
) -> Iterator[Callable[..., DaemonProcess]]:
    """Start a daemon on this test's databases, which are there (`connection` made them)."""
    started: list[DaemonProcess] = []

    def start(**given: Any) -> DaemonProcess:
        settings = settings_for(**given)
        names = (
            "url",
            "domain",
            "prefix",
            "control_db",
            "beat_interval",
            "dead_after",
            "sweep_interval",
            "shutdown_timeout",
            "feed_heartbeat",
        )
        environment = {name: getattr(settings, name) for name in names}
        process = DaemonProcess(program, "program", f"daemon-{len(started)}", **environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()
