"""`Couchjobs`, its blocking twin, functions as handles, and what a worker function can have done."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from triggering import note
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document
from couchjobs.errors import (
    BadDocumentError,
    ClosedError,
    ConfigurationError,
    Conflict,
    Forbidden,
    JobNotFoundError,
    TriggerNotFoundError,
    Unavailable,
)
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


class Greeting(BaseModel):
    """A message."""

    name: str
    times: int = 1


@dataclass
class Charge:
    """A message, too."""

    order: str
    cents: int


@pytest.fixture
async def couchjobs(connection: Connection) -> Any:
    """An open one, for the tenant of the test."""
    async with Couchjobs(settings=connection.settings) as opened:
        yield opened


async def test_push_when_the_id_is_there_then_the_stored_job_comes_back(couchjobs: Couchjobs, start: Start) -> None:
    """Charged once: the second push returns what has become of the first."""
    await start(note)
    first = await couchjobs.push("note", Charge("a1", 5), id="charge-a1")
    assert (first.created, first.job.id, bool(first.job.rev)) == (True, "charge-a1", True)
    await couchjobs.wait("charge-a1", 10)
    second = await couchjobs.push("note", Charge("a1", 5), id="charge-a1")
    assert (second.created, second.job.state, second.job.message) == (False, State.DONE, {"order": "a1", "cents": 5})
    many = await couchjobs.push_many(
        [JobRequest(worker_type="note", id="charge-a1"), JobRequest(worker_type="note", message=float("nan"))]
    )
    assert not many[0].created  # type: ignore[union-attr]
    assert "message: nan" in str(many[1]).lower()


async def test_push_when_delayed_then_not_run_before(couchjobs: Couchjobs) -> None:
    """Seconds, text, a time; not both, and no time without a zone."""
    begun = datetime.now(UTC)
    later = (await couchjobs.push("note", delay="10m")).job
    assert later.scheduled_at is not None
    assert timedelta(minutes=9) < later.scheduled_at - begun < timedelta(minutes=11)
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert (await couchjobs.push("note", at=at)).job.scheduled_at == at
    for wrong in ({"delay": 1, "at": at}, {"at": datetime(2030, 1, 1)}, {"delay": "soon"}):  # noqa: DTZ001
        with pytest.raises(ConfigurationError):
            await couchjobs.push("note", **wrong)  # type: ignore[arg-type]

    async def are_two() -> bool:
        return await couchjobs.queue_len("note") == 2

    await eventually(are_two)


async def test_jobs_when_asked_for_then_the_newest_whatever_their_state(couchjobs: Couchjobs, start: Start) -> None:
    """By worker, state, trigger and time; changed, deleted, done again."""

    @worker("fails", max_exec_count=1)
    async def fails(ctx: WorkerContext) -> None:
        raise ValueError("no")

    await start(note, fails)
    ids = [(await couchjobs.push("note" if number % 2 else "fails")).job.id for number in range(6)]
    for one in ids:
        await couchjobs.wait(one, 10)
    queued = (await couchjobs.push("note", delay=100)).job.id

    async def listed(**given: Any) -> list[str]:
        return [job.id for job in await couchjobs.jobs(**given)]

    async def all_are_listed() -> bool:  # whichever copies answer
        return [await listed(limit=3), await listed(worker="note", limit=3), await listed(state="errored")] == [
            [queued, ids[5], ids[4]],
            [queued, ids[5], ids[3]],
            [ids[4], ids[2], ids[0]],
        ]

    await eventually(all_are_listed)
    assert await couchjobs.jobs(trigger="none") == []
    assert await couchjobs.jobs(since=datetime.now(UTC)) == []
    assert len(await couchjobs.jobs(until=datetime.now(UTC))) == 7
    cancelled = await couchjobs.cancel(queued)
    assert cancelled.cancel_requested
    assert (await couchjobs.wait(queued, 10)).cancelled
    with pytest.raises(Conflict, match="ended already"):
        await couchjobs.cancel(ids[1])
    with pytest.raises(Conflict, match="is done"):
        await couchjobs.retry(ids[1])
    assert (await couchjobs.retry(ids[1], again=True)).state is State.QUEUED
    assert (await couchjobs.wait(ids[1], 10)).state is State.DONE
    await couchjobs.delete(ids[0])
    with pytest.raises(JobNotFoundError):
        await couchjobs.get(ids[0])


@pytest.mark.parametrize("wrong", [5, b"x", "\ud800", "", None])
async def test_client_when_an_id_is_none_then_there_is_nothing_of_that_id(couchjobs: Couchjobs, wrong: Any) -> None:
    """And no AttributeError."""
    for ask in (couchjobs.get, couchjobs.cancel, couchjobs.retry, couchjobs.delete, couchjobs.wait):
        with pytest.raises(JobNotFoundError):
            await ask(wrong)
    for ask in (couchjobs.fire_webhook, couchjobs.triggers.get, couchjobs.triggers.delete):
        with pytest.raises(TriggerNotFoundError):
            await ask(wrong)
    with pytest.raises(BadDocumentError):
        await couchjobs.triggers.add(wrong)


@pytest.mark.parametrize("wrong", [{"limit": -1}, {"limit": "x"}, {"since": 5}, {"until": b"1h"}, {"state": "nope"}])
async def test_jobs_when_a_wish_cannot_be_meant_then_told(couchjobs: Couchjobs, wrong: dict[str, Any]) -> None:
    """Which one, and how it is written."""
    with pytest.raises(ConfigurationError):
        await couchjobs.jobs(**wrong)


async def test_triggers_when_kept_by_the_client_then_as_documents(couchjobs: Couchjobs) -> None:
    """And a webhook fires from a program that runs no daemon."""
    hook = await couchjobs.triggers.add({"type": "@webhook", "worker": "note", "message": {"a": 1}})

    async def is_listed() -> bool:
        return [one.id for one in await couchjobs.triggers.list()] == [hook.id]

    await eventually(is_listed)  # any copy may be asked
    job = await couchjobs.fire_webhook(hook.id, {"b": 2})
    assert (await couchjobs.get(job.id)).payload == {"b": 2}
    assert (await couchjobs.triggers.update(hook.id, debounce="1s")).debounce == 1
    joined = {(await couchjobs.fire_webhook(hook.id, number)).id for number in range(3)}
    assert len(joined) == 1
    await couchjobs.triggers.disable(hook.id)
    with pytest.raises(TriggerNotFoundError):
        await couchjobs.fire_webhook(hook.id, 3)
    assert not (await couchjobs.triggers.enable(hook.id)).disabled
    await couchjobs.triggers.delete(hook.id)
    with pytest.raises(TriggerNotFoundError):
        await couchjobs.triggers.get(hook.id)


async def test_trigger_when_changed_between_a_check_and_the_change_then_checked_as_it_is(
    couchjobs: Couchjobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may change the triggers of one worker may not change that of another, which it has become."""
    hook = await couchjobs.triggers.add({"type": "@webhook", "worker": "a", "message": None})
    put, seen = Database.put, []

    async def put_second(database: Database, document: Document) -> str:
        if not seen[1:]:
            monkeypatch.setattr(Database, "put", put)
            await couchjobs.triggers.update(hook.id, worker="b")
        return await put(database, document)

    def check(infos: TriggerInfos) -> None:
        seen.append(infos.worker)
        if infos.worker != "a":
            raise Forbidden("not of that one", 403)

    monkeypatch.setattr(Database, "put", put_second)
    with pytest.raises(Forbidden):
        await couchjobs.triggers.change(hook.id, {"message": 1}, check)
    assert seen == ["a", "b"]
    with pytest.raises(Forbidden):
        await couchjobs.triggers.delete(hook.id, check)
    assert (await couchjobs.triggers.get(hook.id)).message is None


async def test_client_when_nothing_says_where_couchdb_is_then_an_error_says_so(db: Prefixer) -> None:
    """No default is asked in silence; one that is not open says so; one that answers nothing says whether it may."""
    os.environ.pop("COUCHJOBS_URL", None)
    with pytest.raises(ConfigurationError, match="nothing says where CouchDB is"):
        Couchjobs()
    with pytest.raises(ConfigurationError, match="nothing says where CouchDB is"):
        await asyncio.create_task(get_job(db, "a"), context=contextvars.Context())
    closed = Couchjobs(url="http://127.0.0.1:1", push_timeout=0.3)
    with pytest.raises(ClosedError, match="is not open"):
        await closed.push("note")
    async with closed:
        with pytest.raises(Unavailable, match="surely not stored"):
            await closed.push("note")


async def test_handles_when_pushed_to_then_typed_jobs_from_everywhere(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """From a task, from another worker, from a plain one; a second try pushes no second job."""
    ran: list[tuple[str, int]] = []

    @worker("greet")
    async def greet(ctx: WorkerContext, message: Greeting) -> str:
        ran.append((message.name, ctx.exec_count))
        return f"Hello {message.name}"

    @worker("chain", retry_delay=0.01)
    async def chain(ctx: WorkerContext) -> None:
        await ctx.push(greet, Greeting(name="one"))
        await ctx.push("greet", Greeting(name="two"))
        await ctx.push("greet", {"name": "three"}, key="three")
        if ctx.exec_count < 3:
            raise ValueError("again")

    @worker("plain", retry_delay=0.01)
    def plain(ctx: WorkerContext) -> bool:
        created = ctx.sync_push(greet, Greeting(name="four")).created
        if ctx.exec_count == 1:
            raise ValueError("again")
        return created

    connection.use()
    await start(greet, chain, plain)
    pushed = await greet.push(Greeting(name="Ann"), priority=3)
    assert (pushed.created, pushed.job.priority) == (True, 3)
    assert (await wait(db, pushed.job.id, 10)).result == "Hello Ann"
    for one in (await chain.push(), await plain.push()):
        assert (await wait(db, one.job.id, 10)).state is State.DONE
    await eventually(lambda: len(ran) == 5)
    assert sorted(ran) == [("Ann", 1), ("four", 1), ("one", 1), ("three", 1), ("two", 1)]
    with pytest.raises(ConfigurationError, match="sync_push is for plain functions"):
        WorkerContext(pushed.job).sync_push("greet", {"name": "x"})


async def test_progress_when_told_then_in_the_document_and_never_in_the_way(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The last word counts; a cancellation beside it goes through."""
    go_on = threading.Event()

    @worker("steps", timeout=30)
    def steps(ctx: WorkerContext) -> None:
        for number in range(200):
            ctx.progress(number / 400, f"step {number}")
        go_on.wait(15)
        ctx.progress(0.9)

    @worker("long", timeout=30)
    async def long(ctx: WorkerContext) -> None:
        while True:
            ctx.progress(0.5, "on")
            await asyncio.sleep(0.001)

    await start(steps, long)
    async with Couchjobs(settings=connection.settings) as couchjobs:
        job_id = (await couchjobs.push("steps")).job.id

        async def told() -> Any:
            progress = (await couchjobs.get(job_id)).progress
            return progress and progress["text"] == "step 199" and progress

        assert (await eventually(told))["done"] == 199 / 400
        go_on.set()
        ended = await couchjobs.wait(job_id, 10)
        assert (ended.state, ended.exec_count) == (State.DONE, 1)
        job_id = (await couchjobs.push("long")).job.id
        await eventually(lambda: couchjobs_progress(couchjobs, job_id))
        await couchjobs.cancel(job_id)
        assert (await couchjobs.wait(job_id, 10)).cancelled


async def couchjobs_progress(couchjobs: Couchjobs, job_id: str) -> bool:
    """Whether the job has told of itself."""
    return (await couchjobs.get(job_id)).progress is not None


async def test_sync_when_used_by_threads_and_a_forked_child_then_each_push_is_stored_once(
    connection: Connection, couchjobs: Couchjobs, server_url: str
) -> None:
    """16 threads over one object, and a child that was forked while it was open."""
    script = """
import os
from concurrent.futures import ThreadPoolExecutor
from couchjobs.sync import Couchjobs
couchjobs = Couchjobs()
def push(number):
    return couchjobs.push("note", {"n": number}, id=f"t-{number}").created
with ThreadPoolExecutor(16) as threads:
    print(sum(threads.map(push, [*range(40)] * 2)), flush=True)
if (pid := os.fork()) == 0:
    os._exit(not push(1000))
print(os.waitpid(pid, 0)[1], push(1001))
couchjobs.close()
"""
    assert await run_script(connection, server_url, script) == "40\n0 True\n"
    expected = {f"t-{number}" for number in (*range(40), 1000, 1001)}
    assert {job.id for job in await couchjobs.jobs(limit=100)} == expected


async def test_sync_when_in_a_script_then_ten_lines(connection: Connection, server_url: str) -> None:
    """As a management command of Django would have it."""
    script = """
from couchjobs.sync import Couchjobs
with Couchjobs() as couchjobs:
    for number in range(3):
        couchjobs.push("note", {"n": number}, id=f"import-{number}", delay="1h")
    print(couchjobs.queue_len("note"), [job.id for job in couchjobs.jobs(limit=1)])
    couchjobs.triggers.add({"_id": "nightly", "type": "@daily", "worker": "note"})
    print(couchjobs.triggers.get("nightly").type, couchjobs.cancel("import-0").cancel_requested)
"""
    assert await run_script(connection, server_url, script) == "3 ['import-2']\n@daily True\n"


async def run_script(connection: Connection, server_url: str, script: str) -> str:
    """Run a program with the settings of the test, and return what it prints."""
    settings = connection.settings
    given = {"url": server_url, "prefix": settings.prefix, "domain": settings.domain, "control_db": settings.control_db}
    environment = {**os.environ, **{f"COUCHJOBS_{name.upper()}": str(value) for name, value in given.items()}}
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr
    return str(ran.stdout)


def test_handles_when_a_message_is_of_another_type_then_mypy_says_so(tmp_path: Path) -> None:
    """And nothing else."""
    (tmp_path / "module.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "module.py"]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "MYPYPATH": str(root), "MYPY_CACHE_DIR": str(root / ".mypy_cache")}
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    lines = [
        line.split(":")[1] for line in ran.stdout.splitlines() if line.startswith("module.py:") and ": error:" in line
    ]
    assert lines == [str(number) for number, line in enumerate(TYPED.splitlines(), 1) if "# wrong" in line], ran.stdout


TYPED = """
from couchjobs import WorkerContext, worker
from pydantic import BaseModel

class Greeting(BaseModel):
    name: str

@worker("greet")
async def greet(ctx: WorkerContext, message: Greeting) -> str:
    return message.name

@worker("tidy", timeout="5m")
def tidy(ctx: WorkerContext) -> None:
    greet.sync_push(Greeting(name="Ann"))
    greet.sync_push("Ann")  # wrong
    greet.sync_push(Greeting(name="Ann"), priority="high")  # wrong

async def main() -> None:
    await greet.push(Greeting(name="Ann"), id="a", delay="10m")
    await greet.push({"name": "Ann"})  # wrong
    await tidy.push()
"""
