"""Events that fire once: what became, once a document, schedules that a program declares."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemons import AS_USERS_HAVE, DaemonProcess
from triggering import jobs_of, note, orders_of, so_many_jobs_of, triggers_of
from waiting import SOON_SWEPT, eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, MalformedTriggerError
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.declared import declare
from couchjobs.scheduler.feeds import Feeds
from couchjobs.scheduler.store import TriggerStore
from couchjobs.triggers.event import parse_event
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker

Start = Callable[..., Any]
PROGRAM = """
from couchjobs import worker

@worker("receipt", concurrency=20)
async def receipt(ctx):
    pass
"""
EDITS = 200
STATES = ("open", "paid", "shipped", "returned")


def test_rule_when_something_became_then_not_when_it_was_so_before() -> None:
    """At an edit while it is so, and as it ends, nothing fires; what was lost, or was not there, counts as before."""
    (rule,) = parse_event("orders:CREATED,UPDATED:=>paid,done:status").rules
    paid, opened = {"status": "paid"}, {"status": "open"}
    assert rule.matches("CREATED", paid, None)
    assert rule.matches("UPDATED", paid, opened)
    assert rule.matches("UPDATED", {"status": "done"}, None, lost=True)
    assert not rule.matches("UPDATED", {"status": "done"}, paid)
    assert not rule.matches("UPDATED", opened, paid)
    assert not rule.matches("UPDATED", {**paid, "note": 1}, paid)
    assert not rule.matches("DELETED", paid, opened)
    for wrong in ("orders:UPDATED:=>paid", "orders:UPDATED:=>:status", "orders:DELETED:=>paid:status"):
        with pytest.raises(MalformedTriggerError):
            parse_event(wrong)


async def test_events_when_a_document_changes_many_times_at_once_then_each_time_it_became_so_counts(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """The feed shows the last change alone; the others are looked up. `once` makes one job a document."""
    orders = await orders_of(connection, db)
    rule = {"type": "@event", "worker": "note", "message": None}
    became = {"doctype": "orders", "became": {"status": "paid"}}
    await triggers_of(connection, db).put({"_id": "text", **rule, "arguments": "orders:CREATED,UPDATED:=>paid:status"})
    await triggers_of(connection, db).put({"_id": "rules", **rule, "rules": [became]})
    await triggers_of(connection, db).put({"_id": "once", **rule, "arguments": "orders", "once": True})
    await start(note)
    await eventually(lambda: connection.control.with_prefix("checkpoint:"))
    rev = await orders.put({"_id": "a", "status": "open"})
    await eventually(lambda: jobs_of(connection, db, "once"))
    states = [*("paid", "paid", "open", "paid", "open", "open", "paid", "shipped") * 3, "end"]
    for number, status in enumerate(states):
        rev = await orders.put({"_id": "a", "_rev": rev, "status": status, "n": number})
    for trigger_id in ("text", "rules"):
        jobs = await eventually(lambda trigger_id=trigger_id: so_many_jobs_of(connection, db, trigger_id, 9))
        await eventually(lambda: connection.control.with_prefix("checkpoint:"))
        assert sorted(job["event"]["doc"]["n"] for job in jobs) == sorted(
            number
            for number, status in enumerate(states)
            if status == "paid" and (number == 0 or states[number - 1] != "paid")
        )
        assert all(job["event"]["old"]["status"] != "paid" for job in jobs)
    assert len(await jobs_of(connection, db, "once")) == 1


@pytest.mark.timeout(180)
async def test_receipts_when_daemons_are_killed_while_orders_change_then_one_for_each_time_it_was_paid(
    connection: Connection, db: Prefixer, server_url: str, tmp_path: Path
) -> None:
    """Three orders, 200 edits at random, kill -9 in between; `once`: one an order."""
    (tmp_path / "program.py").write_text(PROGRAM)
    orders = await orders_of(connection, db)
    rule = {"type": "@event", "worker": "receipt", "message": None}
    for trigger_id, more in (
        ("paid", {"arguments": "orders:CREATED,UPDATED:=>paid:status"}),
        ("once", {"arguments": "orders:CREATED,UPDATED:paid:status", "once": True}),
    ):
        await triggers_of(connection, db).put({"_id": trigger_id, **rule, **more})
    quick = {**AS_USERS_HAVE, "beat_interval": 0.5, "dead_after": 2}
    given = {"url": server_url, "prefix": db.db_prefix, "domain": db.domain, "control_db": connection.control.name}
    chance = random.Random(7)  # noqa: S311  not a secret
    status, revs, paid = dict.fromkeys("abc", ""), dict.fromkeys("abc", ""), dict.fromkeys("abc", 0)
    daemons: list[DaemonProcess] = []

    async def begin() -> None:
        daemons.append(DaemonProcess(tmp_path, "program", f"d{len(daemons)}", **quick, **given))
        await eventually(lambda: daemons[-1].says("following"), 20)

    try:
        await begin()
        for number in range(EDITS):
            if number % 50 == 49:
                daemons[-1].signal(signal.SIGKILL)
                daemons[-1].wait()
            elif number % 50 == 5 and number > 5:
                await begin()
            order, new = chance.choice("abc"), chance.choice(STATES)
            paid[order] += new == "paid" and status[order] != "paid"
            before = {"_rev": revs[order]} if revs[order] else {}
            revs[order] = await orders.put({"_id": order, **before, "status": new, "n": number})
            status[order] = new
            await asyncio.sleep(chance.choice((0, 0, 0.02)))
        await begin()
        await eventually(lambda: so_many_jobs_of(connection, db, "paid", sum(paid.values())), 30)
        await eventually(lambda: all_done(connection, db), 30)
    finally:
        for one in daemons:
            one.end()
    jobs = await jobs_of(connection, db, "paid")
    assert {order: sum(job["event"]["doc"]["_id"] == order for job in jobs) for order in "abc"} == paid
    assert sorted(job["event"]["doc"]["_id"] for job in await jobs_of(connection, db, "once")) == ["a", "b", "c"]


async def all_done(connection: Connection, db: Prefixer) -> bool:
    """Whether all jobs of both triggers are done."""
    jobs = [*await jobs_of(connection, db, "paid"), *await jobs_of(connection, db, "once")]
    return all(job["state"] == "done" for job in jobs)


def report(**schedule: Any) -> Any:
    """A worker with that schedule."""

    @worker("report", **schedule)
    async def run(ctx: WorkerContext) -> None:
        """Do nothing."""

    return run


async def test_schedule_when_declared_in_code_then_a_trigger_that_follows_the_code(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Written, changed and removed by the next start; what somebody else wrote stays."""
    triggers = triggers_of(connection, db)

    @worker("other", every="1h")
    async def other(ctx: WorkerContext) -> None:
        """Do nothing."""

    theirs = {"_id": "code:other", "type": "@every", "arguments": "2h", "worker": "other", "message": 5}
    await triggers.put(theirs)
    system = await start(report(every="1s"), other)
    written = await triggers.get("code:report")
    assert (written["type"], written["arguments"], written["declared_in_code"]) == ("@every", "1s", True)
    job = (await eventually(lambda: jobs_of(connection, db, "code:report")))[0]
    assert (await wait(db, job["_id"], 10)).state is State.DONE
    await system.shutdown()
    await triggers.put({**written, "disabled": True})
    system = await start(report(cron="0 3 * * *", timezone="Europe/Paris"), other)
    changed = await triggers.get("code:report")
    assert (changed["type"], changed["arguments"], changed["timezone"]) == ("@cron", "0 3 * * *", "Europe/Paris")
    assert changed["disabled"] is True
    await system.shutdown()
    await start(report(), other)
    assert await triggers.find("code:report") is None
    assert (await triggers.get("code:other"))["arguments"] == "2h"
    with pytest.raises(ConfigurationError, match="worker 'report'"):
        report(cron="at night")


async def test_schedule_when_another_daemon_does_not_declare_it_then_stays(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A canary that is rolled back takes nothing along, what somebody removed comes again, the last one decides."""
    triggers = triggers_of(connection, db)

    first = await start(report(every="1h"), **SOON_SWEPT)
    canary = await start(report(), **SOON_SWEPT)
    written = await triggers.get("code:report")
    await canary.shutdown()
    await triggers.delete("code:report", written["_rev"])
    await eventually(lambda: triggers.find("code:report"))
    newer = await start(report(every="2h"), **SOON_SWEPT)
    for _ in range(3):
        assert (await triggers.get("code:report"))["arguments"] == "2h"
        await asyncio.sleep(0.5)  # their sweeps
    last = await start(report(), **SOON_SWEPT)
    await first.shutdown()
    await newer.shutdown()

    async def gone() -> bool:
        return await triggers.find("code:report") is None

    await eventually(gone)
    await last.shutdown()


def order(status: str, **more: Any) -> dict[str, Any]:
    """One edit of an order."""
    return {"status": status, **more}


PAID = order("paid")
MEANWHILE = {
    "a": ([PAID], 1),
    "b": ([order("open"), PAID], 1),
    "c": ([order("open"), PAID, order("paid", note="edited")], 1),
    "d": ([order("open"), PAID, order("shipped")], 1),
    "e": ([PAID, order("shipped")], 1),
    "f": ([order("open"), PAID, order("refunded"), PAID, order("paid", note="edited")], 2),
    "g": ([order("open"), order("open", note="edited")], 0),
}


@pytest.mark.parametrize("killed", [False, True])
async def test_documents_when_made_and_edited_while_no_daemon_ran_then_each_change_fires(
    connection: Connection, db: Prefixer, start: Start, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """The feed shows the last change alone; an old document that is edited is not taken for a new one."""
    orders, triggers = await orders_of(connection, db), triggers_of(connection, db)
    old_rev = await orders.put({"_id": "old", **order("open")})
    paid_rev = await orders.put({"_id": "was-paid", **PAID})
    for trigger_id, rule in (("became", "orders:CREATED,UPDATED:=>paid:status"), ("made", "orders:CREATED")):
        trigger = {"_id": trigger_id, "type": "@event", "arguments": rule, "worker": "note", "message": None}
        await triggers.put(trigger)
    system = await start(note)
    await eventually(lambda: connection.control.find(f"seen:{orders.name}"))
    if killed:
        monkeypatch.setattr(Feeds, "remember", lambda _: asyncio.sleep(0))
    else:
        await orders.put({"_id": "first", **order("open")})
        await so_many(connection, db, "made", 1)
    await system.shutdown()
    for doc_id, (edits, _) in MEANWHILE.items():
        rev: str | None = None
        for edit in edits:
            rev = await orders.put({"_id": doc_id, **edit, **({"_rev": rev} if rev else {})})
    for number in range(20):  # others than the last sixteen
        await orders.put({"_id": f"other-{number}"})
    old_rev = await orders.put({"_id": "old", "_rev": old_rev, **order("open", note="edited")})
    await orders.put({"_id": "old", "_rev": old_rev, **PAID})
    await orders.put({"_id": "was-paid", "_rev": paid_rev, **order("paid", note="edited")})
    await start(note)
    became = 1 + sum(count for _, count in MEANWHILE.values())
    made = len(MEANWHILE) + 20 + (0 if killed else 1)
    found = await so_many(connection, db, "became", became)
    counts = Counter(job["event"]["doc"]["_id"] for job in found)
    assert counts == {"old": 1} | {doc_id: count for doc_id, (_, count) in MEANWHILE.items() if count}
    fired = await so_many(connection, db, "made", made)
    assert len({job["event"]["doc"]["_id"] for job in fired}) == len(fired) == made


async def so_many(connection: Connection, db: Prefixer, trigger_id: str, count: int) -> list[dict[str, Any]]:
    """The jobs of a trigger, once they are so many; no more come."""
    await eventually(lambda: so_many_jobs_of(connection, db, trigger_id, count), 30)
    return await jobs_of(connection, db, trigger_id)


async def test_schedule_when_what_was_added_does_not_fit_what_the_code_says_now_then_it_fires_all_the_same(
    connection: Connection, db: Prefixer
) -> None:
    """`every` with an anchor of somebody's becomes `cron`, which has none; his other field stays."""
    store = TriggerStore(connection, db)

    @worker("report", every="1h")
    async def before(ctx: WorkerContext) -> None:
        pass

    await declare(store, [config_of(before)])
    written = await store.database.get("code:report")
    await store.database.put({**written, "anchor": "2026-01-01T00:00:00Z", "mine": 1})

    @worker("report", cron="0 3 * * *")
    async def after(ctx: WorkerContext) -> None:
        pass

    await declare(store, [config_of(after)])
    written = await store.database.get("code:report")
    assert (written["type"], written["mine"]) == ("@cron", 1)
    assert len(await store.parsed()) == 1
