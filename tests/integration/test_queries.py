"""Looking at jobs: by trigger, by date, by state."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from waiting import eventually

from couchjobs.couch.changes import ChangesFollower
from couchjobs.couch.connection import Connection
from couchjobs.errors import JobNotFoundError, PositionRefused
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import (
    get_job,
    get_jobs,
    get_jobs_before_date,
    get_lasts_jobs,
    get_queued_jobs,
    iter_jobs_before_date,
    iter_queued_jobs,
    past,
)
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.trigger_state import get_trigger_state
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def store(connection: Connection, db: Prefixer, documents: list[dict[str, Any]]) -> None:
    """Store these documents, and wait until each copy of the index, which a cluster has several of, knows them."""
    writer = connection.writer(db.database("jobs"))
    await asyncio.gather(*(writer.write(document) for document in documents))

    async def indexed() -> bool:
        counts = [await writer.database.reduced("jobs/by_state", ["w"], ["x"]) for _ in range(5)]
        mine = sum(document["worker"] == "w" for document in documents)
        return all(rows and rows[0]["value"] == mine for rows in counts)

    await eventually(indexed)


def job(number: int, state: str = "done", **more: Any) -> dict[str, Any]:
    """The document of a job that was queued so many seconds after NOW."""
    time = format_time(NOW + timedelta(seconds=number))
    job_id = more.pop("_id", f"job-{number:04}-{state}")
    return {
        "_id": job_id,
        "worker": "w",
        "message": number,
        "state": state,
        "queued_at": time,
        "started_at": time,
        **more,
    }


async def test_get_jobs_when_of_a_trigger_then_newest_first_and_at_most_50(
    connection: Connection, db: Prefixer
) -> None:
    """A limit outside of 1 to 50 means 50."""
    await store(connection, db, [job(n, trigger_id="t") for n in range(60)] + [job(99, trigger_id="other")])
    assert [found.message for found in await get_jobs(db, "t", 3)] == [59, 58, 57]
    for limit in (0, -1, 51):
        assert len(await get_jobs(db, "t", limit)) == 50
    assert await get_jobs(db, "nothing") == []


async def test_get_jobs_before_date_when_many_then_all_in_order(connection: Connection, db: Prefixer) -> None:
    """More than a page; the date itself is not before it."""
    await store(connection, db, [job(n) for n in range(700)])
    found = await get_jobs_before_date(db, NOW + timedelta(seconds=600))
    assert [one.message for one in found] == list(range(600))
    first = [one.message async for one in iter_jobs_before_date(db, NOW + timedelta(seconds=2))]
    assert first == [0, 1]


async def test_queries_when_a_queued_job_is_undated_then_it_is_the_newest(connection: Connection, db: Prefixer) -> None:
    """A job of an event has no `queued_at` before it is claimed; nobody deletes it as an old one."""
    undated = job(0, "queued", trigger_id="t", _id="undated")
    del undated["queued_at"]
    await store(connection, db, [job(n, trigger_id="t") for n in range(3)] + [undated])
    assert [one.id for one in await get_jobs(db, "t", 1)] == ["undated"]
    assert "undated" not in [one.id for one in await get_jobs_before_date(db, NOW + timedelta(days=1))]
    assert [one.id for one in await get_queued_jobs(db, "w")] == ["undated"]
    assert (await get_lasts_jobs(db, "w"))[0].id == "undated"


async def test_get_lasts_jobs_when_many_then_the_newest_50_of_each_state(connection: Connection, db: Prefixer) -> None:
    """In the order queued, running, done, errored; oldest of those first."""
    await store(
        connection, db, [job(n, state) for state in State for n in range(60)] + [job(1, _id="x", worker="other")]
    )
    found = await get_lasts_jobs(db, "w")
    assert [(one.state, one.message) for one in found] == [(state, n) for state in State for n in range(10, 60)]


async def test_get_queued_jobs_when_many_then_all_queued_and_running(connection: Connection, db: Prefixer) -> None:
    """The original stops at 200."""
    await store(
        connection, db, [job(n, "queued") for n in range(550)] + [job(n, "running") for n in range(3)] + [job(1)]
    )
    found = await get_queued_jobs(db, "w")
    assert len(found) == 553
    assert {one.state for one in found} == {State.QUEUED, State.RUNNING}
    assert len([one async for one in iter_queued_jobs(db, "nothing")]) == 0


async def test_get_and_wait_when_there_is_no_such_job_then_not_found(connection: Connection, db: Prefixer) -> None:
    """Or time runs out."""
    for job_id in ("nothing", "", "_design/jobs"):
        with pytest.raises(JobNotFoundError):
            await get_job(db, job_id)
    with pytest.raises(JobNotFoundError):
        await wait(db, "nothing", 5)
    await store(connection, db, [job(1, "queued", _id="slow")])
    with pytest.raises(TimeoutError, match=r"job slow has not ended within 0\.1 s"):
        await wait(db, "slow", 0.1)
    waiting = asyncio.create_task(wait(db, "slow", 10))
    await asyncio.wait([waiting], timeout=0.1)
    document = await connection.database(db.database("jobs")).get("slow")
    await connection.database(db.database("jobs")).delete("slow", document["_rev"])
    with pytest.raises(JobNotFoundError, match="deleted"):
        await waiting


async def test_trigger_state_when_jobs_ended_then_the_last_of_each_kind(connection: Connection, db: Prefixer) -> None:
    """Status, success, failure with its error, manual execution."""
    documents = [
        job(1, trigger_id="t"),
        job(2, "errored", trigger_id="t", error="no"),
        job(3, trigger_id="t", manual_execution=True),
        job(4, "running", trigger_id="t"),
    ]
    await store(connection, db, documents)
    state = await get_trigger_state(db, "t")
    assert (state.status, state.last_executed_job_id) == (State.RUNNING, "job-0004-running")
    assert (state.last_successful_job_id, state.last_success) == ("job-0003-done", NOW + timedelta(seconds=3))
    assert (state.last_failed_job_id, state.last_error) == ("job-0002-errored", "no")
    assert state.last_manual_job_id == "job-0003-done"
    assert (await get_trigger_state(db, "nothing")).status is State.DONE


def test_past_when_told_in_any_form_then_the_moment_that_is_meant() -> None:
    """A time, a date, a duration; what is none is refused, by what it says."""
    assert past(None) is None
    assert past("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    assert past("2026-01-31T08:00:00+01:00") == datetime(2026, 1, 31, 7, tzinfo=UTC)
    for hour_ago in ("1h", timedelta(hours=1)):
        assert timedelta(minutes=59) < now() - (past(hour_ago) or now()) < timedelta(minutes=61)
    for wrong in ("soon", "2026-13-01", "0001-01-01T00:00:00Z"):
        with pytest.raises(ValueError, match=r"soon|2026-13-01|before all jobs"):
            past(wrong)


async def test_wait_when_the_feed_cannot_go_on_then_from_now_and_the_document_tells_what_was_missed(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database came back as an older copy, say."""
    store = JobStore(connection, db)
    await store.database.put({"_id": "j", "worker": "w", "message": None, "state": "queued"})
    next_page, refused = ChangesFollower.next_page, 0

    async def refuse(self: ChangesFollower, *given: Any, **more: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused == 1:
            document = await store.database.get("j")
            await store.database.put({**document, "state": "done"})
            raise PositionRefused("it is another one")
        return await next_page(self, *given, **more)

    monkeypatch.setattr(ChangesFollower, "next_page", refuse)
    assert (await wait(db, "j", 10)).state is State.DONE
    assert refused == 1
