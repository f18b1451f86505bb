"""Values that other eyes found to change, to hang, or to take others along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.errors import BadDocumentError, Refused
from couchjobs.jobs.job import State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.testing import TestSystem
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.life import begun, seen
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]
HUGE = 10**400


@worker("note", concurrency=50)
async def note(ctx: WorkerContext) -> None:
    """Do nothing."""


async def keeps_numbers(connection: Connection) -> bool:
    """Whether the server keeps whole numbers of any size, as CouchDB does; the embedded one refuses those it rounds."""
    return (await connection.server.welcome())["vendor"]["name"] == "The Apache Software Foundation"


async def test_numbers_when_couchdb_does_not_take_them_then_refused_by_name(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """At the push; a result that holds one leaves its job done, after one run."""
    runs: list[str] = []

    @worker("huge")
    async def huge(ctx: WorkerContext) -> dict[str, int]:
        runs.append(ctx.id)
        return {"v": HUGE}

    await start(huge)
    async with Couchjobs(settings=connection.settings) as couchjobs:
        with pytest.raises(BadDocumentError, match=r"message\.v: an int of more than 308 digits"):
            await couchjobs.push("huge", {"v": HUGE})
        if await keeps_numbers(connection):
            await couchjobs.push("huge", {"v": 10**308 - 1})
        else:
            with pytest.raises(Refused, match=r"the number 9{100}\.\.\. would be rounded here"):
                await couchjobs.push("huge", {"v": 10**308 - 1})
        job_id = (await couchjobs.push("huge", {"v": 1})).job.id
    ended = await wait(db, job_id, 15)
    assert (ended.state, runs.count(job_id)) == (State.DONE, 1)
    assert "result.v" in ended.errors[0].error


async def test_payloads_when_one_is_a_large_number_then_its_neighbours_arrive(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Debounced, in a window that is open already."""
    await start(note)
    async with Couchjobs(settings=connection.settings) as couchjobs:
        hook = await couchjobs.triggers.add(
            {"type": "@webhook", "worker": "note", "message": None, "debounce": "5s", "_id": "hook"}
        )
        job = await couchjobs.fire_webhook(hook.id, 0)
        *joined, odd = await asyncio.gather(
            *(couchjobs.fire_webhook(hook.id, n) for n in (1, 3, 2**70)), return_exceptions=True
        )
        assert {one.id for one in joined} == {job.id}
    stored = (await get_job(db, job.id)).payload["payloads"]
    if await keeps_numbers(connection):
        assert odd.id == job.id
        assert sorted(stored) == [0, 1, 3, 2**70]
    else:
        assert isinstance(odd, Refused)
        assert sorted(stored) == [0, 1, 3]


async def test_payloads_when_debounced_in_memory_then_checked_and_copied() -> None:
    """As CouchDB would have it; other jobs go on."""
    async with TestSystem(note) as system:
        await system.add_trigger({"_id": "h", "type": "@webhook", "worker": "note", "message": None, "debounce": "5s"})
        given = {"a": [1]}
        await system.fire("h", given)
        with pytest.raises(BadDocumentError):
            await system.fire("h", float("nan"))
        await system.fire("h", (1, 2))
        given["a"].append(2)
        await system.advance(10)
        (job,) = system.assert_pushed("note", times=1)
        assert (job.state, job.payload) == (State.DONE, {"payloads": [{"a": [1]}, [1, 2]]})


def test_slot_when_another_daemon_reads_the_zone_an_hour_ahead_then_kept() -> None:
    """Its local time counts as fired for who reads it later; only what is days ahead is none."""
    document = {"_id": "t", "type": "@cron", "arguments": "0 30 2 * * *", "timezone": "Europe/Berlin", "worker": "w"}
    infos = TriggerInfos.from_document({**document, "message": None})
    schedule = parse_trigger(infos)
    present = datetime(2026, 10, 25, 0, 50, tzinfo=UTC)
    state = begun(schedule, infos, datetime(2026, 10, 24, tzinfo=UTC))  # type: ignore[arg-type]
    fired = replace(state, slot=schedule.slot(datetime(2026, 10, 25, 1, 30, tzinfo=UTC)), last=present, fired=present)  # type: ignore[union-attr]
    after = seen(fired, schedule, infos, present)  # type: ignore[arg-type]
    assert (after.slot, after.note) == (fired.slot, "")
    ahead = replace(fired, slot=schedule.slot(datetime(2027, 1, 1, tzinfo=UTC)))  # type: ignore[union-attr]
    assert seen(ahead, schedule, infos, present).slot == ""  # type: ignore[arg-type]
