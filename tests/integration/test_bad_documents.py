"""Documents that nobody should write: each gets a reason where its author looks, and everything else goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from copies import remake
from fault_proxy import Answer, FaultProxy
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import BadDocumentError, CouchError
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job, get_lasts_jobs
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]


@worker("echo")
async def echo(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    return message


BAD_JOBS: list[tuple[str, dict[str, Any], str]] = [
    ("no message", {"worker": "echo", "state": "queued"}, 'message is missing: write "message": null'),
    (
        "timeout",
        {"worker": "echo", "message": 1, "state": "queued", "options": {"timeout": "soon"}},
        "options.timeout: ",
    ),
    (
        "tries",
        {"worker": "echo", "message": 1, "state": "queued", "options": {"max_exec_count": -1}},
        "options.max_exec_count: ",
    ),
    ("list", {"worker": ["echo"], "message": 1, "state": "queued"}, "worker: "),
    ("no worker", {"message": 1, "state": "queued"}, "worker: "),
    ("state", {"worker": "echo", "message": 1, "state": "waiting"}, "state: "),
    ("no state", {"worker": "echo", "message": 1}, "state is missing"),
    ("time", {"worker": "echo", "message": 1, "state": "queued", "scheduled_at": "tomorrow"}, "scheduled_at: "),
    ("count", {"worker": "echo", "message": 1, "state": "queued", "exec_count": "three"}, "exec_count: "),
    ("priority", {"worker": "echo", "message": 1, "state": "queued", "priority": "high"}, "priority: "),
    ("errors", {"worker": "echo", "message": 1, "state": "queued", "errors": "none"}, "errors: "),
    ("old form", {"worker": "echo", "message": {"Type": "json", "Data": "%%%"}, "state": "queued"}, "message: "),
    ("5 MB", {"worker": "echo", "message": "x" * 5_000_000, "state": "queued"}, "5,000,002 bytes"),
]


async def test_bad_jobs_when_written_then_errored_with_the_reason(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Unknown fields stay, the good job beside them is done, and the store can still show the bad ones."""
    await start(echo)
    database = connection.database(db.database("jobs"))
    for job_id, document, _ in BAD_JOBS:
        await database.put({"_id": job_id, **document, "kept": [1]})
    await database.put({"_id": "note", "text": "this is no job"})
    await database.put({"_id": "good", "worker": "echo", "message": 1, "state": "queued"})
    for job_id, _, reason in BAD_JOBS:
        ended = await wait(db, job_id, 10)
        assert ended.state is State.ERRORED
        assert str(ended.error).startswith("bad job: ")
        assert reason in str(ended.error), job_id
        assert ended.document()["kept"] == [1]
    assert (await wait(db, "good", 10)).state is State.DONE
    assert (await database.get("note"))["_rev"].startswith("1-")
    assert await get_lasts_jobs(db, "echo")
    assert (await get_job(db, "list")).worker == "['echo']"


async def test_push_when_message_is_too_large_then_refused(connection: Connection, db: Prefixer, start: Start) -> None:
    """Nothing is stored, and the reason says what to do."""
    system = await start(echo)
    with pytest.raises(BadDocumentError, match="COUCHJOBS_MAX_MESSAGE_BYTES"):
        await system.broker.push_job(db, JobRequest(worker_type="echo", message="x" * 2_000_000))
    assert [page async for page in system.broker.store_of("").database.all_docs()] == []


async def test_bad_triggers_when_written_then_shown_with_the_reason_and_left_alone(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The good one beside them fires."""
    database = connection.database(db.database("triggers"))
    bad = {
        "unknown": (
            {"type": "@nothing", "worker": "echo", "arguments": "", "message": None},
            "'@nothing' is no type of trigger",
        ),
        "number": ({"type": "@every", "worker": "echo", "arguments": 5, "message": None}, "arguments: "),
        "malformed": ({"type": "@every", "worker": "echo", "arguments": "often", "message": None}, "is not a duration"),
        "no worker": ({"type": "@every", "arguments": "1h", "message": None}, "worker: "),
        "verb": (
            {"type": "@event", "worker": "echo", "arguments": "orders:MADE", "message": None},
            "'MADE' is no verb",
        ),
        "not one": ({"text": "hello"}, "type: "),
    }
    revs = {name: await database.put({"_id": name, **document}) for name, (document, _) in bad.items()}
    await database.put({"_id": "good", "type": "@in", "worker": "echo", "arguments": "10ms", "message": None})
    system = await start(echo)
    await eventually(lambda: len(system.scheduler.triggers.bad) == len(bad))
    for name, (_, reason) in bad.items():
        assert reason in system.scheduler.triggers.bad[name]
        assert (await database.get(name))["_rev"] == revs[name]
    store = JobStore(connection, db)

    async def fired() -> bool:
        return bool([page async for page in store.database.all_docs()])

    await eventually(fired)


def nested(levels: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


async def test_deep_documents_when_written_then_refused_and_everything_else_goes_on(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A job, a trigger, a source document: 300 levels are read by the parser and not written by it."""
    jobs, triggers = connection.database(db.database("jobs")), connection.database(db.database("triggers"))
    await connection.server.create_database(db.database("orders"))
    orders = connection.database(db.database("orders"))

    async def put(database: Any, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        await connection.server.request("PUT", f"{database.path}/{document['_id']}", body=body)

    system = await start(echo)
    event = {"_id": "event", "type": "@event", "arguments": "orders", "worker": "echo", "message": None}
    await triggers.put(event)
    await put(triggers, {**event, "_id": "deep", "message": nested(300)})
    await eventually(lambda: "deep" in system.scheduler.triggers.bad and "event" in system.scheduler.triggers.events)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await put(jobs, {"_id": "deep", "worker": "echo", "message": nested(300), "state": "queued"})
    deepest = b'{"worker": "echo", "state": "queued", "message": ' + b"[" * 1500 + b"]" * 1500 + b"}"
    for database in (jobs, triggers, orders):
        await connection.server.request("PUT", f"{database.path}/deepest", body=deepest)
    readable = deepest.replace(b"[" * 1500, b"[" * 1010).replace(b"]" * 1500, b"]" * 1010)
    await connection.server.request("PUT", f"{jobs.path}/readable", body=readable)
    await put(orders, {"_id": "deep", "x": nested(300)})
    await orders.put({"_id": "flat"})
    await jobs.put({"_id": "good", "worker": "echo", "message": 1, "state": "queued"})
    assert (await wait(db, "good", 10)).state is State.DONE
    assert "nested too deep" in str((await wait(db, "deep", 10)).error)
    assert "nested too deep" in str((await wait(db, "readable", 10)).error)

    async def fired() -> bool:
        found = [document async for page in jobs.all_docs() for document in page]
        return any(document.get("event", {}).get("doc", {}).get("_id") == "flat" for document in found)

    await eventually(fired)


async def test_answer_when_50_megabytes_then_not_read_and_nothing_lost(
    connection: Connection, db: Prefixer, start: Start, server_url: str
) -> None:
    """Whoever sends it; the document says what became of the write."""
    async with FaultProxy(server_url) as proxy:
        swollen = 0

        def swell(answer: Answer) -> None:
            nonlocal swollen
            if answer.path.endswith("_bulk_docs") and b'"echo"' in answer.sent and swollen < 3:
                swollen += 1
                answer.body = b'[{"x":"' + b"x" * 50_000_000 + b'"}]'

        proxy.after = swell
        await start(echo, url=proxy.url)
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "a", "worker": "echo", "message": 1, "state": "queued"})
        done = await wait(db, "a", 10)
    assert (done.state, done.exec_count) == (State.DONE, 1)
    assert swollen >= 2, "that of the claim, and that of the end"


async def test_documents_when_8_megabytes_or_10000_deep_then_the_others_go_on(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Where CouchDB takes them at all."""
    jobs = connection.database(db.database("jobs"))
    head = b'{"worker":"echo","state":"queued","message":'
    taken = []
    for name, message in (("large", b'"' + b"x" * 7_900_000 + b'"'), ("deep", b"[" * 10_000 + b"]" * 10_000)):
        try:
            await connection.server.request("PUT", f"{jobs.path}/{name}", body=head + message + b"}")
        except CouchError:
            continue
        taken.append(name)
    await start(echo)
    await jobs.put({"_id": "good", "worker": "echo", "message": 1, "state": "queued"})
    assert (await wait(db, "good", 20)).state is State.DONE
    if "large" in taken:
        assert "bytes" in str((await wait(db, "large", 20)).error)


async def test_jobs_database_when_deleted_and_made_again_then_the_daemon_goes_on(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """With its design documents."""
    system = await start(echo)
    name = db.database("jobs")
    await remake(connection, name)

    async def reinstalled() -> bool:
        try:
            answer = await connection.server.request("GET", f"{system.broker.store_of('').database.path}/_design_docs")
        except CouchError:
            return False
        return len(answer["rows"]) == 2

    await eventually(reinstalled)
    await connection.database(name).put({"_id": "again", "worker": "echo", "message": 1, "state": "queued"})
    assert (await wait(db, "again", 10)).state is State.DONE


async def test_hook_when_it_refuses_a_trigger_s_job_then_the_feed_goes_on(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """An exception of user code must not hold up events."""

    def refuse(job: Any) -> bool:
        if job.event["doc"]["_id"] == "bad":
            raise PermissionError("not this one")
        return True

    @worker("hooked", before_hook=refuse)
    async def hooked(ctx: WorkerContext) -> None:
        return None

    await connection.server.create_database(db.database("orders"))
    orders = connection.database(db.database("orders"))
    trigger = {"_id": "event", "type": "@event", "arguments": "orders", "worker": "hooked", "message": None}
    await connection.database(db.database("triggers")).put(trigger)
    await start(hooked)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    await orders.put({"_id": "bad"})
    await orders.put({"_id": "good"})

    async def done() -> bool:
        jobs = connection.database(db.database("jobs"))
        return [document["state"] async for page in jobs.all_docs() for document in page] == ["done"]

    await eventually(done)


async def test_hooks_when_many_are_wanted_at_once_then_each_has_its_turn(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain ones have so many threads; who waits is not late, as long as others come to their turns."""
    monkeypatch.setattr("couchjobs.workers.admission.LONGEST_HOOK_S", 1.0)
    asked: list[str] = []

    def slow(job: Any) -> bool:
        asked.append(job.id)
        time.sleep(0.3)
        return False

    @worker("hooked", before_hook=slow)
    async def hooked(ctx: WorkerContext) -> None:
        return None

    system = await start(hooked)
    answers = await system.broker.push_jobs(db, [JobRequest(worker_type="hooked", message=n) for n in range(200)])
    assert answers == [None] * 200
    assert len(asked) == 200
