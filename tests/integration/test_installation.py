"""What `install` makes of an empty server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daemons import AS_USERS_HAVE
from waiting import eventually

from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.design import outdated, read_design_document
from couchjobs.installation import install
from couchjobs.jobs.job import State
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker


@worker("count")
async def count(ctx: WorkerContext) -> int:
    """Tell which try it is."""
    return ctx.exec_count


async def test_install_when_shards_are_asked_for_then_new_databases_have_so_many(
    connection: Connection, db: Prefixer, settings_for: Callable[..., Settings]
) -> None:
    """One that is there already keeps its own; the embedded server has one shard, whatever it is asked for."""
    jobs, triggers = connection.database(db.database("jobs")), connection.database(db.database("triggers"))
    await connection.server.delete_database(triggers.name)
    before = (await jobs.info())["cluster"]["q"]
    async with connect(settings_for(shards=3)) as sharded:
        assert await install(sharded, db) == [f"created database {triggers.name}"]
    is_couchdb = (await connection.server.welcome())["vendor"]["name"] == "The Apache Software Foundation"
    assert (await triggers.info())["cluster"]["q"] == (3 if is_couchdb else 1)
    assert (await jobs.info())["cluster"]["q"] == before


async def test_install_when_a_newer_version_is_there_then_it_stays_and_an_older_one_is_replaced(
    connection: Connection, db: Prefixer
) -> None:
    """Daemons of two versions must not replace each other's views for ever."""
    jobs = connection.database(db.database("jobs"))
    present = await jobs.get("_design/queue")
    newer = {**present, "couchjobs_version": present["couchjobs_version"] + 1, "views": {}}
    rev = await jobs.put(newer)
    assert await install(connection, db) == []
    for version in (present["couchjobs_version"] - 1, None):
        older = {**newer, "_rev": rev, "couchjobs_version": version}
        await jobs.put({name: value for name, value in older.items() if value is not None})
        assert await install(connection, db) == [f"installed _design/queue in {jobs.name}"]
        rev = (await jobs.get("_design/queue"))["_rev"]


async def test_views_when_a_newer_version_has_others_then_a_daemon_keeps_its_own_and_goes_on(
    connection: Connection, db: Prefixer, start: Callable[..., Any]
) -> None:
    """While it runs, and when it starts; the newer ones stay, and the newer doctor drops the old ones."""
    jobs = connection.database(db.database("jobs"))
    await start(count, **AS_USERS_HAVE)
    present = await jobs.get("_design/queue")
    version = present["couchjobs_version"]
    renamed = {"waiting" if name == "due" else name: view for name, view in present["views"].items()}
    changed = {**present, "couchjobs_version": version + 1, "views": renamed}
    rev = await jobs.put(changed)
    await eventually(lambda: jobs.find(f"_design/queue-v{version}"), 10)
    late = {"_id": "late", "worker": "count", "message": None, "state": "queued"}
    async with connect(connection.settings) as other:
        await install(other, db)
        store = JobStore(other, db)
        await store.database.put(late)
        rows = await store.database.view("queue/due", ["count"], ["count", {}], limit=10)
        assert [row["id"] for row in rows if row["id"] != "late"] == []
    assert (await wait(db, "late", 10)).state is State.DONE
    assert (await jobs.get("_design/queue"))["_rev"] == rev
    newer = {**read_design_document("queue", version + 1)}
    assert [one["_id"] for one in await outdated(jobs, newer)] == [f"_design/queue-v{version}"]
