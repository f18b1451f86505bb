"""A `before_hook` decides about one firing, and about nobody else's; a payload that was acknowledged is not dropped."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from triggering import jobs_of, note, triggers_of
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import BadDocumentError
from couchjobs.http.server import make_app
from couchjobs.jobs.job import Job
from couchjobs.jobs.payloads import as_changes, gathered, missing
from couchjobs.prefixer import Prefixer
from couchjobs.testing import TestSystem
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

WEBHOOK = {"_id": "hook", "type": "@webhook", "message": None, "debounce": "20s"}


def no_bad_one(job: Job) -> bool:
    """Skip what holds a bad payload."""
    return "bad" not in job.payload["payloads"]


def refuses_bad_one(job: Job) -> None:
    """Raise at what holds a bad payload."""
    if "bad" in job.payload["payloads"]:
        raise ValueError("bad payload")


@worker("skips", before_hook=no_bad_one)
async def skips(ctx: WorkerContext) -> Any:
    """Return what has come."""
    return ctx.job.payload


@worker("refuses", before_hook=refuses_bad_one)
async def refuses(ctx: WorkerContext) -> Any:
    """Return what has come."""
    return ctx.job.payload


@worker("wants-none", before_hook=lambda job: False)
async def choosy(ctx: WorkerContext) -> None:
    """Want nothing."""


@worker("raises-always", before_hook=lambda job: 1 / 0)
async def strict(ctx: WorkerContext) -> None:
    """Want nothing, and say so loudly."""


async def payloads_of(connection: Connection, db: Prefixer) -> list[Any]:
    """All payloads in jobs of the webhook."""
    return [one for job in await jobs_of(connection, db, "hook") for one in job["payload"]["payloads"]]


@pytest.mark.parametrize(("worker_type", "status"), [("skips", 204), ("refuses", 422)])
async def test_deliveries_when_the_hook_does_not_want_one_then_the_others_arrive(
    connection: Connection, db: Prefixer, begin: Any, worker_type: str, status: int
) -> None:
    """At once, and later into the window that is open: each is asked about by itself."""
    await begin(skips, refuses)
    await triggers_of(connection, db).put({**WEBHOOK, "worker": worker_type})
    async with TestClient(TestServer(make_app(connection))) as http:

        async def send(payload: Any) -> int:
            return (await http.post("/jobs/webhooks/hook", json=payload)).status

        sent = ["bad", "a", "b", "bad", "c"]
        answers = await asyncio.gather(*map(send, sent))
        assert answers == [status if one == "bad" else 204 for one in sent]
        assert [await send("bad"), await send("d")] == [status, 204]
    assert sorted(await payloads_of(connection, db)) == ["a", "b", "c", "d"]
    assert len(await jobs_of(connection, db, "hook")) == 1


class Held:
    """Has each attempt to store payloads wait until `turns` is released, and notes how many it is for."""

    def __init__(self, debouncer: Any) -> None:
        self.asked: list[int] = []
        self.refuses_many = False
        self.turns = asyncio.Semaphore(0)
        self._store = debouncer._fire
        debouncer._fire = self

    async def __call__(self, firing: Any, payloads: dict[str, Any]) -> Any:
        """Wait, and store them."""
        self.asked.append(len(payloads))
        await self.turns.acquire()
        if self.refuses_many and len(payloads) > 1:
            raise BadDocumentError("together they are more than CouchDB takes")
        return await self._store(firing, payloads)


async def waiting_together(system: Any, payloads: list[str]) -> tuple[Held, list[asyncio.Task[Any]]]:
    """Fire the first payload, which is held, and the others, which wait for it, and are asked to be stored together."""
    debouncer = system.scheduler._debouncer
    held = Held(debouncer)
    fires = []
    for number, one in enumerate(payloads):  # in this order: each asks CouchDB for the trigger before
        fires.append(asyncio.create_task(system.scheduler.fire_webhook("hook", one)))
        await eventually(lambda: bool(held.asked))
        await eventually(lambda number=number: len(debouncer._together._groups["hook"].waiting) == number)
    held.turns.release()
    await eventually(lambda: held.asked == [1, len(payloads) - 1])
    return held, fires


async def test_deliveries_when_they_go_alone_and_who_fires_gives_up_then_the_others_arrive(
    connection: Connection, db: Prefixer, start: Any
) -> None:
    """Together they are more than CouchDB takes."""
    system = await start(note)
    await triggers_of(connection, db).put({**WEBHOOK, "worker": "note"})
    await system.scheduler.fire_webhook("hook", "before")
    held, fires = await waiting_together(system, ["held", *"012345"])
    held.refuses_many = True
    held.turns.release()
    await eventually(lambda: held.asked == [1, 6, 1])
    fires[1].cancel()
    await asyncio.wait({fires[1]})
    held.refuses_many = False
    for _ in range(20):
        held.turns.release()
    answers = await asyncio.gather(*fires, return_exceptions=True)
    assert [type(one) for one in answers] == [Job, asyncio.CancelledError, *[Job] * 5]
    assert sorted(await payloads_of(connection, db)) == ["1", "2", "3", "4", "5", "before", "held"]


async def test_firing_when_it_and_who_fires_for_it_give_up_then_it_is_in_no_later_window(
    connection: Connection, db: Prefixer, start: Any
) -> None:
    """Whoever was told that it failed may fire again."""
    system = await start(note)
    await triggers_of(connection, db).put({**WEBHOOK, "worker": "note"})
    await system.scheduler.fire_webhook("hook", "before")
    held, fires = await waiting_together(system, ["held", "first", "second"])
    for given_up in reversed(fires[1:]):
        given_up.cancel()
        await asyncio.wait({given_up})
    held.turns.release()
    await system.scheduler.fire_webhook("hook", "later")
    assert await payloads_of(connection, db) == ["before", "held", "later"]


@pytest.mark.parametrize("edit", ["one is taken out", "the ids are gone", "an id twice", "a field beside"])
async def test_payloads_when_somebody_has_changed_the_list_then_the_next_one_drops_none(
    connection: Connection, db: Prefixer, start: Any, edit: str
) -> None:
    """What he has taken out stays out."""
    system = await start(note)
    await triggers_of(connection, db).put({**WEBHOOK, "worker": "note"})
    for number in range(3):
        job = await system.scheduler.fire_webhook("hook", number)
    jobs = connection.database(db.database("jobs"))
    document = await jobs.get(job.id)
    match edit:
        case "one is taken out":
            document["payload"]["payloads"].remove(1)
        case "the ids are gone":
            del document["payload_ids"]
        case "an id twice":
            document["payload_ids"][1] = document["payload_ids"][0]
        case "a field beside":
            document["payload"]["note"] = "mine"
    expected = [*document["payload"]["payloads"], "new"]
    await jobs.put(document)
    await system.scheduler.fire_webhook("hook", "new")
    payload = (await jobs.get(job.id))["payload"]
    assert payload["payloads"] == expected
    assert payload.get("note") == ("mine" if edit == "a field beside" else None)


def test_payloads_when_two_branches_are_joined_then_all_of_both() -> None:
    """Though somebody has changed the list of the one that wins."""
    winner = {"payload": {"payloads": ["a", "a", "b"]}, "payload_ids": ["1", "2"]}
    loser = as_changes({"3": "c"})
    changes = missing(winner, [loser, {"payload": "text"}])
    assert changes is not None
    assert changes["payload"]["payloads"] == ["a", "a", "b", "c"]
    assert len(set(changes["payload_ids"])) == 4
    assert missing(winner | changes, [loser]) is None
    assert gathered({"payload": {"payloads": "text"}}) is None


async def test_memory_when_a_webhook_is_fired_at_once_then_one_job_and_each_asked_about() -> None:
    """As with CouchDB."""
    async with TestSystem(skips) as system:
        await system.add_trigger({**WEBHOOK, "worker": "skips"})
        await asyncio.gather(*(system.fire("hook", one) for one in ("bad", "a", "b", "c")))
        await system.advance(30)
        (job,) = system.assert_pushed("skips", times=1)
        assert sorted(system.job(job.id).result["payloads"]) == ["a", "b", "c"]


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a server that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("worker_type", "told"), [("wants-none", BadDocumentError), ("raises-always", ZeroDivisionError)]
)
@pytest.mark.parametrize("job_id", [None, "mine"])
async def test_push_when_a_hook_refuses_it_and_couchdb_is_away_then_what_the_hook_says(
    deaf: str, settings_for: Any, worker_type: str, told: type[Exception], job_id: str | None
) -> None:
    """Within the time of a push, where it is to be looked whether the job is there; at once, where it cannot be."""
    async with connect(settings_for(url=deaf, push_timeout=0.5)) as connection:
        began = time.monotonic()
        with pytest.raises(told):
            await Couchjobs.over(connection).push(worker_type, None, id=job_id)
        assert time.monotonic() - began < 5
