"""Odd documents in every database, there before a daemon starts: none of them stops a loop."""

from __future__ import annotations

import base64
import random
import time
from typing import Any

import orjson
import pytest
from triggering import jobs_of, note, orders_of, triggers_of
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import Refused
from couchjobs.jobs.job import State
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker


def nested(levels: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def old_form(value: Any) -> dict[str, str]:
    """A message as a cozy-stack wrote it once, of whatever depth."""
    text = "[" * value + "]" * value if isinstance(value, int) else orjson.dumps(value).decode()
    return {"Type": "json", "Data": base64.b64encode(text.encode()).decode()}


CLOCK = ("@daily", "@cron", "@every", "@at", "@in", "@hourly", "@weekly", "@monthly")
VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0.5,
        4_611_686_018_427_388_000,
        1e300,
        "",
        "\u202e\x1b[31m",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
    ),
    *([], {}, [[]], {"a": {"b": {}}}, nested(150), nested(240), old_form(300), old_form({"a": 1}), "x" * 5000),
]
FIELDS = (
    "arguments",
    "worker",
    "message",
    "debounce",
    "options",
    "timezone",
    "misfire",
    "disabled",
    "domain",
    "prefix",
)


def poison_triggers(chance: random.Random, count: int) -> list[dict[str, Any]]:
    """Triggers of all kinds, each spoilt in some fields, and the one that stopped all of them."""
    found = [{"_id": "stopper", "type": "@daily", "worker": "note", "message": old_form(300)}]
    good = {"arguments": "1h", "worker": "note", "message": None}
    for number in range(count):
        document = {"_id": f"bad-{number:04}", "type": chance.choice((*CLOCK, "@event", "@webhook", "@client")), **good}
        for name in chance.sample(FIELDS, 2):
            document[name] = chance.choice(VALUES)
        found.append(document)
    return found


def poison_control(chance: random.Random, triggers: str, orders: str, count: int) -> list[dict[str, Any]]:
    """Daemons, positions, schedules, windows and lists that are none."""
    ids = [f"schedule:{triggers}:tick", f"schedule:{triggers}:stopper", "secret:other"]
    kinds = (
        "daemon:",
        "schedule:",
        f"schedule:{triggers}:",
        "checkpoint:",
        "debounce:",
        f"debounce:{triggers}:",
        "odd",
    )
    ids += [f"{chance.choice(kinds)}{number}" for number in range(count)] + [f"debounce:{triggers}:hook"]
    names = ("beat", "worker_types", "seq", "anchor", "last", "domain", "doctype", "job_id", "until", "still")
    return [{"_id": one, **{name: chance.choice(VALUES) for name in chance.sample(names, 4)}} for one in ids]


async def plant(connection: Connection, db: Prefixer, seed: int, count: int) -> None:
    """Write odd documents into all databases of the tenant."""
    chance = random.Random(seed)  # noqa: S311  the same in each run
    triggers = triggers_of(connection, db)
    orders = connection.database(db.database("orders"))
    await connection.server.create_database(orders.name)
    jobs = connection.database(db.database("jobs"))
    writes = [(triggers, one) for one in poison_triggers(chance, count)]
    writes += [(connection.control, one) for one in poison_control(chance, triggers.name, orders.name, count)]
    for number in range(count):
        document: dict[str, Any] = {"worker": "note", "message": None, "state": "queued"}
        names = (
            "message",
            "options",
            "priority",
            "scheduled_at",
            "queued_at",
            "exec_count",
            "claim",
            "errors",
            "event",
        )
        for name in chance.sample(names, 2):
            document[name] = chance.choice(VALUES)
        writes.append((jobs, {"_id": f"job-{number}", **document}))
    for database, document in writes:
        answer = await connection.writer(database.name).write(document)
        assert answer.stored, (document["_id"], answer)
    await orders.put({"_id": "odd", "deep": nested(240), "text": "\u202e"})


async def check(connection: Connection, db: Prefixer, begin: Any) -> None:
    """After a start beside them: a job runs, a tick, an event and a webhook make jobs, and no loop has failed."""
    triggers = triggers_of(connection, db)
    every = {"type": "@every", "arguments": "1s", "worker": "note", "message": None}
    await triggers.put({"_id": "tick", **every})
    await triggers.put({"_id": "changed", "type": "@event", "arguments": "orders", "worker": "note", "message": None})
    await triggers.put(
        {"_id": "hook", "type": "@webhook", "arguments": "", "worker": "note", "message": None, "debounce": "1s"}
    )
    system = await begin(note)
    await eventually(lambda: jobs_of(connection, db, "tick"), 20, "a tick makes a job")
    orders = connection.database(db.database("orders"))
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 20)
    await orders.put({"_id": "late", "deep": nested(230)})
    await eventually(lambda: jobs_of(connection, db, "changed"), 20, "an event makes a job")
    await system.scheduler.fire_webhook("hook", {"n": 1})
    await eventually(lambda: jobs_of(connection, db, "hook"), 20, "a webhook makes a job")
    await connection.database(db.database("jobs")).put(
        {"_id": "good", "worker": "note", "message": None, "state": "queued"}
    )
    assert (await wait(db, "good", 30)).state is State.DONE
    assert system.broker.tasks.failures == {}
    assert system.scheduler._tasks.failures == {}


async def test_daemon_when_started_beside_odd_documents_then_everything_else_goes_on(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Once, and after a restart beside what became of them."""
    await plant(connection, db, 1, 150)
    await check(connection, db, begin)


async def test_deep_documents_when_they_fill_the_window_then_jobs_behind_them_run_and_each_says_why(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Small ones that no parser reads, more than a daemon looks ahead."""
    jobs, count = connection.database(db.database("jobs")), 120
    text = "[" * 1100 + "]" * 1100
    for start in range(0, count, 40):
        docs = ",".join(
            f'{{"_id":"deep-{number}","worker":"note","message":{text},"state":"queued","queued_at":"2020"}}'
            for number in range(start, start + 40)
        )
        await connection.server.request("POST", f"{jobs.path}/_bulk_docs", body=f'{{"docs":[{docs}]}}'.encode())
    for number in range(50):
        await jobs.put({"_id": f"good-{number}", "worker": "note", "message": None, "state": "queued"})
    await begin(note, max_candidates=20)

    async def all_ended() -> bool:
        rows = await jobs.view("jobs/by_state", ["note", "queued"], ["note", "queued", {}], limit=1)
        return not rows

    await eventually(all_ended, 60)
    marked = await jobs.get("deep-0")
    assert "nested too deep" in marked["error"]
    assert "original.json" in marked["_attachments"]
    assert (await wait(db, "good-49", 20)).state is State.DONE


async def test_large_document_when_couchdb_takes_nothing_more_of_it_then_small_and_errored(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """Neither its claim nor its mark; its content is in an attachment, and a try that began counts."""
    from fault_proxy import FaultProxy, Refusal

    def before(method: str, path: str, body: bytes) -> None:
        if path.endswith("/_bulk_docs"):
            for document in orjson.loads(body)["docs"]:
                if "message" in document and len(orjson.dumps(document["message"])) > 500:
                    raise Refusal(413, {"error": "document_too_large", "reason": document["_id"]})

    jobs = connection.database(db.database("jobs"))
    await jobs.put({"_id": "large", "worker": "note", "message": "x" * 600, "state": "queued", "mine": 1})
    await jobs.put({"_id": "small", "worker": "note", "message": None, "state": "queued"})
    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        await begin(note, url=proxy.url)
        ended = await wait(db, "large", 20)
        assert (ended.state, ended.message) == (State.ERRORED, None)
        assert "original.json" in (await jobs.get("large"))["_attachments"]
        assert (await wait(db, "small", 10)).state is State.DONE


async def test_end_when_it_does_not_fit_then_the_function_runs_once_and_the_job_is_done(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """It ran 19 times with two tries."""
    from fault_proxy import FaultProxy, Refusal

    runs: list[int] = []

    @worker("work", max_exec_count=2)
    async def work(ctx: WorkerContext) -> None:
        runs.append(1)

    def before(method: str, path: str, body: bytes) -> None:
        if path.endswith("/_bulk_docs"):
            for document in orjson.loads(body)["docs"]:
                if document.get("state") in ("done", "errored") and document.get("message") is not None:
                    raise Refusal(413, {"error": "document_too_large", "reason": document["_id"]})

    jobs = connection.database(db.database("jobs"))
    await jobs.put({"_id": "job", "worker": "work", "message": "all there is", "state": "queued"})
    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        await begin(work, url=proxy.url)
        ended = await wait(db, "job", 20)
    assert (ended.state, runs) == (State.DONE, [1])
    assert "original.json" in str((await jobs.get("job"))["reduced"])


async def test_long_id_when_cancelled_while_it_runs_then_it_ends_and_others_are_looked_after(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """No path holds 9,000 characters."""
    import asyncio

    long_id, started = "j" * 9000, asyncio.Event()

    @worker("long", timeout=None)
    async def long(ctx: WorkerContext) -> None:
        started.set()
        await asyncio.sleep(600)

    await begin(long)
    jobs = connection.database(db.database("jobs"))
    for one in (long_id, "."):
        started.clear()
        await jobs.put({"_id": one, "worker": "long", "message": None, "state": "queued"})
        await asyncio.wait_for(started.wait(), 10)
        await jobs.put({**await jobs.get(one), "cancel_requested": True})
        ended = await wait(db, one, 10)
        assert (ended.state, ended.error) == (State.ERRORED, "cancelled")


async def test_numbers_when_longer_than_64_bits_then_an_update_leaves_them(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Your fields stay; the embedded server has JavaScript's numbers, and refuses what it would round."""
    jobs, number = connection.database(db.database("jobs")), 2**70 + 1
    document = {"_id": "big", "worker": "note", "message": None, "state": "queued", "mine": number}
    if (await connection.server.welcome())["vendor"]["name"] == "The Apache Software Foundation":
        await jobs.put(document)
        await begin(note)
        await wait(db, "big", 10)
        assert (await jobs.get("big"))["mine"] == number
    else:
        with pytest.raises(Refused, match=f"the number {number} would be rounded"):
            await jobs.put(document)
    text = b'{"_id":"x","worker":"w","message":123456789012345678901234567890,"state":"queued"}'
    from couchjobs.couch.codec import decode, encode

    assert decode(encode(decode(text))) == decode(text)
    assert JobStore(connection, db).check(decode(text)).message == 123456789012345678901234567890


STUMBLES = """function (doc, old, user) {
  if (doc.state === "running" && doc.message === "claim") doc.nothing.of.that;
  if (doc.state === "running" && doc.message === "odd claim") throw {error: "odd", reason: "not so"};
  if (doc.state === "done" && doc.message === "end") throw "not so";
  if (doc.state === "done" && doc.message === "odd end") throw 5;
  if (doc.state === "queued" && doc.event && doc.event.doc.kind === "odd") throw ["not so"];
}"""


async def test_documents_when_a_function_of_somebodys_stumbles_over_one_then_it_says_why_and_the_others_go_on(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """A claim, an end, the job of an event: each error is in the row of its document, and looks like an outage.

    For what is no error at all, Apache CouchDB answers 500 to the whole request, of which it may store the rest. What
    nothing waits for is not given up so soon: the function may be mended.
    """
    ran: list[str] = []

    @worker("work", max_exec_count=3)
    async def work(ctx: WorkerContext, message: Any) -> None:
        ran.append(ctx.id)

    async def is_fired(order: str, state: str = "done") -> bool:
        found = await jobs_of(connection, db, "ordered")
        return any(job["_id"].startswith(f"{order}:") and job["state"] == state for job in found)

    async def is_followed() -> bool:
        await orders.put({"_id": f"before-{time.monotonic_ns()}"})
        return bool(await jobs_of(connection, db, "ordered"))

    await begin(work, note)
    jobs, orders = connection.database(db.database("jobs")), await orders_of(connection, db)
    await triggers_of(connection, db).put({"_id": "ordered", "type": "@event", "arguments": "orders", "worker": "note"})
    await eventually(is_followed, 20)
    await jobs.put({"_id": "_design/stumbles", "validate_doc_update": STUMBLES})
    for order in ({"_id": "odd", "kind": "odd"}, {"_id": "good"}):
        await orders.put(order)
    for message in ("claim", "odd claim", "end", "odd end", "good"):
        await jobs.put({"_id": message, "worker": "work", "message": message, "state": "queued"})
    assert (await wait(db, "good", 10)).state is State.DONE
    await eventually(lambda: is_fired("good"), 120)
    await eventually(lambda: is_fired("odd", "errored"), 120)
    await orders.put({"_id": "later"})
    await eventually(lambda: is_fired("later"), 120)
    assert sorted(ran) == ["end", "good", "odd end"]
    stumbles = await jobs.get("_design/stumbles")
    await jobs.delete(stumbles["_id"], stumbles["_rev"])
    for job_id in ("claim", "odd claim", "end", "odd end"):
        assert (await wait(db, job_id, 60)).state is State.DONE
    assert sorted(ran) == ["claim", "end", "good", "odd claim", "odd end"]
