"""Which candidates are taken for which slots, and when."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from producing import Slow, World
from waiting import eventually

from couchjobs.broker import producer
from couchjobs.broker.lane import Phase
from couchjobs.couch.changes import Change
from couchjobs.couch.connection import connect
from couchjobs.errors import CouchError
from couchjobs.settings import load_settings


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


async def test_run_when_a_lane_rests_then_it_is_not_looked_at_until_it_goes_on(world: World) -> None:
    """Of a thousand tenants most do; what another one brings is done meanwhile."""
    await world.offer(world.lane, "job")
    await world.until(lambda: world.executor.order == ["job"])
    world.other.rests = True
    world.other.read_again("unread")
    await world.other.to_read.within(0)
    await world.offer(world.lane, "another")
    await world.until(lambda: world.executor.order == ["job", "another"])
    assert not await world.other.to_read.within(0)
    world.other.rests = False
    world.producer.slots.news.set()
    assert await world.other.to_read.within(10)


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
