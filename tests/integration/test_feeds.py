"""The changes feed and the daemon that lives on it, when connections break and servers restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from copies import put_on_all, remake
from fault_proxy import Answer, FaultProxy, Refusal
from waiting import eventually

from couchjobs.broker import feed
from couchjobs.broker.couch import CouchBroker
from couchjobs.broker.sweeper import Sweeper
from couchjobs.cluster.pauses import set_paused
from couchjobs.couch import changes
from couchjobs.couch.changes import ChangesFollower, Page
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.identity import copies_of, instance_of
from couchjobs.couch.live_feeds import LiveFeeds
from couchjobs.couch.positions import current_sequence
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.errors import NotFound, PositionRefused
from couchjobs.installation import install
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.settings import Settings
from couchjobs.system import JobSystem, system_start
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker

ran: list[str] = []


@worker("note", concurrency=50)
async def note(ctx: WorkerContext) -> None:
    """Note which jobs have run."""
    ran.append(ctx.id)


@pytest.fixture
async def proxy(server_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the server of the tests."""
    ran.clear()
    async with FaultProxy(server_url) as proxy:
        yield proxy


async def gone(follower: ChangesFollower) -> bool:
    """Whether the follower says that its database does not exist."""
    try:
        await asyncio.wait_for(follower.next_page(), 1)
    except NotFound:
        return True
    except TimeoutError:
        pass
    return False


async def take(follower: ChangesFollower) -> Page:
    """The next page, dealt with."""
    page = await follower.next_page()
    follower.done(page)
    return page


async def test_page_when_asked_then_rows_after_the_sequence(connection: Connection, db: Prefixer) -> None:
    """Pages follow one another, several changes of a document are one row, deletions say so."""
    database = connection.database(db.database("triggers"))
    rev = await database.put({"_id": "a"})
    await database.put({"_id": "b"})
    follower = ChangesFollower(database, "0", limit=1)
    await follower.next_page()
    assert follower.since == "0", "a page comes again until it is done with"
    seen: set[str] = set()
    while seen != {"a", "b"}:  # a copy of a cluster that is behind may show a row once more
        page = await take(follower)
        assert len(page.changes) == 1
        seen.add(page.changes[0].doc_id)
    rev = await database.put({"_id": "a", "_rev": rev, "n": 2})
    rev = await database.put({"_id": "a", "_rev": rev, "n": 3})
    (change,) = (await take(follower)).changes
    while change.rev != rev:
        (change,) = (await take(follower)).changes
    assert (change.doc_id, change.rev, change.deleted) == ("a", rev, False)
    waiting = asyncio.create_task(take(follower))
    await database.delete("a", rev)
    (change,) = (await waiting).changes
    assert change.deleted


async def test_follower_when_since_is_now_then_only_what_comes(connection: Connection, db: Prefixer) -> None:
    """`current_sequence` and "now" both begin at the present state."""
    database = connection.database(db.database("triggers"))
    await put_on_all(database, {"_id": "before"})
    for since in ("now", "present"):
        follower = ChangesFollower(database, "now" if since == "now" else await current_sequence(database))
        waiting = asyncio.create_task(take(follower))
        doc_id = f"after-{since}"

        async def write(doc_id: str = doc_id) -> None:
            present = await database.find(doc_id) or {"_id": doc_id}
            await database.put({**present, "n": present.get("n", 0) + 1})

        shown: set[str] = set()
        while doc_id not in shown:
            await write()
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            for one in done:
                shown |= {change.doc_id for change in one.result().changes}
                waiting = asyncio.create_task(take(follower))
        waiting.cancel()
        if copies_of(await database.info()) == 1:  # a node without the copy of that position gives old rows again
            assert shown == {doc_id}


async def test_follower_when_since_is_now_then_nothing_is_lost_between_two_requests(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first wait ends after a heartbeat, to see whether the database is still the same."""
    database = connection.database(db.database("triggers"))
    follower = ChangesFollower(database, "now", heartbeat_s=0.2)
    info = database.info

    async def written_meanwhile() -> dict[str, Any]:
        await put_on_all(database, {"_id": "between"})
        return await info()

    monkeypatch.setattr(database, "info", written_meanwhile)
    page = await asyncio.wait_for(follower.next_page(), 10)
    assert [change.doc_id for change in page.changes] == ["between"]


async def test_follower_when_documents_are_asked_for_then_rows_bring_them_unless_too_large(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows alone, where the documents of a page are too much for the memory that a page may have."""
    database = connection.database(db.database("triggers"))
    for number in range(4):
        await put_on_all(database, {"_id": f"doc-{number}", "text": "x" * 1000})
    page = await ChangesFollower(database, "0").next_page(documents=True)
    found = {change.doc_id: change.document for change in page.changes}
    assert all((found[f"doc-{number}"] or {})["text"] == "x" * 1000 for number in range(4))
    monkeypatch.setattr(changes, "MAX_PAGE_BYTES", 3000)
    page = await ChangesFollower(database, "0").next_page(documents=True)
    assert {f"doc-{number}" for number in range(4)} <= {change.doc_id for change in page.changes}
    assert all(change.document is None for change in page.changes)


async def test_follower_when_database_goes_then_not_found(connection: Connection, db: Prefixer) -> None:
    """Not an endless loop."""
    name = db.database("gone")
    await connection.server.create_database(name)
    follower = ChangesFollower(connection.database(name), "0", heartbeat_s=1)
    waiting = asyncio.create_task(take(follower))
    await asyncio.wait([waiting], timeout=0.1)
    await connection.server.delete_database(name)
    with pytest.raises(NotFound):
        await asyncio.wait_for(waiting, 10)


async def test_follower_when_database_was_away_and_is_made_anew_then_refused(
    connection: Connection, db: Prefixer
) -> None:
    """Whoever is told that it is not there may ask again, by the same position."""
    database = connection.database(db.database("away"))
    await connection.server.create_database(database.name)
    rev = await database.put({"_id": "doc"})
    follower = ChangesFollower(database, "0", heartbeat_s=0.3)
    while rev not in {change.rev for change in (await take(follower)).changes}:
        pass
    with suppress(TimeoutError):
        await asyncio.wait_for(follower.next_page(), 1)
    await connection.server.delete_database(database.name)
    await eventually(lambda: gone(follower))
    await remake(connection, database.name)
    with pytest.raises(PositionRefused):
        await asyncio.wait_for(follower.next_page(), 10)


@pytest.mark.parametrize("waits", [True, False])
async def test_follower_when_database_is_made_anew_between_two_requests_then_refused(
    connection: Connection, db: Prefixer, waits: bool
) -> None:
    """The new one has nothing to say after the old position, and no connection was cut: within two heartbeats."""
    name = db.database("remade")
    database = connection.database(name)
    await connection.server.create_database(name)
    for number in range(3):
        await database.put({"_id": f"doc-{number}"})
    instance = instance_of(await database.info())
    follower = ChangesFollower(database, "0", instance=instance)
    seen: set[str] = set()
    while len(seen) < 3:
        seen |= {change.doc_id for change in (await take(follower)).changes}

    async def is_told_from_the_old_one() -> bool:  # CouchDB says in which second it was made
        await remake(connection, name)
        return instance_of(await database.info()) != instance

    await eventually(is_told_from_the_old_one)
    if not waits:
        connection.server.live_feeds = LiveFeeds(0, 500)
    with pytest.raises(PositionRefused):
        await asyncio.wait_for(take(follower), 10)


@pytest.mark.parametrize("fault", ["cut", "pieces", "lose", "no JSON", "503", "silent"])
async def test_follower_when_answers_are_broken_then_every_change_comes(
    proxy: FaultProxy, connection: Connection, db: Prefixer, settings_for: Callable[..., Settings], fault: str
) -> None:
    """A cut answer is asked for again; nothing is left out."""
    faults = 0

    def spoil(answer: Answer) -> None:
        nonlocal faults
        if "_changes" not in answer.path or faults >= 3:
            return
        faults += 1
        if fault == "cut":
            answer.cut_at = len(answer.body) - 5
        elif fault == "pieces":
            answer.pieces = 7
        elif fault == "lose":
            answer.lose = True
        elif fault == "no JSON":
            answer.body = b"<html>"

    async def refuse(method: str, path: str, body: bytes) -> None:
        nonlocal faults
        if "_changes" in path and faults < 2:
            faults += 1
            if fault == "503":
                raise Refusal(503)
            if fault == "silent":
                await asyncio.sleep(2)

    proxy.after = spoil
    if fault in ("503", "silent"):
        proxy.before, proxy.after = refuse, lambda answer: None
    async with connect(settings_for(url=proxy.url)) as behind:
        database = behind.database(db.database("triggers"))
        for number in range(10):
            await connection.database(database.name).put({"_id": f"doc-{number}"})
        follower = ChangesFollower(database, "0", limit=4, heartbeat_s=0.3, silence_s=0.9)
        seen: set[str] = set()
        while len(seen) < 10:
            page = await asyncio.wait_for(take(follower), 20)
            seen |= {change.doc_id for change in page.changes}
        assert faults >= 2
        assert follower.failures == 0


async def test_feed_when_it_only_gives_signs_of_life_then_asked_for_anew(
    proxy: FaultProxy, connection: Connection, db: Prefixer, settings_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands between may have lost sight of the server, and go on to say that it is there."""
    monkeypatch.setattr(changes, "_LONGEST_WAIT_S", 0.5)
    asked = 0

    async def before(method: str, path: str, body: bytes) -> None:
        nonlocal asked
        if "longpoll" in path:
            asked += 1
            if asked == 1:
                await asyncio.sleep(60)

    proxy.before = before
    async with connect(settings_for(url=proxy.url)) as behind:
        database = behind.database(db.database("triggers"))
        follower = ChangesFollower(database, "now", silence_s=30)
        coming = asyncio.create_task(take(follower))
        await eventually(lambda: asked == 1)
        await connection.database(database.name).put({"_id": "doc"})
        with suppress(TimeoutError):
            assert (await asyncio.wait_for(coming, 10)).changes
        assert asked >= 2


async def test_feed_when_its_position_does_not_move_then_not_asked_without_a_pause(
    proxy: FaultProxy, connection: Connection, db: Prefixer, settings_for: Any
) -> None:
    """The same rows, again and again: 700 times a second."""
    asked = 0

    def stand_still(answer: Answer) -> None:
        nonlocal asked
        if "_changes" in answer.path:
            asked += 1
            answer.json = {**answer.json, "last_seq": "0"}

    proxy.after = stand_still
    async with connect(settings_for(url=proxy.url)) as behind:
        database = behind.database(db.database("triggers"))
        await connection.database(database.name).put({"_id": "doc"})
        follower = ChangesFollower(database, "0")
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(8):
            await take(follower)
        assert asked == 8
        assert loop.time() - began > 1


async def test_jobs_when_connections_are_cut_and_answers_lost_then_each_runs_once(
    proxy: FaultProxy, connection: Connection, db: Prefixer, settings_for: Callable[..., Settings]
) -> None:
    """Every seventh answer is lost after the write happened, every fifth feed answer is cut."""
    counts = {"writes": 0, "feeds": 0}

    def spoil(answer: Answer) -> None:
        if answer.path.endswith("_bulk_docs"):
            counts["writes"] += 1
            answer.lose = counts["writes"] % 7 == 0
        elif "_changes" in answer.path:
            counts["feeds"] += 1
            answer.cut_at = 20 if counts["feeds"] % 5 == 0 else None

    proxy.after = spoil
    async with connect(settings_for(url=proxy.url)) as behind:
        system = await system_start(CouchBroker(behind), CouchScheduler(behind), WorkersList([config_of(note)]))
        connection.use()
        writer = connection.writer(db.database("jobs"))
        ids = [f"job-{n:03}" for n in range(300)]
        for at in range(0, 300, 20):
            documents = [
                {"_id": job_id, "worker": "note", "message": None, "state": "queued"} for job_id in ids[at : at + 20]
            ]
            await asyncio.gather(*(writer.write(document) for document in documents))
        for job_id in ids:
            assert (await wait(db, job_id, 30)).state is State.DONE
        proxy.after = lambda answer: None
        await system.shutdown()
    assert sorted(ran) == ids
    assert counts["writes"] >= 7


async def test_daemon_when_server_restarts_under_it_then_no_job_is_lost_or_run_twice(
    tmp_path: Path, settings_for: Callable[..., Settings], name: str
) -> None:
    """Outcomes are kept and written when the server is back. On a server of its own, which it may kill."""
    ran.clear()
    going = asyncio.Event()

    @worker("held", concurrency=5, timeout=None)
    async def held(ctx: WorkerContext) -> None:
        ran.append(ctx.id)
        await going.wait()

    server = EmbeddedServer(tmp_path / "data")
    await asyncio.to_thread(server.start)
    try:
        async with connect(settings_for(url=server.url, request_timeout=2)) as own:
            db = own.settings.tenant
            await install(own, db)
            system = await system_start(
                CouchBroker(own), CouchScheduler(own), WorkersList([config_of(note), config_of(held)])
            )
            writer = own.writer(db.database("jobs"))
            for number in range(5):
                await writer.write({"_id": f"held-{number}", "worker": "held", "message": None, "state": "queued"})
            await eventually(lambda: len(ran) == 5)
            await asyncio.to_thread(server.kill)
            going.set()
            await asyncio.to_thread(server.start)
            for number in range(20):
                await own.writer(db.database("jobs")).write(
                    {"_id": f"note-{number}", "worker": "note", "message": None, "state": "queued"}
                )
            for job_id in [f"held-{n}" for n in range(5)] + [f"note-{n}" for n in range(20)]:
                assert (await wait(db, job_id, 30)).state is State.DONE
            await system.shutdown()
    finally:
        await asyncio.to_thread(server.stop)
    assert len(ran) == len(set(ran)) == 25


async def test_start_when_the_database_is_large_and_no_view_answers_then_the_newest_jobs_run(
    connection: Connection, db: Prefixer, start: Callable[..., Awaitable[JobSystem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To build a view of a million jobs takes minutes; what was written last is at the end of the feed."""
    ran.clear()
    monkeypatch.setattr(feed, "_LARGE_DATABASE", 5)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Sweeper, "_sweep", never)
    database = connection.database(db.database("jobs"))
    queued = {"worker": "note", "message": None, "state": "queued"}
    for number in range(10):
        await database.put({"_id": f"done-{number}", **queued, "state": "done"})
    await database.put({"_id": "new", **queued})
    await start(note)
    await eventually(lambda: ran == ["new"])
    await database.put({"_id": "newer", **queued})
    await eventually(lambda: ran == ["new", "newer"])


async def test_start_when_the_database_is_large_then_older_jobs_run_too_though_the_newest_are_not_all_done(
    connection: Connection, db: Prefixer, start: Callable[..., Awaitable[JobSystem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view tells of what lies before the newest rows: once those are dealt with, or after a while."""
    ran.clear()

    @worker("held")
    async def held(ctx: WorkerContext) -> None:
        raise AssertionError("nobody claims it")

    for name, value in (("_LARGE_DATABASE", 5), ("_NEWEST", 3), ("_NEWEST_FIRST_S", 0.5)):
        monkeypatch.setattr(feed, name, value)
    database = connection.database(db.database("jobs"))
    queued = {"worker": "note", "message": None, "state": "queued"}
    await database.put({"_id": "old", **queued})
    for number in range(10):
        await database.put({"_id": f"done-{number}", **queued, "state": "done"})
    await set_paused(connection, db, "held", is_paused=True)
    await database.put({"_id": "held", **queued, "worker": "held"})
    await database.put({"_id": "new", **queued})
    await start(note, held, sweep_interval=3600)
    await eventually(lambda: sorted(ran) == ["new", "old"])
