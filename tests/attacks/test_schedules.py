"""Schedules in the hands of people: edited, late, disabled, seen by a wrong clock; daemons at default settings."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from daemons import AS_USERS_HAVE, DaemonProcess
from triggering import jobs_of, note, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.connection import Connection
from couchjobs.doctor.examine import examine
from couchjobs.errors import BadDocumentError, Conflict
from couchjobs.jobs.ids import new_id
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.states import state_id
from couchjobs.scheduler.ticker import Ticker
from couchjobs.settings import Settings
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

EVERY = {"type": "@every", "arguments": "1h", "worker": "note", "message": None}
LONG_AGO = "2026-01-01T00:00:00.000000Z"
A_SECOND_OF_LIFE = 3.0


def state_of(connection: Connection, db: Prefixer, trigger_id: str) -> str:
    """The id of its state."""
    return state_id(triggers_of(connection, db).name, trigger_id)


async def plant_state(connection: Connection, db: Prefixer, trigger_id: str, **fields: Any) -> None:
    """A state as a daemon of the version before has left it."""
    state = {"type": "@every", "arguments": "1h", "timezone": None, "anchor": LONG_AGO, **fields}
    await connection.control.put({"_id": state_of(connection, db, trigger_id), **state})


async def test_edit_when_only_the_message_changes_then_nothing_fires(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """The moment within the hour stays what it was."""
    triggers = triggers_of(connection, db)
    for number in range(20):
        await triggers.put({"_id": f"h{number}", "type": "@hourly", "worker": "note", "message": number})
    await begin(note)
    await eventually(lambda: connection.control.find(state_of(connection, db, "h19")))
    seeds = {}
    for number in range(20):
        state = await connection.control.get(state_of(connection, db, f"h{number}"))
        seeds[f"h{number}"] = state["seed"]
        document = await triggers.get(f"h{number}")
        await triggers.put({**document, "message": {"other": number}})

    async def seen() -> bool:
        for trigger_id, seed in seeds.items():
            state = await connection.control.get(state_of(connection, db, trigger_id))
            assert state["seed"] == seed
            if state["rev"] != (await triggers.get(trigger_id))["_rev"]:
                return False
        return True

    await eventually(seen)
    for trigger_id in seeds:
        assert await jobs_of(connection, db, trigger_id) == []


async def test_single_tick_when_more_than_a_day_late_then_its_trigger_says_so(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """It is disabled, with the reason; doctor tells it; with a longer grace it fires."""
    triggers = triggers_of(connection, db)
    at = {"type": "@at", "arguments": format_time(now() - timedelta(days=30)), "worker": "note", "message": None}
    await triggers.put({"_id": "ghost", **at})
    await triggers.put({"_id": "late", **at, "grace": "1000h"})
    await begin(note)

    async def ended() -> bool:
        return "was missed" in (await triggers.get("ghost")).get("ended", "")

    await eventually(ended)
    assert (await triggers.get("ghost"))["disabled"] is True
    await eventually(lambda: so_many_jobs_of(connection, db, "late", 1))
    assert await jobs_of(connection, db, "ghost") == []
    assert "ghost" in [finding.where for finding in await examine(connection, db)]


async def test_state_when_a_day_ahead_of_the_clock_then_begun_anew_and_told(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """A daemon's clock was wrong once."""
    tomorrow = format_time(now() + timedelta(days=1))
    await plant_state(connection, db, "e", arguments="1s", last=tomorrow)
    await plant_state(connection, db, "f", arguments="1s", anchor=tomorrow)
    for trigger_id in ("e", "f"):
        await triggers_of(connection, db).put({"_id": trigger_id, **EVERY, "arguments": "1s"})
    assert any("ahead of the clock" in finding.what for finding in await examine(connection, db))
    await begin(note)
    for trigger_id in ("e", "f"):
        await eventually(lambda trigger_id=trigger_id: so_many_jobs_of(connection, db, trigger_id, 2))  # type: ignore[misc]
        assert "ahead of the clock" in (await connection.control.get(state_of(connection, db, trigger_id)))["note"]


async def test_window_when_its_end_is_a_day_ahead_then_closed_and_its_job_runs(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Neither the first payloads nor later ones wait for tomorrow."""
    tomorrow, job_id = format_time(now() + timedelta(days=1)), new_id()
    hook = {"_id": "hook", "type": "@webhook", "worker": "note", "message": None, "debounce": "1s"}
    await triggers_of(connection, db).put(hook)
    window = {"job_id": job_id, "until": tomorrow}
    await connection.control.put({"_id": f"debounce:{triggers_of(connection, db).name}:hook", **window})
    job = {"worker": "note", "trigger_id": "hook", "message": None, "state": "queued", "debounced": True}
    payload = {"payload": {"payloads": [1]}, "scheduled_at": tomorrow, "queued_at": format_time(now())}
    await connection.database(db.database("jobs")).put({"_id": job_id, **job, **payload})
    system = await begin(note)
    await system.scheduler.fire_webhook("hook", 2)

    async def both_done() -> bool:
        jobs = await jobs_of(connection, db, "hook")
        return len(jobs) == 2 and all(one["state"] == "done" for one in jobs)

    await eventually(both_done)


async def test_single_tick_when_edited_as_it_is_due_then_fires_once(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Forty of them, moved by a second in the moment of their time: either comes too late, or counts."""
    triggers = triggers_of(connection, db)
    await begin(note)
    due = now() + timedelta(seconds=2)
    at = {"type": "@at", "arguments": format_time(due), "worker": "note", "message": None}
    documents = {}
    for number in range(40):
        revision = await triggers.put({"_id": f"at{number}", **at})
        documents[f"at{number}"] = {"_id": f"at{number}", "_rev": revision, **at}

    async def edit(trigger_id: str, pause: float) -> None:
        await asyncio.sleep(max(0.0, (due - now()).total_seconds() + pause))
        later = format_time(due + timedelta(seconds=1))
        try:
            await triggers.put({**documents[trigger_id], "arguments": later, "message": "moved"})
        except Conflict:
            return

    await asyncio.gather(*(edit(f"at{number}", number / 2000 - 0.002) for number in range(40)))

    async def all_gone() -> bool:
        return not await triggers.get_many(documents)

    await eventually(all_gone)
    for trigger_id in documents:
        assert len(await jobs_of(connection, db, trigger_id)) == 1, trigger_id


async def test_trigger_when_touched_while_no_daemon_runs_then_as_people_expect(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """A space changes nothing; removed and made again, or disabled meanwhile: what was missed does not fire late."""
    triggers = triggers_of(connection, db)
    names = ("space", "zone", "again", "switched")
    for trigger_id in names:
        await triggers.put({"_id": trigger_id, **EVERY})
    system = await begin(note)
    for trigger_id in names:
        await eventually(lambda trigger_id=trigger_id: connection.control.find(state_of(connection, db, trigger_id)))  # type: ignore[misc]
    await system.shutdown()
    for trigger_id in names:
        state = await connection.control.get(state_of(connection, db, trigger_id))
        old = format_time(now() - timedelta(minutes=90))
        await connection.control.put({**state, "anchor": old, "passed": old})
    await triggers.put({**await triggers.get("space"), "arguments": "1h "})
    await triggers.put({**await triggers.get("zone"), "timezone": "UTC"})
    document = await triggers.get("again")
    await triggers.delete("again", document["_rev"])
    await triggers.put({"_id": "again", **EVERY})
    await triggers.put({**await triggers.get("switched"), "disabled": True})
    await triggers.put({**await triggers.get("switched"), "disabled": False})
    await begin(note)
    for trigger_id in ("space", "zone"):
        await eventually(lambda trigger_id=trigger_id: so_many_jobs_of(connection, db, trigger_id, 1))  # type: ignore[misc]
    await asyncio.sleep(A_SECOND_OF_LIFE)  # what must not happen has no event of its own
    assert await jobs_of(connection, db, "again") == []
    assert await jobs_of(connection, db, "switched") == []


async def test_trigger_when_mistyped_for_a_moment_then_its_period_goes_on(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Nor does disabling and enabling begin it anew."""
    triggers = triggers_of(connection, db)
    await triggers.put({"_id": "e", **EVERY})
    await begin(note)
    anchor = (await eventually(lambda: connection.control.find(state_of(connection, db, "e"))))["anchor"]
    for change in ({"arguments": "1x"}, {"arguments": "1h"}, {"disabled": True}, {"disabled": False}):
        await triggers.put({**await triggers.get("e"), **change})
        await asyncio.sleep(0.3)
    revision = (await triggers.get("e"))["_rev"]

    async def seen() -> Any:
        state = await connection.control.get(state_of(connection, db, "e"))
        return state if state["rev"] == revision else None

    assert (await eventually(seen))["anchor"] == anchor


@pytest.mark.parametrize("differ", [False, True])
async def test_trigger_when_the_daemon_with_the_first_right_cannot_read_it_then_another_fires_it(
    connection: Connection, db: Prefixer, begin: Any, differ: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its zone data are older, which those that differ tell, or it is of another version."""
    monkeypatch.setattr(Daemon, "others_read_zones_differently", lambda _: differ)
    systems = [await begin(note), await begin(note)]

    def cannot(document: Any) -> Any:
        raise BadDocumentError(f"nobody here can read {document['_id']}")

    systems[0].scheduler.triggers._store.read = cannot
    await asyncio.sleep(1)
    for number in range(12):
        await triggers_of(connection, db).put({"_id": f"e{number}", **EVERY, "arguments": "2s"})
    for number in range(12):
        await eventually(lambda number=number: so_many_jobs_of(connection, db, f"e{number}", 3), 60)  # type: ignore[misc]


@worker("tell")
async def tell(ctx: WorkerContext) -> list[str | None]:
    """The ticks that it was given."""
    return [None if tick is None else format_time(tick) for tick in (ctx.tick, ctx.previous_tick)]


async def test_tick_when_a_trigger_fires_then_its_worker_knows_it_and_the_one_before(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """None where it was not the clock."""
    await triggers_of(connection, db).put({"_id": "e", **EVERY, "arguments": "1s", "worker": "tell"})
    await begin(tell)

    async def three_done() -> Any:
        done = [job for job in await jobs_of(connection, db, "e") if job["state"] == "done"]
        return sorted(done, key=lambda job: job["queued_at"]) if len(done) >= 3 else None

    jobs = await eventually(three_done)
    for job, earlier in zip(jobs, [None, *jobs], strict=False):
        assert job["result"] == [job["queued_at"], earlier["queued_at"] if earlier else None]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a module of one worker."""
    (tmp_path / "program.py").write_text(
        'from couchjobs import worker\n\n@worker("note", concurrency=20)\nasync def note(ctx):\n    pass\n'
    )
    return tmp_path


@pytest.fixture
def daemon(
    program: Path, settings_for: Callable[..., Settings], server_url: str
) -> Iterator[Callable[..., DaemonProcess]]:
    """Start a daemon on this test's databases, at default settings."""
    started: list[DaemonProcess] = []

    def start() -> DaemonProcess:
        settings = settings_for()
        given = {"url": server_url, "domain": settings.domain, "prefix": settings.prefix}
        one = DaemonProcess(
            program, "program", f"d{len(started)}", **given, control_db=settings.control_db, **AS_USERS_HAVE
        )
        started.append(one)
        return one

    yield start
    for one in started:
        one.end()


async def test_ticks_when_the_process_is_stopped_for_a_while_then_one_late_job(
    connection: Connection, db: Prefixer, daemon: Callable[..., DaemonProcess]
) -> None:
    """As a laptop that sleeps: the ticks of that time are one job, the others are counted."""
    await triggers_of(connection, db).put({"_id": "e", **EVERY, "arguments": "1s"})
    process = daemon()
    await eventually(lambda: so_many_jobs_of(connection, db, "e", 2), 20)
    process.signal(signal.SIGSTOP)
    stopped = now()
    await asyncio.sleep(12)
    woken = now()
    process.signal(signal.SIGCONT)

    async def goes_on() -> Any:
        ticks = [parse_time(job["queued_at"]) for job in await jobs_of(connection, db, "e")]
        return ticks if sum(tick is not None and tick > woken for tick in ticks) >= 2 else None

    ticks = await eventually(goes_on, 20)
    second = timedelta(seconds=1)
    assert sum(stopped + second < tick < woken - second for tick in ticks) <= 1
    assert (await connection.control.get(state_of(connection, db, "e")))["missed"] >= 9


def test_schedule_when_it_ends_with_all_times_then_others_look_at_it_then() -> None:
    """A usual way to write "never"; whoever looks a little later than that would look after the end."""
    last = datetime.max.replace(tzinfo=UTC)
    timer = SimpleNamespace(life=SimpleNamespace(look=lambda present: last), rank=2)
    assert Ticker._left_to_others(None, timer, datetime.now(UTC), timedelta(seconds=1)) == last  # type: ignore[arg-type]
