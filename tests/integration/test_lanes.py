"""Worker types whose jobs have a database of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fault_proxy import FaultProxy
from waiting import SOON_DEAD, SOON_SWEPT, eventually

from couchjobs.broker.couch import CouchBroker
from couchjobs.couch.connection import connect
from couchjobs.doctor.examine import examine
from couchjobs.doctor.finding import Finding
from couchjobs.errors import ConfigurationError, Conflict, JobNotFoundError
from couchjobs.installation import install
from couchjobs.jobs.job import State
from couchjobs.jobs.lanes import find_job
from couchjobs.jobs.queries import get_job, get_jobs, get_jobs_before_date, get_lasts_jobs, get_queued_jobs
from couchjobs.jobs.request import JobRequest
from couchjobs.jobs.trigger_state import get_trigger_state
from couchjobs.jobs.waiting import wait
from couchjobs.settings import Settings, load_settings
from couchjobs.timestamps import now
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

LANES = {"resize": "images"}


@worker("echo")
async def echo(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    return message


@worker("resize")
async def resize(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    return message


@pytest.fixture
def lanes(settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a lane, in the environment too."""
    monkeypatch.setenv("COUCHJOBS_LANES", '{"resize": "images"}')
    return settings_for()


async def test_jobs_when_worker_has_a_lane_then_stored_run_and_found_there(
    lanes: Settings, connection: Any, start: Callable[..., Any]
) -> None:
    """By whatever question; the other worker's jobs stay where they were."""
    assert connection.settings.lanes == LANES
    db = lanes.tenant
    system = await start(echo, resize)
    infos = TriggerInfos(type="@webhook", worker="resize", message=None)
    trigger = await system.scheduler.add_trigger(db, infos)
    fired = await system.scheduler.fire_webhook(trigger.id, {"page": 1})
    pushed = await system.broker.push_job(db, JobRequest(worker_type="resize", message=2))
    other = await system.broker.push_job(db, JobRequest(worker_type="echo", message=3))
    for job in (fired, pushed, other):
        assert (await wait(db, job.id, 10)).state is State.DONE
    images, jobs = connection.database(db.database("images")), connection.database(db.database("jobs"))
    assert (await images.all_revisions()).keys() == {fired.id, pushed.id}
    assert (await jobs.all_revisions()).keys() == {other.id}
    assert (await get_job(db, pushed.id)).result == 2
    assert (await find_job(connection, db, pushed.id))[0].database.name == images.name
    with pytest.raises(JobNotFoundError):
        await get_job(db, "nothing")
    assert [job.id for job in await get_jobs(db, trigger.id)] == [fired.id]
    assert (await get_trigger_state(db, trigger.id)).last_successful_job_id == fired.id
    assert {job.id for job in await get_lasts_jobs(db, "resize")} == {fired.id, pushed.id}
    assert len(await get_jobs_before_date(db, now() + timedelta(hours=1))) == 3
    assert await system.broker.worker_queue_len("resize") == 0
    assert await get_queued_jobs(db, "resize") == []


async def test_daemon_when_it_has_no_worker_of_a_lane_then_it_does_not_follow_it(
    lanes: Settings, connection: Any, server_url: str, settings_for: Callable[..., Settings]
) -> None:
    """Nobody pays for rows that nobody needs."""
    asked: list[str] = []

    def note(method: str, path: str, body: bytes) -> None:
        asked.append(path)

    async with FaultProxy(server_url) as proxy, connect(settings_for(url=proxy.url)) as behind:
        proxy.before = note
        broker = CouchBroker(behind)
        await broker.start_workers(WorkersList([resize]))
        pushed = await broker.push_job(lanes.tenant, JobRequest(worker_type="resize", message=1))
        assert pushed is not None
        await eventually(lambda: any("images/_changes" in path for path in asked))
        await broker.shutdown_workers(5)
    assert not any("jobs/_changes" in path or "jobs/_design" in path for path in asked)


async def test_daemon_when_it_dies_then_jobs_of_its_lane_are_rescued(
    lanes: Settings, connection: Any, start: Callable[..., Any]
) -> None:
    """By a daemon that has the lane; one that has not is no help."""
    db = lanes.tenant
    images = connection.database(db.database("images"))
    claim = {"id": "0" * 16, "daemon": "gone-1-abcd", "at": "2026-11-24T08:00:00.000000Z"}
    document = {"worker": "resize", "message": 7, "state": "running", "exec_count": 1, "claim": claim}
    await images.put({"_id": "orphan", **document})
    await start(echo, **SOON_DEAD, **SOON_SWEPT)
    await start(resize, **SOON_DEAD, **SOON_SWEPT)
    assert (await wait(db, "orphan", 20)).result == 7


async def test_doctor_when_a_lane_has_trouble_then_found(lanes: Settings, connection: Any) -> None:
    """Views of lanes are looked at too, and mended."""
    images = connection.database(lanes.tenant.database("images"))
    present = await images.get("_design/queue")
    await images.delete("_design/queue", present["_rev"])
    findings = await examine(connection, lanes.tenant, repair=True)
    assert any(finding.kind == "views" and images.name in finding.where and finding.done for finding in findings)
    assert await install(connection, lanes.tenant) == []


async def test_doctor_when_daemons_or_producers_have_other_lanes_then_found(
    lanes: Settings, connection: Any, start: Callable[..., Any]
) -> None:
    """What they write or look for in another database waits for ever."""
    await start(resize)
    jobs = connection.database(lanes.tenant.database("jobs"))
    await jobs.put({"_id": "a", "worker": "resize", "message": None, "state": "queued"})

    async def found() -> list[Finding]:
        return [finding for finding in await examine(connection, lanes.tenant) if finding.kind != "security"]

    findings = await eventually(found)
    assert [(finding.kind, finding.where) for finding in findings] == [("takers", "resize")]
    assert lanes.tenant.database("images") in findings[0].what
    connection.settings = connection.settings.model_copy(update={"lanes": {}})
    kinds = Counter(finding.kind for finding in await examine(connection, lanes.tenant))
    assert (kinds["lanes"], kinds["takers"]) == (1, 0)


def test_settings_when_a_lane_is_something_elses_then_refused() -> None:
    """Jobs among triggers would be taken for triggers."""
    with pytest.raises(ConfigurationError, match="triggers"):
        load_settings(lanes={"resize": "triggers"})


async def test_id_when_jobs_of_two_lanes_have_it_then_neither_is_taken_for_the_other(
    lanes: Settings, connection: Any, start: Callable[..., Any]
) -> None:
    """Each lane has ids of its own; who asks by the id alone is told."""
    db = lanes.tenant
    system = await start(echo, resize)
    for worker_type in ("echo", "resize"):
        assert await system.broker.push_job(db, JobRequest(worker_type=worker_type, id="same"))
    with pytest.raises(Conflict, match=r"2 jobs have the id 'same': of worker 'echo' in .*, of worker 'resize'"):
        await find_job(connection, db, "same")
