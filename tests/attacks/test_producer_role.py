"""A producer who tries what SECURITY.md says he cannot do."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from triggering import jobs_of, note, so_many_jobs_of, triggers_of
from waiting import eventually

from couchjobs.couch.client import CouchServer
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database
from couchjobs.errors import MalformedTriggerError
from couchjobs.installation import guard
from couchjobs.jobs.job import State
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.sources import read_sources, write_list
from couchjobs.scheduler.store import TriggerStore
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

EVENT = {"type": "@event", "worker": "note", "message": None}


async def _as_producer(url: str, database: Database, *documents: dict[str, Any]) -> None:
    async with CouchServer(url) as server:
        for document in documents:
            await Database(server, database.name).put(document)


async def test_trigger_when_a_producer_names_what_he_may_not_read_then_no_job_carries_it(
    connection: Connection, db: Prefixer, begin: Any, urls: dict[str, str], name: str
) -> None:
    """Control, salaries, another tenant's jobs, by whatever name; and nothing loops."""
    await connection.server.create_database(db.database("salaries"))
    rules = ["control:ALL", f"{name}-control", "salaries:ALL", "jobs:ALL", "triggers:ALL", "salaries:ALL orders"]
    await _as_producer(
        urls["producer"],
        triggers_of(connection, db),
        *({"_id": f"evil-{number}", **EVENT, "arguments": rule} for number, rule in enumerate(rules)),
    )
    system = await begin(note)
    await connection.database(db.database("salaries")).put({"_id": "boss", "amount": 1})
    await connection.database(db.database("jobs")).put(
        {"_id": "one", "worker": "note", "message": None, "state": "queued"}
    )
    assert (await wait(db, "one", 10)).state is State.DONE
    await eventually(lambda: len(system.scheduler._feeds._refused) == len(rules), 10)
    async for page in connection.database(db.database("jobs")).all_docs():
        assert {document["_id"] for document in page} == {"one"}


async def test_users_when_they_are_listed_by_name_then_their_events_prove_no_password(
    connection: Connection, db: Prefixer, begin: Any, name: str
) -> None:
    """Not listed, or by a pattern alone: no source. No rule sees what proves a password, either."""
    users, user_id = Database(connection.server, "_users"), f"org.couchdb.user:{name}"
    sources = await read_sources(connection, db)
    assert "only where the list names them" in await sources.refusal("_users")
    await write_list(connection, db, ["orders", "*"])
    assert "only where the list names them" in await (await read_sources(connection, db)).refusal("_users")
    await write_list(connection, db, ["orders", "_users"])
    await guard(connection, db)
    triggers = triggers_of(connection, db)
    await triggers.put({"_id": "new", **EVENT, "arguments": "_users:CREATED,UPDATED"})
    guess = {"doctype": "_users", "selector": {"derived_key": {"$exists": True}}}
    await triggers.put({"_id": "guess", **EVENT, "rules": [guess]})
    await begin(note)
    await eventually(lambda: connection.control.find(f"checkpoint:{db.key}/_users"), 10)
    try:
        user = {"_id": user_id, "name": name, "type": "user", "roles": [], "password": "secret"}
        await users.put(user)
        (job,) = await eventually(lambda: jobs_of(connection, db, "new"), 20)
        assert job["event"]["doc"]["name"] == name
        assert not {"derived_key", "salt", "iterations", "password", "password_scheme"} & set(job["event"]["doc"])
        present = await users.get(user_id)
        assert "derived_key" in present
        await users.put({**present, "roles": ["x"]})
        jobs = await eventually(lambda: so_many_jobs_of(connection, db, "new", 2), 20)
        assert "derived_key" not in str(jobs)
        assert not await jobs_of(connection, db, "guess")
    finally:
        await users.delete(user_id, (await users.get(user_id))["_rev"])


async def test_trigger_when_the_list_names_its_database_then_it_fires_where_producers_may_read_it(
    connection: Connection, db: Prefixer, begin: Any, urls: dict[str, str]
) -> None:
    """What an event carries is what a producer may read: else the triggers must be guarded."""
    orders = connection.database(db.database("orders"))
    await connection.server.create_database(orders.name)
    await triggers_of(connection, db).put({"_id": "paid", **EVENT, "arguments": "orders"})
    await write_list(connection, db, ["orders"])
    assert "producers may write triggers" in await (await read_sources(connection, db)).refusal("orders")
    await orders.set_security({"members": {"roles": ["couchjobs-producer"]}, "admins": {"roles": ["_admin"]}})
    assert await (await read_sources(connection, db)).refusal("orders") == ""
    await orders.set_security({"members": {"roles": ["_admin"]}, "admins": {"roles": ["_admin"]}})
    await guard(connection, db)
    assert await (await read_sources(connection, db)).refusal("orders") == ""
    assert "not in the list" in await (await read_sources(connection, db)).refusal("invoices")
    await begin(note)
    await asyncio.sleep(0)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"), 10)
    await orders.put({"_id": "one"})
    await eventually(lambda: jobs_of(connection, db, "paid"), 10)


async def test_trigger_when_it_is_added_then_refused_with_the_way_to_mend_it(
    connection: Connection, db: Prefixer, urls: dict[str, str]
) -> None:
    """Where it is written, too."""
    store = TriggerStore(connection, db)
    for arguments in ("triggers:ALL", "orders"):
        with pytest.raises(MalformedTriggerError, match=r"events never come|init --watch"):
            await store.add(TriggerInfos.from_document({**EVENT, "arguments": arguments}))


async def test_sources_when_nobody_else_may_write_triggers_then_every_database_but_couchjobs_own(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """A rule on jobs fires for the jobs of others, and never for those that it has made, itself or by another one."""
    for number in range(2):
        await triggers_of(connection, db).put({"_id": f"t{number}", **EVENT, "arguments": "jobs:CREATED,UPDATED"})
    await begin(note)
    jobs = connection.database(db.database("jobs"))
    await eventually(lambda: connection.control.find(f"checkpoint:{jobs.name}"), 10)
    await jobs.put({"_id": "one", "worker": "note", "message": None, "state": "queued"})

    async def quiet() -> bool:
        before = (await jobs.info())["update_seq"]
        await asyncio.sleep(2.0)
        return before == (await jobs.info())["update_seq"]

    await eventually(quiet, 30)
    made = [*await jobs_of(connection, db, "t0"), *await jobs_of(connection, db, "t1")]
    assert 2 <= len(made) <= 24, "three revisions of one job, and of those that they made, once each"
    assert await jobs_of(connection, db, "t0")


async def test_branch_when_a_producer_replicates_it_in_guarded_mode_then_refused(
    connection: Connection, db: Prefixer, begin: Any, urls: dict[str, str]
) -> None:
    """A revision 90 of somebody's job, done or running, or of none; and attachments."""
    runs: list[Any] = []

    @worker("echo")
    async def echo(ctx: WorkerContext, message: Any) -> Any:
        runs.append(message)
        return message

    await guard(connection, db)
    await begin(echo)
    jobs = connection.database(db.database("jobs"))
    await jobs.put({"_id": "mine", "worker": "echo", "message": "mine", "state": "queued"})
    assert (await wait(db, "mine", 10)).state is State.DONE
    branch = {
        "_id": "mine",
        "_rev": "90-" + "f" * 32,
        "_revisions": {"start": 90, "ids": ["f" * 32]},
        "worker": "echo",
        "message": "evil",
        "state": "queued",
    }
    async with CouchServer(urls["producer"]) as server:
        body = orjson.dumps({"docs": [branch, {**branch, "_id": "new"}], "new_edits": False})
        rows = await server.request("POST", f"{jobs.path}/_bulk_docs", body=body)
        assert {row["error"] for row in rows} == {"forbidden"}
    async with aiohttp.ClientSession() as session:
        rev = (await jobs.get("mine"))["_rev"]
        async with session.put(
            f"{urls['producer']}/{jobs.path}/mine/evil?rev={rev}", data=b"x", headers={"Content-Type": "text/plain"}
        ) as answer:
            assert answer.status in (403, 409)  # a cluster may look at the revision first
    assert len(await jobs.leaves("mine")) == 1
    assert runs == ["mine"]


@pytest.mark.parametrize("cancel", [False, True])
async def test_branch_when_a_client_edits_a_done_job_offline_and_syncs_then_not_run_again(
    connection: Connection, db: Prefixer, begin: Any, cancel: bool
) -> None:
    """Done beats queued, however long the other branch is; its result stays."""
    runs: list[Any] = []

    @worker("echo")
    async def echo(ctx: WorkerContext, message: Any) -> Any:
        runs.append(message)
        return message

    await begin(echo)
    jobs = connection.database(db.database("jobs"))
    rev = await jobs.put({"_id": "job", "worker": "echo", "message": 1, "state": "queued"})
    assert (await wait(db, "job", 10)).state is State.DONE
    own = [f"{number:x}" * 32 for number in range(10, 15)]
    branch = {
        "_id": "job",
        "_rev": f"6-{own[0]}",
        "_revisions": {"start": 6, "ids": [*own, rev.partition("-")[2]]},
        "worker": "echo",
        "message": 2,
        "state": "queued",
        **({"cancel_requested": True} if cancel else {}),
    }
    body = orjson.dumps({"docs": [branch], "new_edits": False})
    assert await connection.server.request("POST", f"{jobs.path}/_bulk_docs", body=body) == []

    async def settled() -> bool:
        leaves = await jobs.leaves("job")
        return len(leaves) == 1 and leaves[0]["state"] == "done"

    await eventually(settled, 15)
    assert runs == [1]
    assert (await jobs.get("job"))["result"] == 1


async def test_job_when_its_author_forges_the_tenant_then_the_worker_sees_the_true_one(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Whose job it is, its database says."""
    seen: list[tuple[str, str | None]] = []

    @worker("who")
    async def who(ctx: WorkerContext) -> None:
        seen.append((ctx.job.domain, ctx.job.prefix))

    await begin(who)
    await connection.database(db.database("jobs")).put(
        {"_id": "j", "worker": "who", "message": None, "state": "queued", "domain": "bank.example", "prefix": "bank"}
    )
    await wait(db, "j", 10)
    assert seen == [(db.domain, db.prefix)]


async def test_databases_when_a_trigger_names_thousands_then_it_is_refused_and_nobody_waits(
    connection: Connection, db: Prefixer, begin: Any, server_url: str
) -> None:
    """A limit, and one question for all that are missing."""
    from fault_proxy import FaultProxy

    asked = 0

    def before(method: str, path: str, body: bytes) -> None:
        nonlocal asked
        asked += "nowhere" in path or "_dbs_info" in path

    many = " ".join(f"nowhere{number}" for number in range(2000))
    some = " ".join(f"nowhere{number}" for number in range(90))
    for trigger_id, arguments in (("many", many), ("some", some)):
        await triggers_of(connection, db).put({"_id": trigger_id, **EVENT, "arguments": arguments})
    async with FaultProxy(server_url) as proxy:
        proxy.before = before
        system = await begin(note, url=proxy.url)
        await eventually(lambda: "many" in system.scheduler._feeds._refused, 10)
        await eventually(lambda: len(system.scheduler._feeds._absent) == 90, 20)
        asked = 0
        await asyncio.sleep(3)
        assert asked < 60
        await connection.server.create_database(db.database("nowhere7"))
        await connection.database(db.database("nowhere7")).put({"_id": "first"})
        await eventually(lambda: jobs_of(connection, db, "some"), 10)


async def test_connect_when_used_as_a_producer_then_jobs_are_listed_and_pushed(
    connection: Connection, db: Prefixer, urls: dict[str, str], settings_for: Any
) -> None:
    """He may not read the control database, and need not."""
    from couchjobs.broker.couch import CouchBroker
    from couchjobs.jobs.request import JobRequest

    async with connect(settings_for(url=urls["producer"])) as own:
        job = await CouchBroker(own).push_job(db, JobRequest(worker_type="note", message=1))
        assert job is not None
        assert job.rev
