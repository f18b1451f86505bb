"""Which candidates are taken for which slots, and when: without a server, and without waiting for time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from waiting import eventually

from couchjobs.broker import producer
from couchjobs.broker.feed import JobsFeed
from couchjobs.broker.lane import Execution, Lane, Phase
from couchjobs.broker.producer import Producer
from couchjobs.broker.reader import Reader
from couchjobs.broker.sweeper import Sweeper
from couchjobs.cluster.pauses import Pauses
from couchjobs.couch.answers import Found
from couchjobs.couch.changes import Change
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import CouchError
from couchjobs.jobs.store import JobStore
from couchjobs.settings import Settings, load_settings
from couchjobs.waits import Signal
from couchjobs.workers.config import WorkerConfig, WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.processes import InProcess
from couchjobs.workers.slots import Slots


def nothing(ctx: Any) -> None:
    """Do nothing."""


class Everything:
    """A partition that has all jobs, or only those that it is told of."""

    def __init__(self) -> None:
        self.only: set[str] | None = None

    def has(self, job_id: str, _worker_type: str) -> bool:
        """Whether a job is this daemon's."""
        return self.may_have(job_id)

    def may_have(self, job_id: str) -> bool:
        """The same."""
        return self.only is None or job_id in self.only


class Alone:
    """A daemon without others."""

    id = "own"
    is_lost = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sweep_interval = settings.sweep_interval
        self.pauses = Pauses()
        self.paused: frozenset[str] = frozenset()
        self.partition = Everything()


class Ends:
    """An executor whose jobs run until they are told to end."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = {}
        self.order: list[str] = []

    def new_context(self) -> None:
        """Return none: the present one does."""

    async def run(self, execution: Execution) -> float | None:
        """Begin, wait, free the slot."""
        job_id = execution.job.id
        self.order.append(job_id)
        self.running[job_id] = asyncio.Event()
        await self.running[job_id].wait()
        execution.slot.free(None)
        return None


class Settles:
    """What would write to jobs that are not run: it notes which conflicts it is to look at."""

    def __init__(self) -> None:
        self.settled: list[str] = []

    async def close(self, lanes: Any) -> None:
        """Give up nothing."""

    def settle(self, lane: Lane, job_id: str) -> None:
        """Look at a conflict, and find none."""
        self.settled.append(job_id)
        lane.in_conflict.pop(job_id, None)


class World:
    """A producer and what surrounds it."""

    def __init__(self, connection: Connection, concurrency: int = 2, *, shared: bool = False) -> None:
        self.connection = connection
        workers = WorkersList([WorkerConfig(worker_type="w", worker_func=nothing, concurrency=concurrency)])
        slots = Slots(workers, InProcess(workers, 1.0, CouchEngine(connection, workers)), shared=shared)
        self.daemon, self.executor = Alone(connection.settings), Ends()
        self.marks = Settles()
        self.producer = Producer(self.daemon, slots, self.executor, self.marks)  # type: ignore[arg-type]
        settings = connection.settings
        for _ in range(2):
            store = JobStore(connection, settings.tenant)
            self.producer.add(Lane.of(store, workers, {"w": concurrency}, self.daemon, None))  # type: ignore[arg-type]
        self.lane, self.other = self.producer.lanes

    async def offer(self, lane: Lane, *ids: str, **more: Any) -> None:
        """The feed shows queued jobs."""
        documents = [{"_id": one, "_rev": "1-a", "worker": "w", "message": 1, "state": "queued", **more} for one in ids]
        await self.producer.take_documents(lane, documents)

    async def until(self, condition: Any) -> None:
        """The loop turns until something is so; it never has to wait for time."""
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it does not happen")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A producer that runs, of one worker type with two slots, and two lanes."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        world = World(connection)
        running = asyncio.create_task(world.producer.run())
        yield world
        running.cancel()
        for event in world.executor.running.values():
            event.set()
        await asyncio.gather(running, return_exceptions=True)
        await world.producer.idle()


async def test_run_when_candidates_and_slots_come_then_nothing_else_is_waited_for(world: World) -> None:
    """As many as there are slots, the next one as soon as one is free; nothing is left over at the end."""
    await world.offer(world.lane, *(f"job-{number}" for number in range(5)))
    await world.until(lambda: len(world.executor.order) == 2)
    for number in range(5):
        world.executor.running[world.executor.order[number]].set()
        await world.until(lambda number=number: len(world.executor.order) == min(5, 3 + number))
    await world.producer.idle()
    assert sorted(world.executor.order) == [f"job-{number}" for number in range(5)]
    assert world.lane.executions == {}
    assert world.producer.slots.free(0) == {"w": 2}


async def test_run_when_two_lanes_have_jobs_of_a_type_then_neither_waits_for_the_other(world: World) -> None:
    """However many the one has."""
    await world.offer(world.lane, *(f"many-{number}" for number in range(100)))
    await world.until(lambda: len(world.executor.order) == 2)
    await world.offer(world.other, "few-0", "few-1")
    for number in range(4):
        world.executor.running[world.executor.order[number]].set()
        await world.until(lambda number=number: len(world.executor.order) == 3 + number)
    assert {"few-0", "few-1"} <= {*world.executor.order[:6]}


async def test_run_when_the_daemon_is_lost_or_closed_then_nothing_is_claimed(world: World) -> None:
    """And all of it as soon as it is found again."""
    world.daemon.is_lost = True
    await world.offer(world.lane, "job")
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.executor.order == []
    world.daemon.is_lost = False
    world.producer.slots.news.set()
    await world.until(lambda: world.executor.order == ["job"])
    world.producer.is_open = False
    await world.offer(world.lane, "late")
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.executor.order == ["job"]


async def test_run_when_a_lane_cannot_be_read_then_the_others_jobs_start_and_its_own_are_read_again(
    world: World,
) -> None:
    """A large document is read for its claim, of a server that does not answer; its slot is free meanwhile."""
    await world.offer(world.lane, "large", message="x" * 20_000)
    await world.offer(world.other, "small")
    await world.until(lambda: world.executor.order == ["small"])
    await eventually(lambda: world.lane.unread.next_in(0, 0.0) is not None)  # the connection is refused
    assert world.producer.slots.free(0) == {"w": 1}
    assert world.lane.unread.take(0, float("inf")) == ["large"]


async def test_run_when_the_daemon_is_lost_for_a_moment_then_found_without_being_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may have seen it: the loop looks for itself."""
    monkeypatch.setattr(producer, "_LOST_LOOK_S", 0.01)
    world.daemon.is_lost = True
    await world.offer(world.lane, "job")
    for _ in range(20):
        await asyncio.sleep(0)
    world.daemon.is_lost = False
    await eventually(lambda: world.executor.order == ["job"])


async def test_reader_when_slots_are_free_or_rows_are_left_then_woken(world: World) -> None:
    """Each round of the producer tells it: what it may read depends on what is spare."""
    while await world.lane.to_read.within(0):
        pass
    world.lane.unread.leave("other's", "1-a", 0.0)
    world.producer.slots.news.set()
    assert await world.lane.to_read.within(1)
    world.daemon.partition.only = set()
    rows = [Change(f"other-{number}", "1-a", deleted=False) for number in range(60)]
    await world.producer.take_rows(world.lane, rows)
    assert await world.lane.to_read.within(1)
    reader = Reader(world.lane, world.producer)
    asked: list[int] = []

    async def read(lane: Lane, ids: list[str]) -> None:
        asked.append(len(ids))

    world.producer.read = read  # type: ignore[method-assign, assignment]
    for _ in range(50):
        await reader._read()
    assert sum(asked) <= 2, "as many as there are spare slots, and not again at once"


async def test_reader_when_the_feed_is_behind_then_it_looks_seldom_for_what_others_have_left(world: World) -> None:
    """The rows that have not been looked at say that it is claimed; once there are none it looks soon."""
    world.daemon.partition.only = set()
    reader = Reader(world.lane, world.producer)
    await reader._read()
    world.lane.unread.leave("other's", "1-a", 0.0)
    assert 0.9 < (reader._next_in() or 0.0) <= 1.0
    world.lane.is_behind = False
    assert (reader._next_in() or 0.0) <= 0.1


async def test_reader_when_rows_of_no_use_come_first_then_they_are_passed_whatever_the_number_of_slots(
    world: World,
) -> None:
    """One slot that is free: a job that waits behind 4,000 that are done is found in 21 looks."""
    world.lane.is_behind = False
    for number in range(4000):
        world.lane.unread.leave(f"done-{number}", "3-a", 0.0)
    world.lane.unread.leave("given back", "3-a", 1.0)
    reader = Reader(world.lane, world.producer)
    asked: list[str] = []

    async def read(lane: Lane, ids: list[str]) -> None:
        asked.extend(ids)

    world.producer.read = read  # type: ignore[method-assign, assignment]
    for _ in range(21):
        reader._rows_read_at = 0.0
        await reader._read()
    assert asked[-1] == "given back"


async def test_rows_when_a_job_runs_here_or_is_anothers_then_it_is_not_read(world: World) -> None:
    """A row of a claim is its own; rows of others are kept; what came meanwhile is read at the end."""
    await world.offer(world.lane, "own")
    await world.until(lambda: world.executor.order == ["own"])
    world.daemon.partition.only = {"own"}
    rows = [Change("own", "2-b", deleted=False), *(Change(f"other-{n}", "1-a", deleted=False) for n in range(60))]
    assert await world.producer.take_rows(world.lane, rows) == (0, 60)
    assert world.lane.unread.next_in(0, 0.0) is None
    world.executor.running["own"].set()
    await world.producer.idle()
    assert world.lane.unread.next_in(0, float("inf")) == 0
    assert "own" in world.lane.unread.take(0, float("inf"))


async def test_feed_when_there_are_candidates_enough_then_the_next_page_waits_until_some_are_taken(
    world: World,
) -> None:
    """Asked for at once where nothing is ready; past everything where slots are free that have no candidate."""
    sweeper = Sweeper(world.connection, world.lane, world.producer)
    feed = JobsFeed(world.connection, world.lane, world.producer, sweeper)
    assert await feed._until_wanted(behind=True) == 500
    world.producer.is_open = False
    await world.offer(world.lane, *(f"job-{number:03}" for number in range(300)))
    asked = asyncio.create_task(feed._until_wanted(behind=True))
    await asyncio.sleep(0)
    assert not asked.done()
    world.producer.is_open = True
    for number in range(300):
        if asked.done():
            break
        world.producer.slots.news.set()
        await world.until(lambda number=number: len(world.executor.order) > number or asked.done())
        world.executor.running[world.executor.order[number]].set()
        await asyncio.sleep(0)
    assert await asked == 500
    assert 0 < world.lane.backlog.ready() < 40


async def test_signal_when_set_before_during_or_after_the_wait_then_never_missed() -> None:
    """And it is no longer set after it was seen."""
    signal = Signal()
    signal.set()
    assert await signal.within(None)
    assert not await signal.within(0)
    waiting = asyncio.create_task(signal.within(None))
    await asyncio.sleep(0)
    signal.set()
    signal.set()
    assert await waiting
    assert not await signal.within(0.001)


@pytest.mark.parametrize("phase", [Phase.CLAIMING, Phase.RUNNING])
async def test_conflict_when_the_feed_shows_it_while_the_job_runs_here_then_settled_at_its_end(
    world: World, phase: Phase
) -> None:
    """No other row tells of it: those of the claim and the end are this daemon's own."""
    await world.offer(world.lane, "j")
    await world.until(lambda: "j" in world.executor.running)
    execution = world.lane.executions["j"]
    execution.phase = phase
    with suppress(CouchError):  # the document is read, too, and there is no server here
        await world.producer.take_rows(world.lane, [Change("j", "2-b", False, None, True)])
    assert world.marks.settled == []
    world.executor.running["j"].set()
    await world.until(lambda: world.marks.settled == ["j"])


async def test_conflict_when_the_row_is_of_an_own_revision_then_looked_at_all_the_same(world: World) -> None:
    """The end of a job won over another branch, or came on top of it."""
    world.lane.claims.revisions.add("3-c")
    await world.producer.take_rows(world.lane, [Change("j", "3-c", False, None, True), Change("k", "3-c", False)])
    assert world.marks.settled == ["j"]


class Slow:
    """A database whose answers come when they are let."""

    def __init__(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, dict[str, Any] | None] = {}
        self.may_answer = asyncio.Event()
        self.asked: list[list[str]] = []
        monkeypatch.setattr(store.database, "revisions", self._revisions)
        monkeypatch.setattr(store.database, "read", self._read)

    async def _revisions(self, wanted: Any, **_: Any) -> Any:
        yield await self._read([job_id for job_id, _ in wanted])

    async def _read(self, ids: Any) -> list[Found]:
        self.asked.append([*ids])
        await self.may_answer.wait()
        asked = self.asked[-1]
        return [Found(one, "", self.answers.get(one), absent=self.answers.get(one) is None) for one in asked]


async def test_tenant_when_its_jobs_are_to_be_read_first_then_the_slots_kept_for_others_stay_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a hundred slots that many tenants share, one of whose jobs takes no more than ninety."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        world = World(connection, concurrency=100, shared=True)
        slow = Slow(world.lane.store, monkeypatch)
        large = {"message": "x" * 20_000}
        await world.offer(world.lane, *(f"j{number}" for number in range(300)), **large)
        running = asyncio.create_task(world.producer.run())
        await world.until(lambda: slow.asked)
        for _ in range(50):
            await asyncio.sleep(0)
            world.producer._news.set()
        assert sum(map(len, slow.asked)) == 90
        await world.offer(world.other, "first of another")
        await world.until(lambda: "first of another" in world.executor.running)
        running.cancel()
        for task in world.producer._reading:
            task.cancel()
        world.executor.running["first of another"].set()
        await asyncio.gather(running, return_exceptions=True)
        await world.producer.idle()


async def test_row_when_the_copy_that_is_asked_is_behind_it_then_the_job_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is older than what was seen is not believed; nor that there is none, three times."""
    slow = Slow(world.lane.store, monkeypatch)
    slow.may_answer.set()
    old = {"_id": "back", "_rev": "2-a", "worker": "w", "message": 1, "state": "running"}
    slow.answers = {"back": old, "new": None, "gone": None}
    rows = [Change("back", "3-b", False, None, False), Change("new", "1-a", False, None, False)]
    await world.producer.take_rows(world.lane, [*rows, Change("gone", "1-a", False, None, False)])
    assert world.lane.unread
    assert not world.executor.running
    queued = {"worker": "w", "message": 1, "state": "queued"}
    slow.answers |= {"back": {"_id": "back", "_rev": "3-b", **queued}, "new": {"_id": "new", "_rev": "1-a", **queued}}
    world.lane.unread.take(0, 1e12)
    await world.producer.read(world.lane, ["back", "new", "gone"])
    await world.until(lambda: {*world.executor.running} == {"back", "new"})
    assert world.lane.unread.take(0, 1e12) == ["gone"]
    await world.producer.read(world.lane, ["gone"])
    assert not world.lane.unread.take(0, 1e12), "it is gone"
    assert not world.lane._seen


async def test_candidate_when_its_lane_is_closed_while_it_is_read_then_not_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that goes: nobody would wait for the job, or interrupt it."""
    slow = Slow(world.lane.store, monkeypatch)
    document = {"_id": "job", "_rev": "1-a", "worker": "w", "message": "x" * 20_000, "state": "queued"}
    slow.answers["job"] = document
    await world.producer.take_documents(world.lane, [document])
    await world.until(lambda: slow.asked)
    await world.producer.close_lanes([world.lane], 0)
    slow.may_answer.set()
    await asyncio.gather(*world.producer._reading)
    assert not world.executor.running
    assert world.producer.slots.free(0) == {"w": 2}
