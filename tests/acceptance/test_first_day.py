"""What a user runs into on the first day, a test for each that has none beside the module that it is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from daemons import DaemonProcess
from test_command_line import Run, in_thread, run  # noqa: F401  a fixture
from triggering import jobs_of, orders_of, triggers_of
from waiting import eventually

from couchjobs import JobRequest, WorkerContext, get_job
from couchjobs.client import Couchjobs
from couchjobs.couch.access import give_role
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import BadDocumentError, Unavailable
from couchjobs.installation import WORKER_ROLE, guard, secure
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings
from couchjobs.workers.registry import declared, worker

Start = Callable[..., Any]


@pytest.fixture
async def couchjobs(connection: Connection) -> AsyncIterator[Couchjobs]:
    """An open one, for the tenant of the test."""
    async with Couchjobs(settings=connection.settings) as opened:
        yield opened


async def test_worker_when_it_writes_back_to_its_order_then_the_loop_is_named(
    connection: Connection,
    db: Prefixer,
    start: Start,
    run: Run,  # noqa: F811
) -> None:
    """In the log and in `triggers ls`, with the document."""
    orders = await orders_of(connection, db)
    rule = {"type": "@event", "worker": "counts", "message": None, "arguments": "orders:CREATED,UPDATED"}
    await triggers_of(connection, db).put({"_id": "endless", **rule})

    @worker("counts")
    async def counts(ctx: WorkerContext) -> None:
        order = await orders.get("one")
        if order["n"] < 30:
            await orders.put({**order, "n": order["n"] + 1})

    await start(counts)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "one", "n": 0})

    async def is_named() -> bool:
        return "does its worker write the document" in (await in_thread(run, "triggers", "ls")).stdout

    await eventually(is_named, 40)


async def test_dead_letters_when_an_event_of_failed_jobs_makes_them_then_they_do_not_feed_themselves(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """One for each failed job, none for itself, though it fails as well; and it does not hold the job before."""
    rule = {"type": "@event", "worker": "letter", "message": None, "arguments": "jobs:CREATED,UPDATED:errored:state"}
    await triggers_of(connection, db).put({"_id": "letters", **rule})

    @worker("fails", max_exec_count=1)
    async def fails(ctx: WorkerContext) -> None:
        raise ValueError("always")

    @worker("letter", max_exec_count=1)
    async def letter(ctx: WorkerContext) -> None:
        raise ValueError("this as well")

    @worker("after")
    async def after(ctx: WorkerContext) -> None:
        """Do nothing."""

    await start(fails, letter, after)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    jobs = connection.database(db.database("jobs"))
    for number in range(3):
        await jobs.put({"_id": f"bad-{number}", "worker": "fails", "message": "x" * 1000, "state": "queued"})

    async def all_have_failed() -> list[dict[str, Any]] | None:
        found = await jobs_of(connection, db, "letters")
        return found if len(found) == 3 and all(one["state"] == "errored" for one in found) else None

    letters = await eventually(all_have_failed)
    assert all("event" not in one["event"]["doc"] for one in letters)
    await orders_of(connection, db)  # time goes by: another trigger's event comes after what those would have made
    await triggers_of(connection, db).put(
        {"_id": "orders", "type": "@event", "worker": "after", "message": None, "arguments": "orders:CREATED"}
    )
    await eventually(lambda: connection.control.find(f"checkpoint:{db.database('orders')}"))
    await connection.database(db.database("orders")).put({"_id": "o"})
    await eventually(lambda: jobs_of(connection, db, "orders"))
    assert len(await jobs_of(connection, db, "letters")) == 3


async def test_get_job_when_called_in_a_handler_then_by_the_connection_of_the_start(
    connection: Connection, couchjobs: Couchjobs
) -> None:
    """What a web application has opened at its start is there in the tasks of its requests."""
    job = (await couchjobs.push("none", 1)).job

    async def show(_: web.Request) -> web.Response:
        return web.json_response({"worker": (await get_job(couchjobs.settings.tenant, job.id)).worker})

    app = web.Application()
    app.router.add_get("/", show)
    async with TestClient(TestServer(app)) as client:
        assert await (await client.get("/")).json() == {"worker": "none"}


async def test_push_when_couchdb_is_away_then_an_error_after_its_timeout(
    settings_for: Callable[..., Settings],
) -> None:
    """It says whether the job may be stored."""
    settings = settings_for(url="http://a:b@127.0.0.1:9", push_timeout=0.3)
    async with asyncio.timeout(20), Couchjobs(settings=settings) as client:
        with pytest.raises(Unavailable, match=r"not stored|may be stored"):
            await client.push("w", 1)


async def test_workers_when_made_by_a_factory_then_found(connection: Connection, db: Prefixer, start: Start) -> None:
    """And none of them is an attribute of a module; durations are text."""

    def make(name: str) -> Any:
        @worker(f"made-{name}", timeout="5m", retry_delay="1s")
        async def made(ctx: WorkerContext) -> str:
            return name

        return made

    functions = [make(name) for name in "ab"]
    assert {"made-a", "made-b"} <= {config.worker_type for config in declared()}
    system = await start(*functions)
    for name in "ab":
        pushed = await system.broker.push_job(db, JobRequest(worker_type=f"made-{name}"))
        assert (await wait(db, pushed.id, 10)).result == name


async def test_before_hook_when_a_process_only_pushes_then_called_there_too(
    connection: Connection, couchjobs: Couchjobs
) -> None:
    """The worker is declared there, and no daemon runs."""

    @worker("hooked", before_hook=lambda request: request.message != "no")
    async def hooked(ctx: WorkerContext) -> None:
        """Do nothing."""

    assert (await couchjobs.push("hooked", "yes")).job is not None
    with pytest.raises(BadDocumentError, match="before_hook"):
        await couchjobs.push("hooked", "no")
    assert await couchjobs.queue_len("hooked") == 1


async def test_event_when_the_daemon_is_a_worker_user_then_the_list_of_init_lets_it_read(
    connection: Connection,
    db: Prefixer,
    name: str,
    server_url: str,
    run: Run,  # noqa: F811
    daemon: Callable[..., DaemonProcess],
) -> None:
    """As `couchjobs init --watch orders` writes it."""
    orders = await orders_of(connection, db)
    await secure(connection, db)
    await guard(connection, db)
    done = await in_thread(run, "init", "--guard", "--watch", "orders")
    assert done.returncode == 0, done.stderr
    user = f"{name}-worker"
    users = Database(connection.server, "_users")
    await give_role(connection.server, user, WORKER_ROLE, "pw")
    parts = urlsplit(server_url)
    try:
        daemon(url=f"http://{user}:pw@{parts.hostname}:{parts.port}")
        await triggers_of(connection, db).put(
            {"_id": "t", "type": "@event", "worker": "append", "message": None, "arguments": "orders:CREATED"}
        )
        await eventually(lambda: connection.control.with_prefix("checkpoint:"), 30)
        await orders.put({"_id": "new"})

        async def is_done() -> bool:
            return [one["state"] for one in await jobs_of(connection, db, "t")] == [State.DONE]

        await eventually(is_done, 20)
    finally:
        user_id = f"org.couchdb.user:{user}"
        await users.delete(user_id, (await users.get(user_id))["_rev"])


async def test_next_times_when_of_a_stored_trigger_then_from_its_anchor(
    connection: Connection,
    db: Prefixer,
    start: Start,
    run: Run,  # noqa: F811
) -> None:
    """`@every` counts from when its daemon first saw it, and so does what is foretold."""

    @worker("none")
    async def none(ctx: WorkerContext) -> None:
        """Do nothing."""

    await triggers_of(connection, db).put(
        {"_id": "t", "type": "@every", "arguments": "1h", "worker": "none", "message": None}
    )
    await start(none)
    await eventually(lambda: connection.control.with_prefix("schedule:"))
    first = (await in_thread(run, "triggers", "next", "t", "--count", "1")).stdout
    assert first
    assert (await in_thread(run, "triggers", "next", "t", "--count", "1")).stdout == first


async def test_watch_when_its_since_is_no_position_then_told_at_once(
    connection: Connection,
    run: Run,  # noqa: F811
) -> None:
    """`--since 5m` asks nothing for ever."""
    told = await in_thread(run, "jobs", "watch", "--since", "5m")
    assert told.returncode == 2
    assert "5m" in told.stderr
