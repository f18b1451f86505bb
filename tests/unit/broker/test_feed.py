"""When the next page of the feed is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from producing import Slow, World
from waiting import eventually

from couchjobs.broker.feed import JobsFeed
from couchjobs.broker.sweeper import Sweeper
from couchjobs.couch.changes import Change, Page


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


class Pages:
    """A follower of the feed whose pages are put in by hand."""

    def __init__(self) -> None:
        self.pages: asyncio.Queue[list[Change]] = asyncio.Queue()
        self.asked: list[tuple[int, bool]] = []
        self.dealt_with = 0
        self.since = "0"

    async def next_page(self, limit: int, *, documents: bool) -> Page:
        """Return the page that comes next."""
        self.asked.append((limit, documents))
        return Page(await self.pages.get(), self.since if self.since != "0" else str(len(self.asked)))

    def done(self, _page: Page) -> None:
        """Count it."""
        self.dealt_with += 1


@pytest.fixture
async def pages(world: World) -> AsyncIterator[Pages]:
    """The feed of the first lane, which is being followed."""
    pages = Pages()
    world.lane.follower = pages  # type: ignore[assignment]
    feed = JobsFeed(world.connection, world.lane, world.producer, Sweeper(world.connection, world.lane, world.producer))
    following = asyncio.create_task(feed.follow())
    await world.until(lambda: pages.asked)
    yield pages
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def queued(count: int) -> list[Change]:
    """Rows of so many new jobs, with their documents."""
    body = {"_rev": "1-a", "worker": "w", "message": 1, "state": "queued"}
    ids = [f"job-{number}" for number in range(count)]
    return [Change(job_id, "1-a", deleted=False, document={"_id": job_id, **body}) for job_id in ids]


async def test_pages_when_most_rows_are_others_jobs_then_documents_are_not_brought_along_until_most_are_its_own(
    world: World, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of bare rows says whose the jobs are: what is another daemon's is never read here."""
    assert pages.asked == [(500, True)]
    world.daemon.partition.only = set()
    pages.pages.put_nowait(queued(60))
    await eventually(lambda: len(pages.asked) == 2)
    assert pages.asked[1] == (500, False)
    world.daemon.partition.only = None
    slow = Slow(world.lane.store, monkeypatch)
    slow.may_answer.set()
    pages.pages.put_nowait([Change(f"own-{number}", "1-a", deleted=False) for number in range(60)])
    await eventually(lambda: len(pages.asked) == 3)
    assert pages.asked[2] == (500, True)


async def test_pages_when_there_is_work_enough_then_a_page_comes_all_the_same_for_cancellations(
    world: World, pages: Pages
) -> None:
    """A quarter of a second after the last one, and of full size: it is read for what it says of running jobs."""
    world.producer.is_open = False
    pages.pages.put_nowait(queued(400))
    await world.until(lambda: pages.dealt_with == 1)
    begun = time.monotonic()
    await eventually(lambda: len(pages.asked) == 2)
    assert pages.asked[1] == (500, True)
    assert time.monotonic() - begun > 0.2


async def test_page_when_something_was_written_here_and_nothing_is_ready_then_writes_wait_for_what_it_shows(
    world: World, pages: Pages
) -> None:
    """Claims follow from it, and go with the same commit; a page that shows the last write asks for that no more."""
    writer, held = world.lane.store.writer, list[str]()
    writer.hold = lambda: held.append(writer.newest)  # type: ignore[method-assign]
    writer.newest = "2-b"
    pages.pages.put_nowait([])
    await world.until(lambda: len(pages.asked) == 2)
    assert held == ["2-b"]
    pages.pages.put_nowait([Change("own", "2-b", deleted=True)])
    await world.until(lambda: len(pages.asked) == 3)
    writer.newest = "2-c"
    pages.pages.put_nowait([Change("own", "2-c", deleted=True)])
    await world.until(lambda: len(pages.asked) == 4)
    assert held == ["2-b"], "that page has shown it"


async def test_page_when_old_rows_come_again_then_the_view_is_read_for_what_is_new(
    world: World, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of the node all rows may come again, and what is new comes after them."""
    swept: list[float] = []
    monkeypatch.setattr(Sweeper, "sweep_by", lambda _, in_s: swept.append(in_s))
    for last_seq, is_full, count in (
        ("900000-x", True, 0),
        ("899990-y", True, 0),
        ("500-z", True, 1),
        ("300000-z", True, 2),
        ("300001-z", False, 2),  # it has come to the end: that copy counts otherwise, for good
        ("300900-z", True, 2),
        ("900001-x", True, 2),
        ("300950-z", True, 3),
    ):
        pages.since = last_seq
        dealt_with = pages.dealt_with
        rows = [Change(f"done-{number}", "3-c", deleted=True) for number in range(pages.asked[-1][0])]
        pages.pages.put_nowait(rows if is_full else rows[:1])
        await eventually(lambda dealt_with=dealt_with: len(pages.asked) == dealt_with + 2)
        assert len(swept) == count, last_seq
