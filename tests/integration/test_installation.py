"""What `install` makes of an empty server."""

from __future__ import annotations

from collections.abc import Callable

from couchjobs.couch.connection import Connection, connect
from couchjobs.installation import install
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings


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
