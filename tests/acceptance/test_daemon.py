"""The daemon as a process: sharing work, stopping, dying."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemons import DaemonProcess, ran
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer

Start = Callable[..., DaemonProcess]


def queued(job_id: str, worker: str = "append", message: Any = None) -> dict[str, Any]:
    """A document as anybody would write it."""
    return {"_id": job_id, "worker": worker, "message": message, "state": "queued"}


async def daemons_of(connection: Connection, count: int) -> Any:
    """The daemon documents, once there are so many."""
    found = await connection.control.with_prefix("daemon:")
    return found if len(found) == count else None


async def test_two_daemons_when_2000_jobs_are_written_then_each_runs_once_and_both_share(
    connection: Connection, db: Prefixer, daemon: Start, program: Path
) -> None:
    """By raw `_bulk_docs`; no conflicts are left in the database."""
    daemon()
    daemon()
    await eventually(lambda: daemons_of(connection, 2), 20)
    jobs = connection.database(db.database("jobs"))
    writer = connection.writer(jobs.name)
    ids = [f"job-{n:04}" for n in range(2000)]
    await asyncio.gather(*(writer.write(queued(job_id)) for job_id in ids))
    await eventually(lambda: len(ran(program)) >= 2000, 60)

    async def all_done() -> bool:
        return all(document["state"] == "done" for document in (await jobs.get_many(ids)).values())

    await eventually(all_done)
    lines = ran(program)
    assert sorted(job_id for job_id, _ in lines) == ids
    shares = Counter(daemon for _, daemon in lines)
    assert len(shares) == 2
    assert min(shares.values()) >= 500, shares
    answer = await connection.server.request(
        "GET", f"{jobs.path}/_all_docs", params={"include_docs": True, "conflicts": True}
    )
    assert not [row["id"] for row in answer["rows"] if "_conflicts" in row["doc"]]


async def test_sigterm_when_jobs_run_then_short_ones_end_and_long_ones_are_put_back(
    connection: Connection, db: Prefixer, daemon: Start, program: Path
) -> None:
    """Exit code 0, and the daemon document is gone."""
    process = daemon(shutdown_timeout=6)
    writer = connection.writer(db.database("jobs"))
    short, long = [f"short-{n}" for n in range(10)], [f"long-{n}" for n in range(10)]
    await asyncio.gather(
        *(writer.write(queued(job_id, "sleeps", 1)) for job_id in short),
        *(writer.write(queued(job_id, "sleeps", 60)) for job_id in long),
    )
    await eventually(lambda: len(ran(program)) == 20, 20)
    process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 0
    for job_id in short:
        assert (await get_job(db, job_id)).state is State.DONE
    for job_id in long:
        job = await get_job(db, job_id)
        assert (job.state, job.exec_count) == (State.QUEUED, 0)

    async def gone() -> bool:
        return await daemons_of(connection, 0) == []

    await eventually(gone)


async def test_sigterm_when_a_job_runs_on_then_another_daemon_takes_the_triggers_at_once(
    connection: Connection, db: Prefixer, daemon: Start, program: Path
) -> None:
    """A daemon that finishes its last jobs owns no triggers and no feeds any more."""
    first = daemon(shutdown_timeout=60)
    await connection.writer(db.database("jobs")).write(queued("long", "sleeps", 60))
    await eventually(lambda: len(ran(program)) == 1, 20)
    second = daemon()
    await eventually(lambda: daemons_of(connection, 2), 20)
    first.signal(signal.SIGTERM)
    await eventually(lambda: first.says("daemon stops"))
    triggers = connection.database(db.database("triggers"))
    names = [f"trigger-{n}" for n in range(8)]
    for name in names:
        rules = {"type": "@in", "arguments": "100ms", "worker": "append", "message": None}
        await triggers.put({"_id": name, **rules})
    await eventually(lambda: len(ran(program)) == 1 + len(names), 10)
    assert first.process.poll() is None
    assert len({name for _, name in ran(program)}) == 2
    second.signal(signal.SIGTERM)
    first.signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, 10) == 0


async def test_second_sigterm_when_jobs_run_on_then_hurries(
    connection: Connection, db: Prefixer, daemon: Start, program: Path
) -> None:
    """Nobody waits a minute."""
    process = daemon(shutdown_timeout=60)
    await connection.writer(db.database("jobs")).write(queued("long", "sleeps", 60))
    await eventually(lambda: len(ran(program)) == 1, 20)
    process.signal(signal.SIGINT)
    await eventually(lambda: process.says("daemon stops"))
    process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert (await get_job(db, "long")).state is State.QUEUED


async def test_kill_when_two_daemons_run_then_the_other_goes_on(
    connection: Connection, db: Prefixer, daemon: Start, program: Path
) -> None:
    """A daemon that dies costs the others nothing but its own running jobs."""
    processes = [daemon(), daemon()]
    await eventually(lambda: daemons_of(connection, 2), 20)
    processes[0].signal(signal.SIGKILL)
    await asyncio.to_thread(processes[0].wait)
    writer = connection.writer(db.database("jobs"))
    ids = [f"job-{n}" for n in range(100)]
    await asyncio.gather(*(writer.write(queued(job_id)) for job_id in ids))
    for job_id in ids:
        assert (await wait(db, job_id, 20)).state is State.DONE
    assert len({name for _, name in ran(program)}) == 1


async def test_debounce_when_a_daemon_is_killed_in_the_window_then_one_job_with_all_payloads(
    connection: Connection, db: Prefixer, daemon: Start, start: Callable[..., Any], program: Path
) -> None:
    """200 payloads of four writers; the window is in documents, and nobody's own."""
    processes = [daemon(), daemon()]
    writers = [await start() for _ in range(4)]
    await eventually(lambda: daemons_of(connection, 6), 20)
    hook = {"_id": "hook", "type": "@webhook", "worker": "collect", "message": None, "debounce": "15s"}
    await connection.database(db.database("triggers")).put(hook)

    async def write(number: int, payloads: range) -> set[str]:
        scheduler = writers[number].scheduler
        jobs = await asyncio.gather(*(scheduler.fire_webhook("hook", [number, payload]) for payload in payloads))
        return {job.id for job in jobs}

    before = await asyncio.gather(*(write(number, range(25)) for number in range(4)))
    processes[0].signal(signal.SIGKILL)
    after = await asyncio.gather(*(write(number, range(25, 50)) for number in range(4)))
    (job_id,) = set().union(*before, *after)
    ended = await wait(db, job_id, 30)
    assert (ended.state, ended.result) == (State.DONE, 200)
    assert sorted(ended.payload["payloads"]) == [[number, payload] for number in range(4) for payload in range(50)]
    assert [one for one, _ in ran(program)] == [job_id]


async def test_threads_when_a_plain_function_works_then_its_result_is_stored(
    connection: Connection, db: Prefixer, daemon: Start
) -> None:
    """Plain functions run in threads."""
    daemon()
    await connection.writer(db.database("jobs")).write(queued("job", "thread", 0.01))
    assert (await wait(db, "job", 20)).result == "slept"
