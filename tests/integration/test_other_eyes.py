"""What other eyes found in the Python API, in functions that push, and in events that fire once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.errors import BadDocumentError, ClosedError, ConfigurationError, Conflict, JobFailedError, NotFound
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.sync import Couchjobs as SyncCouchjobs
from couchjobs.testing import TestSystem
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


async def test_new_documents_when_they_change_before_the_feed_is_read_then_each_time_counts(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Created as paid and shipped at once; created, paid, noted; made again after a deletion."""
    orders = await orders_of(connection, db)
    rule = {"type": "@event", "worker": "note", "message": None}
    await triggers_of(connection, db).put({"_id": "paid", **rule, "arguments": "orders:CREATED,UPDATED:=>paid:status"})
    system = await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    followed = system.scheduler._feeds._followed
    await eventually(lambda: "orders" in followed and followed["orders"].follower.past.seen is not None)
    for number in range(10):
        for states in (("paid", "shipped"), ("open", "paid", "shipped"), ("paid", "paid"), ("open", "shipped")):
            rev: dict[str, str] = {}
            for status in states:
                doc_id = f"{'-'.join(states)}-{number}"
                rev = {"_rev": await orders.put({"_id": doc_id, **rev, "status": status})}
    again = await orders.put({"_id": "again", "status": "paid"})
    await orders.delete("again", again)
    await orders.put({"_id": "again", "_rev": await orders.put({"_id": "again", "status": "paid"}), "status": "end"})
    for number in range(5):  # gone before anybody looks
        await orders.delete(f"gone-{number}", await orders.put({"_id": f"gone-{number}", "status": "paid"}))
    await eventually(lambda: so_many_jobs_of(connection, db, "paid", 37))
    jobs = await jobs_of(connection, db, "paid")
    assert len(jobs) == 37
    assert not [job for job in jobs if job["event"]["doc"]["_id"].startswith("open-shipped")]


async def test_hook_when_it_pushes_to_the_same_worker_then_a_job_of_its_own(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """And plain hooks that hang are in nobody's way."""
    ran: list[Any] = []
    go_on = threading.Event()

    async def alert(ctx: WorkerContext, error: JobFailedError) -> None:
        await ctx.push("ok", "alert")

    def hang(ctx: WorkerContext, error: JobFailedError) -> None:
        go_on.wait(20)

    def harmless(ctx: WorkerContext, error: JobFailedError) -> None:
        ran.append("harmless")

    @worker("ok")
    async def ok(ctx: WorkerContext, message: Any) -> None:
        ran.append(message)

    @worker("order", max_exec_count=1, on_failed=alert)
    async def order(ctx: WorkerContext) -> None:
        await ctx.push("ok", "step one")
        raise ValueError

    @worker("hangs", max_exec_count=1, on_failed=hang, concurrency=20)
    async def hangs(ctx: WorkerContext) -> None:
        raise ValueError

    @worker("other", max_exec_count=1, on_failed=harmless)
    async def other(ctx: WorkerContext) -> None:
        raise ValueError

    await start(ok, order, hangs, other)
    async with Couchjobs(settings=connection.settings) as couchjobs:
        await order.push()  # by the client that is open, without a connection of this task's own
        await eventually(lambda: sorted(map(str, ran)) == ["alert", "step one"])
        for _ in range(20):
            await couchjobs.push("hangs")
        job = (await couchjobs.push("other")).job
        assert (await wait(db, job.id, 10)).state is State.ERRORED
        assert "harmless" in ran
        go_on.set()


async def test_documents_when_changed_by_functions_then_as_json_and_under_their_own_names(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """1 is not true; an attachment without a name is none."""
    orders = await orders_of(connection, db)
    await orders.put({"_id": "a", "paid": 1, "lines": [0]})

    @worker("w", max_exec_count=1)
    async def change(ctx: WorkerContext) -> None:
        await ctx.couch["orders"].update("a", lambda doc: doc.update(paid=True, lines=[False]))
        await ctx.couch["orders"].attach("a", "p ü/.png", b"123", "image/png")
        assert await ctx.couch["orders"].attachment("a", "p ü/.png") == b"123"
        with pytest.raises(BadDocumentError):
            await ctx.couch["orders"].attach("a", "", b"{}", "application/json")

    await start(change)
    async with Couchjobs(settings=connection.settings) as couchjobs:
        job = await couchjobs.wait((await couchjobs.push("w")).job.id, 10)
        assert job.error is None
    stored = await orders.get("a")
    assert (stored["paid"], stored["lines"]) == (True, [False])
    assert stored["paid"] is True


PIECES = [bytes([number]) * 100_000 for number in range(12)]


@worker("copies", max_exec_count=1)
async def copies(ctx: WorkerContext) -> None:
    """Copy an attachment that is never whole in memory."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in PIECES:
            yield piece

    await ctx.couch["orders"].attach("a", "film", pieces(), "video/mp4")
    await ctx.couch["orders"].attach("a", "copy", ctx.couch["orders"].stream("a", "film"), "video/mp4")
    assert b"".join([piece async for piece in ctx.couch["orders"].stream("a", "copy")]) == b"".join(PIECES)
    with pytest.raises(NotFound):
        async for _ in ctx.couch["orders"].stream("a", "none"):
            pass


@worker("meets", max_exec_count=1)
async def meets(ctx: WorkerContext) -> None:
    """What goes wrong with pieces is said as what it is."""
    orders = ctx.couch["orders"]

    async def changed_meanwhile() -> AsyncIterator[bytes]:
        yield b"1"
        await orders.update("a", lambda doc: doc.update(changed=True))
        yield b"2"

    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        raise LookupError("no more")

    async def text() -> AsyncIterator[Any]:
        yield "text"

    with pytest.raises(Conflict):
        await orders.attach("a", "film", changed_meanwhile(), "video/mp4")
    with pytest.raises(LookupError, match="no more"):
        await orders.attach("a", "film", broken(), "video/mp4")
    with pytest.raises(TypeError, match="bytes, and not str"):
        await orders.attach("a", "film", text(), "video/mp4")


@worker("plain-copies", max_exec_count=1)
def plain_copies(ctx: WorkerContext) -> None:
    """The same in a thread."""
    ctx.sync_couch["orders"].attach("a", "film", iter(PIECES), "video/mp4")
    pieces = [*ctx.sync_couch["orders"].stream("a", "film")]
    assert b"".join(pieces) == b"".join(PIECES)
    assert len(pieces) > 1


async def test_attachments_when_large_then_in_pieces(connection: Connection, db: Prefixer, start: Start) -> None:
    """From both kinds of functions, on the server and in memory."""
    orders = await orders_of(connection, db)
    await orders.put({"_id": "a"})
    await start(copies, plain_copies, meets)
    async with Couchjobs(settings=connection.settings) as couchjobs:
        for name in ("copies", "plain-copies", "meets"):
            job = await couchjobs.wait((await couchjobs.push(name)).job.id, 30)
            assert job.error is None
    async with TestSystem(copies, plain_copies) as system:
        await system.couch["orders"].put({"_id": "a"})
        for name in ("copies", "plain-copies"):
            job = await system.push(name)
            await system.run_pending()
            assert system.job(job.id).error is None


async def test_test_system_when_something_would_reach_a_server_then_an_error(connection: Connection) -> None:
    """From a thread of a worker's own, and from the test; `once` is once."""

    @worker("w", max_exec_count=1)
    async def w(ctx: WorkerContext) -> str:
        def push() -> str:
            try:
                return w.sync_push().job.id
            except ConfigurationError as error:
                return str(error)

        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(push()))
        thread.start()
        await asyncio.to_thread(thread.join)
        return found[0]

    async with TestSystem(w) as system:
        with pytest.raises(ConfigurationError, match="a TestSystem is open"):
            await w.push()
        job = await system.push("w")
        await system.run_pending()
        assert "no CouchDB" in str(system.job(job.id).result)
        rule = {"_id": "o", "type": "@event", "arguments": "orders", "worker": "w", "message": None, "once": True}
        await system.add_trigger(rule)
        for number in range(3):
            await system.couch["orders"].update("a", lambda doc, number=number: doc.update(n=number))  # type: ignore[misc]
        assert len([one for one in system.broker.jobs.values() if one.trigger_id == "o"]) == 1


async def test_client_when_closed_or_of_another_loop_then_told_at_once(connection: Connection) -> None:
    """Whoever waits is not left hanging."""
    blocking = SyncCouchjobs(settings=connection.settings)
    job = (await asyncio.to_thread(blocking.push, "nobody")).job
    waiting = asyncio.create_task(asyncio.to_thread(blocking.wait, job.id, 60))
    background = blocking._background
    assert background is not None
    await eventually(lambda: asyncio.all_tasks(background.loop))
    began = time.monotonic()
    await asyncio.to_thread(blocking.close)
    with pytest.raises(ClosedError):
        await waiting
    assert time.monotonic() - began < 10
    closing: list[threading.Thread] = []

    def close_beside(one: Couchjobs) -> Any:
        closing.append(threading.Thread(target=blocking.close))
        closing[0].start()
        closing[0].join(0.5)
        return one.get(job.id)

    with pytest.raises(ClosedError):
        await asyncio.wait_for(asyncio.to_thread(blocking._run, close_beside), 20)
    closing[0].join()
    async with Couchjobs(settings=connection.settings) as couchjobs:

        def elsewhere() -> str:
            try:
                return asyncio.run(couchjobs.get(job.id)).id
            except ClosedError as error:
                return str(error)

        assert "another event loop" in await asyncio.to_thread(elsewhere)
        present = datetime.now(UTC)
        assert await couchjobs.jobs(since=present, until=present) == []
        hook = await couchjobs.triggers.add({"type": "@webhook", "worker": "w", "message": None})
        with pytest.raises(ConfigurationError, match="cannot be changed"):
            await couchjobs.triggers.update(hook.id, _rev="1-0")
