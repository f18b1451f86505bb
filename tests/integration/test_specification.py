"""One test for each row of the specification; `scripts/specification` prints row, test and result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from waiting import eventually

import couchjobs as cj
from couchjobs.couch.connection import Connection
from couchjobs.timestamps import now

Start = Callable[..., Any]
ROWS = [
    line.split("\t")[0]
    for line in (Path(__file__).parent.parent / "data" / "specification.tsv").read_text().splitlines()
]
covered: dict[str, str] = {}


def row(name: str) -> Callable[[Any], Any]:
    """Say which row of the specification the test is about."""
    assert name in ROWS, name

    def note(test: Any) -> Any:
        covered[name] = test.__name__
        return test

    return note


class Mail(BaseModel):
    """A message."""

    to: str


seen: list[Any] = []


@cj.worker("echo", retry_delay=0.01)
async def echo(ctx: cj.WorkerContext, message: Any) -> Any:
    """Return the message; raise what it names."""
    seen.append(threading.current_thread() is threading.main_thread())
    match message:
        case "abort":
            raise cj.AbortJob
        case "bad trigger":
            raise cj.BadTriggerError(ValueError("gone"))
        case "mail":
            ctx.unmarshal_message(Mail)
        case "event":
            ctx.unmarshal_event(Mail)
        case "fails":
            raise ValueError("no")
    return message


@pytest.fixture
async def push(connection: Connection, db: cj.Prefixer, start: Start) -> Callable[..., Any]:
    """Start a system and return how to push a job and wait for its end."""
    system = await start(echo)

    async def end(message: Any, **more: Any) -> cj.Job:
        job = await system.broker.push_job(db, cj.JobRequest(worker_type="echo", message=message, **more))
        return await cj.wait(db, job.id, 10)

    end.system = system  # type: ignore[attr-defined]
    return end


async def stored(connection: Connection, db: cj.Prefixer, job_id: str, **fields: Any) -> cj.Job:
    """Store a job of a worker that nobody has and return it."""
    document = {
        "_id": job_id,
        "worker": "nobody",
        "message": None,
        "state": "queued",
        "queued_at": "2026-01-01T00:00:00Z",
    }
    await connection.writer(db.database("jobs")).write({**document, **fields})
    return await cj.get_job(db, job_id)


@row('WorkerType = "worker"')
def test_worker_type() -> None:
    """The key, in JSON, of the type of worker."""
    assert cj.WORKER_TYPE == "worker"


@row("ErrClosed")
async def test_closed_error(push: Any) -> None:
    """Use of a closed system, start of a started one."""
    with pytest.raises(cj.ClosedError):
        await push.system.start()


@row("ErrNotFoundJob")
async def test_job_not_found_error(connection: Connection, db: cj.Prefixer) -> None:
    """No job with that id."""
    with pytest.raises(cj.JobNotFoundError):
        await cj.get_job(db, "nothing")


@row("ErrQueueClosed")
async def test_queue_closed_error(push: Any) -> None:
    """Push to a closed queue."""
    await push.system.shutdown()
    with pytest.raises(cj.QueueClosedError):
        await push("late")


@row("ErrUnknownWorker")
async def test_unknown_worker_error(push: Any, db: cj.Prefixer) -> None:
    """No worker of that type is registered."""
    with pytest.raises(cj.UnknownWorkerError):
        await push.system.broker.push_job(db, cj.JobRequest(worker_type="nothing"))


@row("ErrMessageNil")
async def test_message_nil_error(push: Any) -> None:
    """An absent event was read; never tried again."""
    job = await push("event")
    assert (job.exec_count, job.error.split(":")[0]) == (1, "MessageNilError")


@row("ErrMessageUnmarshal")
async def test_message_unmarshal_error(push: Any) -> None:
    """It does not fit the model; never tried again."""
    job = await push("mail")
    assert (job.exec_count, job.error.split(":")[0]) == (1, "MessageUnmarshalError")


@row("ErrAbort")
async def test_abort_job(push: Any) -> None:
    """Stop now, without error; never tried again."""
    job = await push("abort")
    assert (job.state, job.exec_count, job.error) == (cj.State.DONE, 1, None)


@row("ErrUnknownTrigger")
async def test_unknown_trigger_error(push: Any, db: cj.Prefixer) -> None:
    """Trigger type not known."""
    with pytest.raises(cj.UnknownTriggerError):
        await push.system.scheduler.add_trigger(db, cj.TriggerInfos(type="@nothing", worker="echo"))


@row("ErrNotFoundTrigger")
async def test_trigger_not_found_error(push: Any, db: cj.Prefixer) -> None:
    """No trigger with that id."""
    with pytest.raises(cj.TriggerNotFoundError):
        await push.system.scheduler.get_trigger(db, "nothing")


@row("ErrMalformedTrigger")
def test_malformed_trigger_error(db: cj.Prefixer) -> None:
    """Arguments cannot be parsed; HTTP status 400."""
    with pytest.raises(cj.MalformedTriggerError) as caught:
        cj.new_trigger(db, cj.TriggerInfos(type="@cron", arguments="x", worker="echo"))
    assert caught.value.status == 400


@row("ErrBadTrigger{Err}")
async def test_bad_trigger_error(push: Any, connection: Connection, db: cj.Prefixer) -> None:
    """No retry, errored, its trigger deleted, other jobs of the trigger left alone."""
    scheduler = push.system.scheduler
    await scheduler.add_trigger(db, cj.TriggerInfos(id="t", type="@webhook", worker="echo"))
    other = await stored(connection, db, "other", trigger_id="t")
    job = await push("bad trigger", trigger_id="t")
    assert (job.state, job.exec_count, job.error) == (cj.State.ERRORED, 1, "BadTriggerError: gone")
    await push.system.broker.idle()
    with pytest.raises(cj.TriggerNotFoundError):
        await scheduler.get_trigger(db, "t")
    assert (await cj.get_job(db, "other")).rev == other.rev


@row("State")
def test_state() -> None:
    """These four and no other."""
    assert [state.value for state in cj.State] == ["queued", "running", "done", "errored"]


@row("Message, NewMessage, Unmarshal")
def test_message() -> None:
    """The old form stays readable."""
    old = {"Type": "json", "Data": "eyJ0byI6ICJhbm4ifQ=="}
    assert cj.unmarshal(old, Mail) == cj.unmarshal(cj.new_message(Mail(to="ann")), Mail) == Mail(to="ann")


@row("Event")
def test_event() -> None:
    """Domain, verb, document, the old one."""
    event = cj.Event.model_validate({"domain": "d", "verb": "UPDATED", "doc": {"_id": "a"}, "old": {"_id": "a"}})
    assert (event.domain, event.prefix, event.verb, event.doc, event.old) == (
        "d",
        None,
        "UPDATED",
        {"_id": "a"},
        {"_id": "a"},
    )


@row("Job")
async def test_job(connection: Connection, db: cj.Prefixer) -> None:
    """Fields, clone, doctype, tenant, logger, match."""
    job = await stored(connection, db, "a", domain="d", prefix="p")
    twin = job.clone()
    assert (twin.id, twin.rev, twin.doc_type, twin.domain_name, twin.db_prefix) == ("a", job.rev, "jobs", "d", "p")
    assert twin.match("worker", "nobody")
    assert twin.match("state", "queued")
    assert twin.logger is not None


@row("Get")
async def test_get_job(connection: Connection, db: cj.Prefixer) -> None:
    """By id."""
    await stored(connection, db, "a")
    assert (await cj.get_job(db, "a")).worker == "nobody"


@row("GetJobs(db, triggerID, limit)")
async def test_get_jobs(connection: Connection, db: cj.Prefixer) -> None:
    """Newest first; limit 0 means 50."""
    for number in range(3):
        await stored(connection, db, f"job-{number}", trigger_id="t", queued_at=f"2026-01-01T00:00:0{number}Z")
    assert [job.id for job in await cj.get_jobs(db, "t", 2)] == ["job-2", "job-1"]
    assert len(await cj.get_jobs(db, "t", 0)) == 3


@row("GetJobsBeforeDate")
async def test_get_jobs_before_date(connection: Connection, db: cj.Prefixer) -> None:
    """All jobs queued before the date."""
    await stored(connection, db, "old")
    await stored(connection, db, "new", queued_at="2099-01-01T00:00:00Z")
    assert [job.id for job in await cj.get_jobs_before_date(db, now())] == ["old"]


@row("GetLastsJobs(db, workerType)")
async def test_get_lasts_jobs(connection: Connection, db: cj.Prefixer) -> None:
    """For each state in order, the newest 50, oldest of those first."""
    for state in cj.State:
        await stored(connection, db, f"1-{state}", state=state.value)
        await stored(connection, db, f"2-{state}", state=state.value, queued_at="2026-01-02T00:00:00Z")
    expected = [f"{number}-{state}" for state in cj.State for number in (1, 2)]
    assert [job.id for job in await cj.get_lasts_jobs(db, "nobody")] == expected


@row("GetQueuedJobs(db, workerType)")
async def test_get_queued_jobs(connection: Connection, db: cj.Prefixer) -> None:
    """Queued or running."""
    for state in cj.State:
        await stored(connection, db, state.value, state=state.value)
    assert {job.id for job in await cj.get_queued_jobs(db, "nobody")} == {"queued", "running"}


@row("NewJob(db, req)")
def test_new_job(db: cj.Prefixer) -> None:
    """Queued, now."""
    job = cj.new_job(db, cj.JobRequest(worker_type="w"))
    assert job.state is cj.State.QUEUED
    assert job.queued_at is not None
    assert now() - job.queued_at < timedelta(seconds=5)


@row("Job.Create/Update/AckConsumed/Ack/Nack")
async def test_job_store(connection: Connection, db: cj.Prefixer) -> None:
    """Create, update, run, end well, end badly."""
    store = cj.JobStore(connection, db)
    job, other = (cj.new_job(db, cj.JobRequest(worker_type="w")) for _ in range(2))
    assert await store.create(job)
    assert await store.create(other)
    await store.update(job, progress=0.5)
    assert (await store.get(job.id)).progress == 0.5
    assert await store.ack_consumed(job)
    assert ((await store.get(job.id)).state, job.started_at is not None) == (cj.State.RUNNING, True)
    assert await store.ack(job)
    assert ((await store.get(job.id)).state, job.finished_at is not None) == (cj.State.DONE, True)
    assert await store.nack(other, "no")
    assert ((await store.get(other.id)).state, other.error, other.finished_at is not None) == (
        cj.State.ERRORED,
        "no",
        True,
    )


@row("JobErrorCheckerHook")
async def test_error_hook(db: cj.Prefixer, start: Start) -> None:
    """Asked before each retry; False stops them."""
    asked: list[str] = []

    def hook(error: BaseException) -> bool:
        asked.append(str(error))
        return len(asked) < 2

    @cj.worker("w", error_hook=hook, max_exec_count=9, retry_delay=0.01)
    async def fails(ctx: cj.WorkerContext) -> None:
        raise ValueError(ctx.exec_count)

    system = await start(fails)
    job = await system.broker.push_job(db, cj.JobRequest(worker_type="w"))
    assert (await cj.wait(db, job.id, 10)).exec_count == 2
    assert asked == ["1", "2"]


@row("JobOptions")
async def test_job_options(push: Any) -> None:
    """Seconds, or text; lower, never raise."""
    assert cj.JobOptions.model_validate({"timeout": "1m30s"}).timeout == 90
    assert (await push("fails", options=cj.JobOptions(max_exec_count=1))).exec_count == 1
    assert (await push("fails", options=cj.JobOptions(max_exec_count=99))).exec_count == 3


@row("JobRequest")
def test_job_request(db: cj.Prefixer) -> None:
    """All fields reach the job."""
    infos = cj.TriggerInfos(id="t", type="@webhook", worker="w")
    request = cj.JobRequest(
        worker_type="w",
        trigger=infos,
        message=1,
        event={"verb": "CREATED"},
        manual=True,
        debounced=True,
        forward_logs=True,
        admin=True,
    )
    job = cj.new_job(db, request)
    assert (job.trigger_id, job.message, job.event, job.manual_execution) == ("t", 1, {"verb": "CREATED"}, True)
    assert (job.debounced, job.forward_logs, request.doc_type, request.id) == (True, True, "jobs", None)
    assert request.match("worker", "w")


@row("JobSystem, SystemStart")
async def test_system_start(connection: Connection) -> None:
    """Started together, shut down in order."""
    system = await cj.system_start(cj.MemBroker(), cj.MemScheduler(), cj.WorkersList())
    assert isinstance(system, cj.JobSystem)
    await system.shutdown()
    with pytest.raises(cj.ClosedError):
        await system.shutdown()


@row("Broker")
async def test_broker(push: Any) -> None:
    """The five methods."""
    broker: cj.Broker = push.system.broker
    assert broker.workers_types() == ["echo"]
    assert await broker.worker_queue_len("echo") == 0
    assert (await push({"a": 1})).result == {"a": 1}


@row("NewMemBroker, NewMemScheduler")
async def test_memory(db: cj.Prefixer) -> None:
    """One process, no CouchDB."""
    broker, scheduler = cj.MemBroker(), cj.MemScheduler()
    system = await cj.system_start(
        broker, scheduler, cj.WorkersList([cj.WorkerConfig(worker_type="w", worker_func=lambda ctx: 5)])
    )
    await scheduler.add_trigger(db, cj.TriggerInfos(id="t", type="@webhook", worker="w"))
    job = await scheduler.fire_webhook("t", None)
    assert job is not None
    assert (await broker.wait(job.id, 5)).result == 5
    await system.shutdown()


@row("Scheduler")
async def test_scheduler(push: Any, db: cj.Prefixer) -> None:
    """The methods of the protocol."""
    scheduler: cj.Scheduler = push.system.scheduler
    await scheduler.add_trigger(db, cj.TriggerInfos(id="t", type="@every", arguments="1h", worker="echo"))
    await scheduler.poll_scheduler(now())

    async def listed() -> bool:
        return [infos.id for infos in await scheduler.get_all_triggers(db)] == ["t"]

    await eventually(listed)
    await scheduler.rebuild(db)
    await scheduler.clean()
    await scheduler.delete_trigger(db, "t")


@row("Trigger, NewTrigger")
async def test_trigger(db: cj.Prefixer) -> None:
    """Type, infos, schedule, unschedule."""
    trigger = cj.new_trigger(db, cj.TriggerInfos(id="t", type="@in", arguments="10ms", worker="w"), {"a": 1})
    assert (trigger.type, trigger.infos.message) == ("@in", {"a": 1})
    assert [request.trigger_id async for request in trigger.schedule()] == ["t"]
    trigger.unschedule()


@row("TriggerInfos")
def test_trigger_infos() -> None:
    """Clone, requests, match."""
    infos = cj.TriggerInfos(id="t", type="@every", arguments="1h", worker="w", message=1)
    assert infos.clone() == infos
    assert infos.job_request().trigger_id == "t"
    assert infos.job_request_with_event({"verb": "CREATED"}).event == {"verb": "CREATED"}
    assert infos.match("worker", "w")
    assert infos.match("type", "@every")


@row("EventTrigger, NewEventTrigger")
async def test_event_trigger(db: cj.Prefixer) -> None:
    """Doctype, id, infos, match, schedule, type, unschedule."""
    trigger = cj.new_trigger(db, cj.TriggerInfos(id="t", type="@event", arguments="orders", worker="w"))
    assert isinstance(trigger, cj.EventTrigger)
    assert (trigger.doc_type, trigger.id, trigger.type, trigger.infos.id) == ("triggers", "t", "@event", "t")
    assert trigger.match("worker", "w")
    trigger.notify("orders", cj.Event(verb="CREATED", doc={"_id": "a"}))
    trigger.unschedule()
    assert len([request async for request in trigger.schedule()]) == 1


@row("TriggerState, GetTriggerState")
async def test_trigger_state(connection: Connection, db: cj.Prefixer) -> None:
    """From the trigger's last jobs."""
    await stored(connection, db, "a", trigger_id="t", state="errored", error="no")

    async def has_failed() -> bool:  # as whichever copy of the view says
        state = await cj.get_trigger_state(db, "t")
        assert isinstance(state, cj.TriggerState)
        return (state.status, state.last_failed_job_id, state.last_error) == (cj.State.ERRORED, "a", "no")

    await eventually(has_failed)


@row("Worker, NewWorker")
async def test_worker() -> None:
    """A try of a job."""
    config = cj.WorkerConfig(worker_type="w", worker_func=lambda ctx: ctx.id)
    outcome = await cj.Worker(config).begin(cj.Job(id="a", worker="w", exec_count=1)).run()
    assert outcome.result == "a"  # type: ignore[union-attr]


@row("WorkerConfig, Clone")
def test_worker_config() -> None:
    """The fields of the specification."""
    config = cj.WorkerConfig(
        worker_type="w", worker_func=print, concurrency=2, max_exec_count=5, timeout=9, retry_delay=3
    )
    assert config.clone() == config
    for name in ("worker_init", "worker_start", "worker_commit", "before_hook", "error_hook", "admin_only"):
        assert hasattr(config, name)


@row("WorkersList, GetWorkersList, GetWorkersNamesList, AddWorker")
def test_workers_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty type and one that is there already are refused."""
    monkeypatch.setattr("couchjobs.workers.registry._added", cj.WorkersList())
    cj.add_worker(cj.WorkerConfig(worker_type="w", worker_func=print))
    assert cj.get_workers_names_list() == [config.worker_type for config in cj.get_workers_list()] == ["w"]
    for worker_type in ("w", ""):
        with pytest.raises(cj.ConfigurationError):
            cj.add_worker(cj.WorkerConfig(worker_type=worker_type, worker_func=print))


@row("WorkerContext")
def test_worker_context() -> None:
    """The names of the specification."""
    job = cj.Job(id="a", worker="w", message={"to": "ann"}, event={"to": "bob"}, trigger_id="t", manual_execution=True)
    ctx = cj.WorkerContext(job)
    assert (ctx.id, ctx.manual, ctx.no_retry, ctx.trigger_id, ctx.cookie) == ("a", True, False, "t", None)
    ctx.set_no_retry()
    assert ctx.no_retry
    assert ctx.with_cookie(5).cookie == 5
    assert ctx.with_timeout(5).deadline is not None
    assert (ctx.unmarshal_message(Mail).to, ctx.unmarshal_event(Mail).to) == ("ann", "bob")
    assert ctx.logger is not None


async def _hooked(start: Start, db: cj.Prefixer, message: Any = None, **hooks: Any) -> cj.Job | None:
    @cj.worker("hooked", max_exec_count=2, retry_delay=0.01, **hooks)
    def hooked(ctx: cj.WorkerContext, message: Any) -> Any:
        if message == "fails":
            raise ValueError("no")
        return [ctx.cookie, threading.current_thread() is threading.main_thread()]

    system = await start(hooked)
    job = await system.broker.push_job(db, cj.JobRequest(worker_type="hooked", message=message))
    return await cj.wait(db, job.id, 10) if job else None


@row("WorkerInitFunc")
async def test_worker_init(start: Start, db: cj.Prefixer) -> None:
    """Once, when the worker system starts."""
    inits: list[int] = []
    await _hooked(start, db, worker_init=lambda: inits.append(1))
    assert inits == [1]


@row("WorkerStartFunc")
async def test_worker_start(start: Start, db: cj.Prefixer) -> None:
    """Before each try; what it returns is the context."""
    job = await _hooked(start, db, worker_start=lambda ctx: ctx.with_cookie("c"))
    assert job is not None
    assert job.result[0] == "c"


@row("WorkerFunc")
async def test_worker_func(start: Start, db: cj.Prefixer, push: Any) -> None:
    """A coroutine runs in the loop, a plain function in a thread."""
    seen.clear()
    await push(1)
    job = await _hooked(start, db)
    assert job is not None
    assert (seen, job.result[1]) == ([True], False)


@row("WorkerCommit")
async def test_worker_commit(start: Start, db: cj.Prefixer) -> None:
    """Once, after the last try, with the error; its own failure changes nothing."""
    commits: list[str] = []

    def commit(ctx: cj.WorkerContext, error: BaseException | None) -> None:
        commits.append(str(error))
        raise RuntimeError("of its own")

    job = await _hooked(start, db, "fails", worker_commit=commit)
    assert job is not None
    assert (job.error, commits) == ("ValueError: no", ["no"])


@row("WorkerBeforeHook")
async def test_before_hook(start: Start, db: cj.Prefixer) -> None:
    """False skips the job, an exception refuses it."""
    assert await _hooked(start, db, before_hook=lambda job: False) is None

    def refuse(job: cj.Job) -> bool:
        raise PermissionError("not you")

    with pytest.raises(PermissionError):
        await _hooked(start, db, before_hook=refuse)


@row("admin_only / JobRequest.admin")
async def test_admin_only(start: Start, db: cj.Prefixer) -> None:
    """Only requests with admin=True."""

    @cj.worker("admins", admin_only=True)
    async def admins(ctx: cj.WorkerContext) -> None: ...

    system = await start(admins)
    with pytest.raises(cj.AdminOnlyError):
        await system.broker.push_job(db, cj.JobRequest(worker_type="admins"))
    job = await system.broker.push_job(db, cj.JobRequest(worker_type="admins", admin=True))
    assert (await cj.wait(db, job.id, 10)).state is cj.State.DONE


@row("permission.Matcher")
def test_matcher(db: cj.Prefixer) -> None:
    """On jobs, requests, triggers."""
    infos = cj.TriggerInfos(id="t", type="@event", arguments="orders", worker="w")
    for checked in (
        cj.Job(id="a", worker="w"),
        cj.JobRequest(worker_type="w", id="a"),
        infos,
        cj.new_trigger(db, infos),
    ):
        assert checked.match("worker", "w")
        assert not checked.match("worker", "other")
        assert checked.doc_type in ("jobs", "triggers")
        assert checked.id in ("a", "t")


def test_rows_when_counted_then_none_is_missing() -> None:
    """Each row of the specification has its test."""
    assert set(covered) == set(ROWS)
