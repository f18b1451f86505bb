"""What people use to test their own workers."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from couchjobs.errors import BadDocumentError, BadRequest, ConfigurationError, JobNotFoundError, NotFound
from couchjobs.jobs.job import State
from couchjobs.jobs.request import JobRequest
from couchjobs.memory.broker import MemBroker
from couchjobs.prefixer import Prefixer
from couchjobs.testing import TestSystem
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker


@worker("greet", max_exec_count=2, retry_delay=30, before_hook=lambda job: job.message != "skip")
async def greet(ctx: WorkerContext, message: str) -> str:
    """Greet, but not at the first try where the message says so."""
    if message == "later" and ctx.exec_count == 1:
        raise ValueError("not yet")
    return f"Hello {message}"


async def test_run_pending_when_jobs_are_due_then_run() -> None:
    """A retry waits for the clock."""
    async with TestSystem(greet) as system:
        job, later = await system.push("greet", "Ann"), await system.push("greet", "later")
        assert await system.run_pending() == 2
        assert system.job(job.id).result == "Hello Ann"
        assert system.job(later.id).state is State.QUEUED
        await system.advance(60)
        assert system.job(later.id).result == "Hello later"
        with pytest.raises(LookupError):
            await system.push("greet", "skip")


async def test_push_when_a_plain_function_has_an_event_loop_of_its_own_then_refused_and_told_what_to_use() -> None:
    """The engine's connections and writers are those of one event loop: from another one they would never wake."""
    told: list[str] = []

    @worker("loops", max_exec_count=1)
    def loops(ctx: WorkerContext) -> str:
        async def inside() -> None:
            for ask in (lambda: ctx.push(greet, "Ann"), lambda: greet.push("Ann"), lambda: ctx.couch["orders"]):
                try:
                    asked = ask()
                    if hasattr(asked, "__await__"):
                        await asked
                except ConfigurationError as error:
                    told.append(str(error))

        asyncio.run(inside())
        return str(ctx.sync_push(greet, "Bob").created)

    async with TestSystem(loops, greet) as system:
        pushed = await system.push("loops", None)
        await system.run_pending()
        assert system.job(pushed.id).result == "True"
    assert len(told) == 3
    assert all("sync_" in text for text in told)


async def test_advance_when_triggers_are_due_then_they_fire_and_their_jobs_run() -> None:
    """An hour in no time."""
    async with TestSystem(greet) as system:
        await system.scheduler.add_trigger(
            system.db, TriggerInfos(type="@every", arguments="10m", worker="greet", message="x")
        )
        await system.scheduler.add_trigger(
            system.db, TriggerInfos(type="@event", arguments="orders:CREATED", worker="greet", message="y")
        )
        await system.advance(3600)
        assert len(system.assert_pushed("greet", "x", times=6)) == 6
        await system.scheduler.fire_event(system.db, "orders", "CREATED", {"_id": "a"})
        (job,) = system.assert_pushed("greet", "y")
        assert job.event is not None
        assert job.event["doc"] == {"_id": "a"}
        with pytest.raises(AssertionError, match="0 jobs for 'greet', at least 1 expected"):
            system.assert_pushed("greet", "z")
        with pytest.raises(AssertionError, match="6 jobs for 'greet', 5 expected"):
            system.assert_pushed("greet", "x", times=5)


async def test_cancel_when_queued_then_never_run() -> None:
    """And a job that is not there is not found."""
    broker = MemBroker(auto=False)
    await broker.start_workers(WorkersList([config_of(greet)]))
    job = await broker.push_job(Prefixer("d"), JobRequest(worker_type="greet", message="Ann"))
    assert job is not None
    await broker.cancel(job.id)
    assert (job.state, job.error) == (State.ERRORED, "cancelled")
    assert await broker.run_pending() == 0
    for missing in (broker.cancel("nothing"), broker.wait("nothing")):
        with pytest.raises(JobNotFoundError):
            await missing
    await broker.shutdown_workers()


async def test_change_when_a_document_is_written_again_then_as_couchdb_would_tell() -> None:
    """It is there for functions, with a revision, and what was there before is the old one."""

    @worker("receipt")
    async def receipt(ctx: WorkerContext) -> str:
        assert ctx.job.event is not None
        order = await ctx.couch["orders"].get(ctx.job.event["doc"]["_id"])
        return f"{ctx.job.event['verb']} {order['_rev'][:2]}"

    async with TestSystem(receipt) as system:
        rule = {"type": "@event", "arguments": "orders:CREATED,UPDATED:=>paid:status", "worker": "receipt"}
        await system.add_trigger({**rule, "message": None})
        for order in ({"status": "open"}, {"status": "paid"}, {"status": "paid", "note": "edited"}):
            await system.change("orders", {"_id": "a", **order})
        await system.run_pending()
        (job,) = system.assert_pushed("receipt", times=1)
        assert system.job(job.id).result == "UPDATED 3-"
        later = await system.push("receipt", delay="1h", event={"verb": "X", "doc": {"_id": "a"}})
        await system.advance("59m")
        assert system.job(later.id).state == "queued"
        await system.advance(timedelta(minutes=1))
        assert system.job(later.id).state == "done"


def test_worker_when_declared_without_its_name_or_with_odd_hooks_then_refused() -> None:
    """Not left out in silence, nor found out by the first job."""
    with pytest.raises(ConfigurationError, match="needs the type"):
        worker(lambda ctx: None)  # type: ignore[arg-type]
    for odd in ({"on_failed": "x"}, {"strict_priority": "yes"}, {"worker_init": 5}):
        with pytest.raises(ConfigurationError):
            worker("w", **odd)(lambda ctx: None)


async def test_system_when_as_the_documentation_shows_it_then_so() -> None:
    """docs/testing.md: a trigger on documents, a day that goes by, a job that is not there, a tenant."""
    whose: list[str | None] = []

    @worker("receipt")
    async def receipt(ctx: WorkerContext) -> None:
        whose.append(ctx.job.prefix)

    @worker("nightly", cron="0 3 * * *")
    async def nightly(ctx: WorkerContext) -> None:
        whose.append(ctx.job.prefix)

    async with TestSystem(receipt, nightly, prefix="acme") as system:
        await system.add_trigger(
            {"_id": "paid", "type": "@event", "arguments": "orders:CREATED,UPDATED:=>paid:status", "worker": "receipt"}
        )
        await system.change("orders", {"_id": "1", "status": "new"})
        await system.change("orders", {"_id": "1", "status": "paid"})
        (job,) = system.assert_pushed("receipt")
        assert system.job(job.id).state is State.QUEUED
        await system.advance("1d")  # what is due now runs first
        assert system.job(job.id).state is State.DONE
        system.assert_pushed("nightly", times=1)
        assert whose == ["acme", "acme"]
        with pytest.raises(JobNotFoundError, match=f"no job 'x'; there are: {job.id}"):
            system.job("x")


@worker("same", max_exec_count=1)
async def same(ctx: WorkerContext, message: int) -> None:
    """Push one id several times at once."""
    results = await asyncio.gather(*(greet.push(str(number), id="one") for number in range(4)))
    assert [result.created for result in results].count(True) == 1
    assert len({result.job.message for result in results}) == 1  # whose hook has answered first


async def test_push_when_one_id_is_pushed_several_times_at_once_then_one_job() -> None:
    """Though a hook is asked in between: as CouchDB has it."""
    async with TestSystem(greet, same) as system:
        job = await system.push("same", 1)
        await system.run_pending()
        assert (system.job(job.id).state, system.job(job.id).error) == (State.DONE, None)
        assert len(system.assert_pushed("greet", times=1)) == 1


@worker("flaky", max_exec_count=5, retry_delay=1)
async def flaky(ctx: WorkerContext) -> str:
    """Succeed at the fourth try."""
    if ctx.exec_count < 4:
        raise ValueError("not yet")
    return "ok"


@worker("tomorrow", max_exec_time="1h")
async def tomorrow(ctx: WorkerContext) -> str:
    """Have something done in an hour."""
    await asyncio.sleep(0.001)
    by_name = await ctx.push("flaky", delay="1h")
    return (await flaky.push(delay="1h")).job.id if ctx.job.message == "by its function" else by_name.job.id


async def test_advance_when_something_is_overdue_then_still_from_one_due_moment_to_the_next() -> None:
    """A moment that has passed, whether it fires or not; a job that nobody here runs."""
    hourly = {"_id": "hourly", "type": "@every", "arguments": "1h", "worker": "flaky"}
    async with TestSystem(flaky) as system:
        await system.add_trigger({**hourly, "_id": "past", "type": "@at", "arguments": "2025-12-31T12:00:00Z"})
        await system.add_trigger(hourly)
        await system.push("client", delay="1s")
        job = await system.push("flaky")
        await system.advance("5h")
        assert (system.job(job.id).state, system.job(job.id).exec_count) == (State.DONE, 4)
        ticks = [one.tick.hour for one in system.broker.jobs.values() if one.trigger_id == "hourly"]
        assert ticks == [1, 2, 3, 4, 5]
        system.clock.advance(3600)
        await system.advance("2h")
        ticks = [one.tick.hour for one in system.broker.jobs.values() if one.trigger_id == "hourly"]
        assert ticks == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_push_when_from_a_function_then_by_the_clock_of_the_test() -> None:
    """So is the time that all tries have together."""
    async with TestSystem(flaky, tomorrow) as system:
        for how in (None, "by its function"):
            job = await system.push("tomorrow", how)
            await system.run_pending()
            pushed = system.job(system.job(job.id).result)
            assert pushed.scheduled_at == system.clock() + timedelta(hours=1)
            await system.advance("2h")
            assert system.job(pushed.id).state is State.DONE


async def test_change_when_of_a_design_document_then_nothing_fires() -> None:
    """As with CouchDB."""
    async with TestSystem(flaky) as system:
        await system.add_trigger({"_id": "any", "type": "@event", "arguments": "orders", "worker": "flaky"})
        await system.change("orders", {"_id": "_design/x"})
        assert not system.broker.jobs


@pytest.mark.parametrize("change", [{"_rev": "1-a"}, {"_id": "another"}, {"_foo": 1}, {"price": float("nan")}])
@pytest.mark.parametrize("create", [True, False])
async def test_update_when_it_cannot_be_stored_then_refused_at_once(change: dict[str, object], create: bool) -> None:
    """Another revision is what a conflict is; it would be tried for ever."""
    async with TestSystem(flaky) as system:
        orders = system.couch["orders"]
        if not create:
            await orders.put({"_id": "a"})
        with pytest.raises((BadDocumentError, BadRequest)):
            await orders.update("a", lambda doc: doc.update(change))


@pytest.mark.parametrize("job_id", ["_x", "_design/a", "\ud800", ""])
async def test_push_when_couchdb_would_not_take_the_id_then_refused(job_id: str) -> None:
    """As it is by a client."""
    async with TestSystem(flaky) as system:
        with pytest.raises(BadDocumentError, match="id: must"):
            await system.push("flaky", id=job_id)


@pytest.mark.filterwarnings("error")
async def test_put_when_a_document_holds_itself_then_refused() -> None:
    """Not looked through for ever."""
    own: dict[str, object] = {"_id": "a"}
    own["own"] = own
    async with TestSystem(flaky) as system:
        with pytest.raises(BadRequest):
            await system.couch["orders"].put(own)


def leaves(ctx: WorkerContext, error: BaseException | None) -> None:
    """Try to end the process."""
    raise SystemExit(3)


async def leaves_too(ctx: WorkerContext, error: BaseException | None) -> None:
    """Try to."""
    raise KeyboardInterrupt


def wants_out(error: BaseException) -> bool:
    """Try to."""
    raise SystemExit(3)


@pytest.mark.parametrize("commit", [leaves, leaves_too])
async def test_hook_when_it_tries_to_end_the_process_then_the_job_has_its_end(commit: object) -> None:
    """The boundary lets nothing out, whoever calls."""

    @worker("commits", worker_commit=commit)
    async def commits(ctx: WorkerContext) -> str:
        return "done"

    @worker("fails", error_hook=wants_out, max_exec_count=2)
    async def fails(ctx: WorkerContext) -> None:
        raise ValueError("no")

    async with TestSystem(commits, fails) as system:
        good, bad = await system.push("commits"), await system.push("fails")
        await system.run_pending()
        assert (system.job(good.id).state, system.job(good.id).result) == (State.DONE, "done")
        assert system.job(bad.id).state is State.ERRORED


async def test_attachments_when_they_come_with_a_document_or_are_left_out_then_as_couchdb_has_it() -> None:
    """What a document does not name is gone."""
    async with TestSystem(flaky) as system:
        orders = system.couch["orders"]
        inline = {"note": {"content_type": "text/plain", "data": "aGVsbG8="}}
        stored = await orders.put({"_id": "a", "_attachments": inline})
        assert await orders.attachment("a", "note") == b"hello"
        stored = await orders.put({**stored, "seen": True})
        assert await orders.attachment("a", "note") == b"hello"
        await orders.update("a", lambda doc: doc.pop("_attachments"))
        with pytest.raises(NotFound):
            await orders.attachment("a", "note")
        with pytest.raises(BadRequest):
            await orders.query({"seen": True}, limit=-1)
