"""Whose job it is: its database says, and never the document, which anybody may have written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fault_proxy import Answer, FaultProxy

from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import JobFailedError
from couchjobs.jobs.claims import Claimed
from couchjobs.jobs.job import State
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]
VICTIM = {"domain": "victim.example", "prefix": "victim"}
QUEUED = {"worker": "w", "message": None, "state": "queued", **VICTIM}
REFUSED = {
    "no job": {**QUEUED, "priority": "high"},
    "spent": {**QUEUED, "exec_count": 9},
    "lost": {
        **QUEUED,
        "state": "running",
        "exec_count": 9,
        "claim": {"id": "c", "daemon": "ghost", "at": format_time(now())},
    },
    "fails": QUEUED,
}


@pytest.fixture
async def behind(
    server_url: str, connection: Connection, settings_for: Callable[..., Any]
) -> AsyncIterator[tuple[FaultProxy, Connection]]:
    """A proxy, and a connection through it."""
    async with FaultProxy(server_url) as proxy, connect(settings_for(url=proxy.url, request_timeout=1)) as through:
        yield proxy, through


@pytest.mark.parametrize("what", REFUSED)
async def test_on_failed_when_the_document_names_another_tenant_then_it_acts_on_its_own(
    connection: Connection, db: Prefixer, start: Start, what: str
) -> None:
    """A bad document, one whose tries are spent, one of a dead daemon, one that fails."""
    told: list[tuple[str, str | None]] = []

    def note(ctx: WorkerContext, error: JobFailedError) -> None:
        told.append((ctx.job.domain, ctx.job.prefix))

    @worker("w", max_exec_count=1, on_failed=note)
    async def w(ctx: WorkerContext) -> None:
        told.append((ctx.job.domain, ctx.job.prefix))
        raise ValueError("for good")

    store = JobStore(connection, db)
    await store.database.put({"_id": "a", **REFUSED[what]})
    await start(w, dead_after=0.5, beat_interval=0.1, sweep_interval=0.2)
    job = await wait(db, "a", 30)
    assert job.state is State.ERRORED
    assert told
    assert {*told} == {(db.domain, db.prefix)}


async def test_claim_when_its_answer_is_lost_then_the_tenant_stays(
    behind: tuple[FaultProxy, Connection], db: Prefixer
) -> None:
    """The job becomes what was read, and so it does where others have changed it before its end."""
    proxy, connection = behind
    store, lost = JobStore(connection, db), 0
    rev = await store.database.put({"_id": "a", **QUEUED})
    job = store.check({"_id": "a", "_rev": rev, **QUEUED})

    def lose(answer: Answer) -> None:
        nonlocal lost
        lost += answer.path.endswith("_bulk_docs")
        answer.lose = answer.path.endswith("_bulk_docs") and lost == 1

    proxy.after = lose
    assert await store.claimer.claim(job, "own", OwnClaims()) is Claimed.OURS
    assert (job.domain, job.prefix) == (db.domain, db.prefix)
    await store.update(await store.get("a"), cancel_requested=True)
    assert await store.ack(job)
    assert (job.domain, job.prefix) == (db.domain, db.prefix)
    assert job.document()["prefix"] == "victim", "what people write stays"
