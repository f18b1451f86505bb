"""Answers that come late or wrong, in the engine itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fault_proxy import Answer, FaultProxy, Refusal
from triggering import jobs_of, note, orders_of, triggers_of
from waiting import eventually

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import BadDocumentError
from couchjobs.jobs.job import JobOptions, State
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

EVERY = {"type": "@every", "arguments": "1h", "worker": "note", "message": None}


@worker("secret", admin_only=True)
async def secret(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    return message


async def test_claim_when_one_answer_is_503_then_tried_again_within_seconds(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """Not at the next sweep."""
    refused: list[str] = []

    def before(method: str, path: str, body: bytes) -> None:
        if b'"state":"running"' in body and not refused:
            refused.append(path)
            raise Refusal(503)

    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        await begin(note, url=proxy.url)
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "job", "worker": "note", "message": None, "state": "queued"})
        assert (await wait(db, "job", 5)).state is State.DONE
    assert refused


async def test_beat_when_two_are_refused_an_interval_apart_then_no_job_is_interrupted(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """A beat that was not taken is tried again at once, not an interval later."""
    tries: list[int] = []
    beats: list[float] = []
    refused: list[float] = []

    @worker("long", timeout=None)
    async def long(ctx: WorkerContext) -> None:
        tries.append(ctx.exec_count)
        await asyncio.sleep(5)

    def before(method: str, path: str, body: bytes) -> None:
        if b'"daemon:' in body and b'"docs":[{' in body and "control" in path and "_bulk_docs" in path:
            beats.append(time.monotonic())
            if tries and (not refused or beats[-1] - refused[-1] > 0.9) and len(refused) < 2:
                refused.append(beats[-1])
                raise Refusal(503)

    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        await begin(long, url=proxy.url, beat_interval=1, dead_after=3)
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "job", "worker": "long", "message": None, "state": "queued"})
        ended = await wait(db, "job", 20)
    assert (ended.state, tries, len(refused)) == (State.DONE, [1], 2)


async def test_control_database_when_deleted_while_running_then_no_event_is_lost(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """The daemon's own position is written anew."""
    orders = await orders_of(connection, db)
    trigger = {"type": "@event", "arguments": "orders", "worker": "note", "message": None}
    await triggers_of(connection, db).put({"_id": "seen", **trigger})
    await begin(note, beat_interval=1)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 10)
    for number in range(40):
        await orders.put({"_id": f"order-{number}"})
        if number == 10:
            await connection.server.delete_database(connection.control.name)
        await asyncio.sleep(0.05)

    async def all_fired() -> bool:
        return len(await jobs_of(connection, db, "seen")) == 40

    await eventually(all_fired, 30)


async def test_trigger_when_one_answer_says_that_it_is_not_to_be_had_then_not_forgotten(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """Nor are its checkpoint and its schedule: a row's error is no absence."""
    orders = await orders_of(connection, db)
    trigger = {"type": "@event", "arguments": "orders", "worker": "note", "message": None}
    await triggers_of(connection, db).put({"_id": "seen", **trigger})
    await triggers_of(connection, db).put({"_id": "every", **EVERY})
    broken = False

    def after(answer: Answer) -> None:
        if broken and answer.path.split("?")[0].endswith("triggers/_bulk_get"):
            answer.body = answer.body.replace(b'"ok":', b'"error":{"error":"timeout","reason":"r"},"was":')

    async with FaultProxy(server_url) as proxy:
        proxy.after = after
        system = await begin(note, url=proxy.url)
        state = f"schedule:{triggers_of(connection, db).name}:every"
        anchor = (await eventually(lambda: connection.control.find(state), 10))["anchor"]
        await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 10)
        broken = True
        for trigger_id in ("seen", "every"):
            document = await triggers_of(connection, db).get(trigger_id)
            await triggers_of(connection, db).put({**document, "message": 1})
        await orders.put({"_id": "one"})
        await asyncio.sleep(2)
        broken = False
        await eventually(lambda: jobs_of(connection, db, "seen"), 15)
        await eventually(lambda: system.scheduler.triggers.scheduled["every"].infos.message == 1, 15)
        assert (await connection.control.get(state))["anchor"] == anchor


async def test_result_when_a_proxy_answers_404_for_three_seconds_then_the_function_runs_once(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """A container restarts behind it."""
    gone = False
    runs: list[int] = []

    @worker("work", max_exec_count=1)
    async def work(ctx: WorkerContext) -> str:
        nonlocal gone
        runs.append(1)
        gone = True
        return "done"

    def before(method: str, path: str, body: bytes) -> None:
        if gone:
            raise Refusal(404, {"message": "no such route"})

    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        await begin(work, url=proxy.url)
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "job", "worker": "work", "message": None, "state": "queued"})
        await eventually(lambda: runs, 10)
        await asyncio.sleep(3)
        gone = False
        ended = await wait(db, "job", 15)
    assert (ended.state, ended.result, runs) == (State.DONE, "done", [1])


async def test_document_when_a_firewall_refuses_it_alone_then_errored_with_the_reason_and_others_run(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """403 and a page, each time; a slot is not held meanwhile."""

    def before(method: str, path: str, body: bytes) -> None:
        if b"<script>" in body and path.endswith("_bulk_docs"):
            raise Refusal(403, {"page": "blocked"})

    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        await begin(note, url=proxy.url)
        jobs = connection.database(db.database("jobs"))
        await jobs.put({"_id": "bad", "worker": "note", "message": "<script>", "state": "queued"})
        await jobs.put({"_id": "good", "worker": "note", "message": None, "state": "queued"})
        assert (await wait(db, "good", 10)).state is State.DONE
        ended = await wait(db, "bad", 60)
    assert (ended.state, ended.message) == (State.ERRORED, None)
    assert "original.json" in str((await jobs.get("bad"))["reduced"])


async def test_feed_when_it_answers_empty_at_once_then_asked_a_few_times_a_second(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """It was asked 2,294 times a second."""
    asked = 0

    def after(answer: Answer) -> None:
        nonlocal asked
        if "jobs/_changes" in answer.path.replace("%2F", "/") and "longpoll" in answer.path:
            asked += 1
            answer.json = {"results": [], "last_seq": "0"}

    async with FaultProxy(server_url) as proxy:
        proxy.after = after
        proxy.path_of = lambda path: path.replace("feed=longpoll", "feed=normal") if "jobs" in path else path
        await begin(note, url=proxy.url)
        await asyncio.sleep(1)
        asked = 0
        await asyncio.sleep(2)
    assert asked < 20


@pytest.mark.parametrize("message", [{"amount": 5.0}, {"n": 2**53 - 1, "x": [1.5, -0.0]}])
async def test_admin_proof_when_the_server_writes_numbers_its_own_way_then_it_holds(
    connection: Connection, db: Prefixer, begin: Any, message: Any
) -> None:
    """5.0 and 5 are one number; durations are those that are stored."""
    system = await begin(secret, go_durations=True)
    request = JobRequest(worker_type="secret", message=message, admin=True, options=JobOptions(timeout=5))
    job = await system.broker.push_job(db, request)
    assert (await wait(db, job.id, 10)).state is State.DONE
    forged = {"worker": "secret", "message": 1, "state": "queued", "admin_proof": "f" * 64}
    await connection.database(db.database("jobs")).put({"_id": "forged", **forged})
    assert (await wait(db, "forged", 10)).state is State.ERRORED


async def test_admin_proof_when_the_control_database_is_made_anew_then_jobs_of_before_and_after_run(
    connection: Connection, db: Prefixer, begin: Any, settings_for: Any
) -> None:
    """The secret is read again where a proof does not hold."""
    await begin(secret, beat_interval=0.5)
    async with connect(settings_for()) as producer:
        broker = CouchBroker(producer)
        request = JobRequest(worker_type="secret", message=1, admin=True)
        assert (await wait(db, (await broker.push_job(db, request)).id, 10)).state is State.DONE
        await connection.server.delete_database(connection.control.name)

        async def there() -> bool:
            return await connection.control.exists()

        await eventually(there, 20)
        assert (await wait(db, (await broker.push_job(db, request)).id, 10)).state is State.DONE
    async with connect(settings_for()) as newcomer:
        job = await CouchBroker(newcomer).push_job(db, request)
        assert (await wait(db, job.id, 10)).state is State.DONE


async def test_schedule_when_its_trigger_was_removed_or_disabled_while_no_daemon_ran_then_begun_anew(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """A later one of the same id, or the same enabled again, fires nothing late."""
    triggers, name = triggers_of(connection, db), triggers_of(connection, db).name
    old = {"type": "@every", "arguments": "1h", "timezone": None, "anchor": "2026-01-01T00:00:00.000000Z"}
    for trigger_id in ("removed", "disabled"):
        state = {**old, "last": "2026-01-01T01:00:00.000000Z", "_id": f"schedule:{name}:{trigger_id}"}
        await connection.control.put(state)
    await triggers.put({"_id": "disabled", **EVERY, "disabled": True})
    await begin(note)

    async def dropped() -> bool:
        return not [one for one in await connection.control.with_prefix(f"schedule:{name}:") if "last" in one]

    await eventually(dropped, 10)
    await triggers.put({"_id": "removed", **EVERY})
    await triggers.put({**await triggers.get("disabled"), "disabled": False})

    async def begun() -> bool:
        return len(await connection.control.with_prefix(f"schedule:{name}:")) == 2

    await eventually(begun, 10)
    assert await jobs_of(connection, db, "removed") == []
    assert await jobs_of(connection, db, "disabled") == []


async def test_event_when_its_documents_are_too_large_then_fired_without_them(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """An update of a document of 600 kB: it and the one before are more than a message may be."""
    orders = await orders_of(connection, db)
    trigger = {"type": "@event", "arguments": "orders:UPDATED", "worker": "note", "message": None}
    await triggers_of(connection, db).put({"_id": "large", **trigger})
    await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 10)
    rev = await orders.put({"_id": "one", "text": "x" * 600_000})
    rev = await orders.put({"_id": "one", "_rev": rev, "text": "y" * 600_000})
    (job,) = await eventually(lambda: jobs_of(connection, db, "large"), 15)
    assert job["event"]["truncated"] is True
    assert job["event"]["doc"] == {"_id": "one", "_rev": rev}


async def test_push_when_the_id_is_one_that_couchdb_keeps_for_itself_then_refused(
    connection: Connection, db: Prefixer
) -> None:
    """It was "stored", and never run."""
    with pytest.raises(BadDocumentError, match="must not begin"):
        await CouchBroker(connection).push_job(db, JobRequest(worker_type="w", message=None, id="_local/x"))
