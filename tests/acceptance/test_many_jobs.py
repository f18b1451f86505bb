"""Commands that look at, and change, many jobs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from test_command_line import Run, in_thread, run  # noqa: F401  a fixture

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.jobs.job import State
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

MANY = 2000


async def write(database: Database, number: int, state: str, **more: Any) -> None:
    """Write a job as if it had been through all of it."""
    document = {"_id": f"j{number:02}", "worker": "w", "message": None, "state": state, "queued_at": format_time(now())}
    await database.put({**document, **more})


async def test_jobs_when_listed_then_the_newest_with_what_they_took(
    connection: Connection,
    db: Prefixer,
    run: Run,  # noqa: F811
) -> None:
    """Whatever their state; failed ones without those that were cancelled."""
    jobs = connection.database(db.database("jobs"))
    for number, state in enumerate(("done", "errored", "queued", "errored", "done")):
        await write(jobs, number, state, seconds=0.25, **({"cancelled": True} if number == 3 else {}))
    await write(jobs, 5, "queued", worker="other")
    listed = orjson.loads((await in_thread(run, "jobs", "ls", "--worker", "w", "--limit", "3", "--json")).stdout)
    assert [job["_id"] for job in listed] == ["j04", "j03", "j02"]
    failed = orjson.loads((await in_thread(run, "jobs", "ls", "--failed", "--json")).stdout)
    assert [job["_id"] for job in failed] == ["j01"]
    cancelled = orjson.loads((await in_thread(run, "jobs", "ls", "--cancelled", "--json")).stdout)
    assert [job["_id"] for job in cancelled] == ["j03"]
    assert (await in_thread(run, "jobs", "ls", "--cancelled", "--failed")).returncode == 2
    assert orjson.loads((await in_thread(run, "jobs", "ls", "--until", "1h", "--json")).stdout) == []
    assert len(orjson.loads((await in_thread(run, "jobs", "ls", "--since", "1h", "--json")).stdout)) == 6
    table = (await in_thread(run, "jobs", "ls")).stdout
    assert "cancelled" in table
    assert "0.25 s" in table
    shown = orjson.loads((await in_thread(run, "queues", "--json")).stdout)
    assert [row["worker"] for row in shown] == ["other", "w"]
    assert {name: shown[1][name] for name in ("queued", "due", "running", "done", "failed", "taken_by")} == {
        "queued": 1,
        "due": 1,
        "running": 0,
        "done": 2,
        "failed": 2,
        "taken_by": [],
    }
    assert not shown[1]["paused"]
    assert (await in_thread(run, "pause", "w")).stdout == "w is paused\n"
    assert (await in_thread(run, "pause", "w")).stdout == "w was paused already\n"
    assert orjson.loads((await in_thread(run, "queues", "--json")).stdout)[1]["paused"]
    assert "(paused)" in (await in_thread(run, "queues")).stdout
    assert (await in_thread(run, "resume", "w")).stdout == "w is not paused\n"
    assert "nobody" in (await in_thread(run, "queues")).stdout
    assert (await in_thread(run, "jobs", "ls", "--since", "soon")).returncode == 2


async def test_jobs_when_many_are_changed_then_counted_first_and_all_of_them(
    connection: Connection,
    db: Prefixer,
    run: Run,  # noqa: F811
) -> None:
    """By ids, by filters; done ones run again only where that is said."""
    jobs = connection.database(db.database("jobs"))
    for number, state in enumerate(("done", "errored", "queued")):
        await write(jobs, number, state)
    await asyncio.gather(
        *(
            connection.writer(jobs.name).write(
                {"_id": f"m{number}", "worker": "m", "message": None, "state": "errored", "queued_at": "2026-01-01"}
            )
            for number in range(MANY)
        )
    )
    refused = await in_thread(run, "jobs", "retry", "j00")
    assert (refused.returncode, "--again" in refused.stderr) == (2, True)
    assert (await in_thread(run, "jobs", "retry", "j00", "--again")).returncode == 0
    assert (await in_thread(run, "jobs", "retry")).returncode == 2
    assert (await in_thread(run, "jobs", "retry", "j01", "--worker", "w")).returncode == 2
    counted = await in_thread(run, "jobs", "retry", "--worker", "m")
    assert counted.stdout == f"{MANY:,} jobs: nothing is done without --yes\n"
    began = time.monotonic()
    done = await in_thread(run, "jobs", "retry", "--worker", "m", "--failed", "--yes", "--json")
    assert orjson.loads(done.stdout) == {"jobs": MANY, "done": MANY, "refused": []}
    assert time.monotonic() - began < 60
    assert (
        orjson.loads((await in_thread(run, "jobs", "cancel", "--worker", "m", "--yes", "--json")).stdout)["done"]
        == MANY
    )
    assert (await jobs.get("m7"))["cancel_requested"] is True
    assert orjson.loads((await in_thread(run, "jobs", "rm", "--worker", "m", "--yes", "--json")).stdout)["done"] == MANY
    assert await jobs.find("m7") is None
    assert (await in_thread(run, "jobs", "rm", "j02", "j01")).stdout == "j02 deleted\nj01 deleted\n"


async def test_push_and_fire_when_given_an_id_a_delay_a_payload_then_so_stored(
    connection: Connection,
    db: Prefixer,
    run: Run,  # noqa: F811
) -> None:
    """A second push with the id stores nothing, and says so."""
    jobs = connection.database(db.database("jobs"))
    assert (await in_thread(run, "push", "w", "1", "--id", "a", "--delay", "1h")).stdout == "a\n"
    again = await in_thread(run, "push", "w", "2", "--id", "a")
    assert (again.returncode, again.stdout) == (0, "a\n")
    assert "there was a job a already: it is queued" in again.stderr
    stored = await jobs.get("a")
    assert (stored["message"], stored["state"], stored["scheduled_at"] > stored["queued_at"]) == (1, State.QUEUED, True)
    assert (await in_thread(run, "push", "w", "--delay", "soon")).returncode == 2
    hook = (await in_thread(run, "triggers", "add", "@webhook", "--worker", "w")).stdout.strip()
    job_id = (await in_thread(run, "triggers", "fire", hook, '{"b": 1}')).stdout.strip()
    assert (await jobs.get(job_id))["payload"] == {"b": 1}
    assert (await in_thread(run, "triggers", "fire", "nothing")).returncode == 2
