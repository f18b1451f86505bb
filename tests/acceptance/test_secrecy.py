"""No credentials in anything that a daemon or a command writes."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from daemons import DaemonProcess
from fault_proxy import Answer, FaultProxy
from waiting import eventually

from couchjobs.couch.access import give_role
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.installation import WORKER_ROLE, secure
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer

PASSWORD = "s3cret/pass:word@x%y"
LEAKS = """
import os
from couchjobs import WorkerContext, worker
from couchjobs.couch.connection import connected

@worker("leaks", max_exec_count=2, retry_delay=0.01)
async def leaks(ctx: WorkerContext) -> None:
    async with connected() as connection:
        settings = connection.settings
        ctx.logger.info("settings", settings=settings, server=connection.server, url=settings.url)
        await connection.database("nothing").get("x")

@worker("tells", max_exec_count=1)
async def tells(ctx: WorkerContext) -> None:
    raise RuntimeError("cannot reach " + os.environ["COUCHJOBS_URL"])
"""


@pytest.fixture
async def user(connection: Connection, db: Prefixer, name: str) -> AsyncIterator[str]:
    """A worker with a known password."""
    await secure(connection, db)
    await give_role(connection.server, name, WORKER_ROLE, PASSWORD)
    yield name
    users = Database(connection.server, "_users")
    document = await users.get(f"org.couchdb.user:{name}")
    await users.delete(document["_id"], document["_rev"])


def forms(user: str) -> list[str]:
    """What must not be found: the password as it is, as a URL has it, as HTTP sends it."""
    basic = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
    return [PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), basic]


async def test_daemon_when_much_goes_wrong_under_debug_then_the_password_is_nowhere(
    connection: Connection, db: Prefixer, user: str, settings_for: Callable[..., Any], tmp_path: Path
) -> None:
    """Failures of workers and of the network, tracebacks, reprs, commands; logs, documents, output."""
    (tmp_path / "leaky.py").write_text(LEAKS)
    settings = settings_for()
    async with FaultProxy(settings.url) as proxy:
        cut = 0

        def fail(answer: Answer) -> None:
            nonlocal cut
            cut += 1
            answer.lose = cut % 7 == 0

        proxy.after = fail
        parts = urlsplit(proxy.url)
        url = f"http://{user}:{quote(PASSWORD, safe='')}@{parts.hostname}:{parts.port}"
        environment = {
            name: getattr(settings, name) for name in ("domain", "prefix", "control_db", "beat_interval", "dead_after")
        }
        process = DaemonProcess(tmp_path, "leaky", "leaky", arguments=("--log-level", "debug"), url=url, **environment)
        try:
            jobs = connection.database(db.database("jobs"))
            for job_id in ("leaks", "tells"):
                await jobs.put({"_id": job_id, "worker": job_id, "message": None, "state": "queued"})
            for job_id in ("leaks", "tells"):
                assert (await wait(db, job_id, 30)).state is State.ERRORED
            await eventually(lambda: process.says("job failed"))
        finally:
            process.end()
    written = process.log.read_text()
    wrong = {**environment, "url": url.replace(f":{parts.port}", ":9")}
    for arguments in (["jobs", "ls"], ["run", "leaky"], ["doctor"]):
        environment_of_command = {f"COUCHJOBS_{key.upper()}": str(value) for key, value in wrong.items()}
        failed = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "couchjobs", *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "COUCHJOBS_REQUEST_TIMEOUT": "1", **environment_of_command},
            capture_output=True,
            text=True,
            check=False,
        )
        assert failed.returncode == 1, failed.stderr
        written += failed.stdout + failed.stderr
    async for documents in jobs.all_docs():
        written += str(documents)
    written += str(await connection.control.with_prefix("daemon:"))
    assert [form for form in forms(user) if form in written] == []
