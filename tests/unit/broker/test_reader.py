"""When what others have left is read."""

from __future__ import annotations

from producing import World

from couchjobs.broker.lane import Lane
from couchjobs.broker.reader import Reader
from couchjobs.couch.changes import Change


async def test_reader_when_slots_are_free_or_rows_are_left_then_woken(world: World) -> None:
    """Each round of the producer tells it: what it may read depends on what is spare."""
    while await world.lane.to_read.within(0):
        pass
    world.lane.unread.set_aside("other's", "1-a", 0.0)
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
    world.lane.unread.set_aside("other's", "1-a", 0.0)
    assert 0.9 < (reader._next_in() or 0.0) <= 1.0
    world.lane.is_behind = False
    assert (reader._next_in() or 0.0) <= 0.1


async def test_reader_when_rows_of_no_use_come_first_then_they_are_passed_whatever_the_number_of_slots(
    world: World,
) -> None:
    """One slot that is free: a job that waits behind 4,000 that are done is found in 21 looks."""
    world.lane.is_behind = False
    for number in range(4000):
        world.lane.unread.set_aside(f"done-{number}", "3-a", 0.0)
    world.lane.unread.set_aside("given back", "3-a", 1.0)
    reader = Reader(world.lane, world.producer)
    asked: list[str] = []

    async def read(lane: Lane, ids: list[str]) -> None:
        asked.extend(ids)

    world.producer.read = read  # type: ignore[method-assign, assignment]
    for _ in range(21):
        reader._rows_read_at = 0.0
        await reader._read()
    assert asked[-1] == "given back"
