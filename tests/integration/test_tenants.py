"""Many tenants on one daemon: which there are, what wakes them, and that none is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fault_proxy import FaultProxy
from waiting import eventually

from couchjobs import WorkerContext, worker
from couchjobs.broker.couch import CouchBroker
from couchjobs.cluster.peers import PREFIX
from couchjobs.cluster.presence import Presence
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import ClosedError, ConfigurationError
from couchjobs.installation import install
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.attention import Attention
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.sources import write_list
from couchjobs.settings import Settings
from couchjobs.system import system_start
from couchjobs.tenants import host as host_module
from couchjobs.tenants import named as naming
from couchjobs.tenants.host import Host
from couchjobs.tenants.named import named_by
from couchjobs.tenants.tenant import Tenant
from couchjobs.timestamps import format_time, now
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import config_of

Serve = Callable[..., Awaitable[Host]]
MOST_ACTIVE = Host._most_active


@worker("note")
async def note(ctx: WorkerContext) -> str:
    """Say whose job it is."""
    return ctx.job.prefix


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants sleep as soon as they may: what wakes them is what is looked at."""
    monkeypatch.setattr(Host, "_most_active", lambda _: set())  # none is kept awake for having been active last
    monkeypatch.setattr(host_module, "_LINGER_S", 0.2)
    monkeypatch.setattr(host_module, "_LONG_LINGER_S", 0.2)
    monkeypatch.setattr(host_module, "_TRY_EACH_S", 0.2)
    monkeypatch.setattr(host_module, "_SLEEP_S", 0.2)
    monkeypatch.setattr(host_module, "_LOOK_S", 0.5)
    monkeypatch.setattr(host_module, "_MISSED_FOR_S", 0.4)


@pytest.fixture
async def serve(connection: Connection, settings_for: Callable[..., Settings], name: str) -> AsyncIterator[Serve]:
    """Start a daemon of many tenants in this process; it is shut down before their databases are removed."""
    async with AsyncExitStack() as stack:

        async def run(wanted: str, *functions: Any, **given: Any) -> Host:
            settings = settings_for(prefix=None, domain="", jobs_doctype=f"jobs-{name}", **given)
            own = await stack.enter_async_context(connect(settings))
            workers = WorkersList(config_of(function) for function in functions or (note,))
            host = Host(own, workers, wanted)
            await host.start()
            stack.push_async_callback(_shut_down, host)
            return host

        yield run


async def _shut_down(host: Host) -> None:
    with suppress(ClosedError):
        await host.shutdown(0)


@pytest.fixture
async def proxy(server_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the server of the tests."""
    async with FaultProxy(server_url) as proxy:
        yield proxy


class Tenants:
    """The databases of some tenants, written to as any client would."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def db(self, tenant: str) -> Prefixer:
        """That one."""
        return Prefixer("", f"{self._name}-{tenant}")

    async def make(self, *tenants: str) -> None:
        """Make their databases of jobs, and nothing else."""
        for tenant in tenants:
            await self._connection.server.create_database(self.db(tenant).database(f"jobs-{self._name}"))

    async def push(self, tenant: str, job_id: str, **more: Any) -> None:
        """Write a job document."""
        document = {"_id": job_id, "worker": "note", "message": None, "state": "queued", **more}
        await self._connection.database(self.db(tenant).database(f"jobs-{self._name}")).put(document)

    async def put(self, tenant: str, doctype: str, document: dict[str, Any]) -> None:
        """Write any document."""
        await self._connection.database(self.db(tenant).database(doctype)).put(document)

    async def jobs(self, tenant: str) -> list[dict[str, Any]]:
        """All jobs of one."""
        database = self._connection.database(self.db(tenant).database(f"jobs-{self._name}"))
        return [one for one in await database.with_prefix("") if not one["_id"].startswith("_design/")]

    async def done(self, tenant: str, count: int = 1) -> bool:
        """Whether so many jobs are done."""
        found = [job for job in await self.jobs(tenant) if job.get("state") == "done"]
        return len(found) >= count


@pytest.fixture
def tenants(connection: Connection, name: str) -> Tenants:
    """Those of this test."""
    return Tenants(connection, name)


def asleep(host: Host) -> bool:
    """Whether nobody is awake, after all have begun."""
    return host.awake == 0 and host.is_calm


async def test_job_when_its_tenant_is_asleep_then_woken(serve: Serve, tenants: Tenants) -> None:
    """Each in its own databases; a second job later wakes it again."""
    await tenants.make("a", "b", "c")
    host = await serve("all")
    await eventually(lambda: asleep(host), 30)
    await tenants.push("b", "first")
    await eventually(lambda: tenants.done("b"), 30)
    assert (await tenants.jobs("b"))[0]["result"] == tenants.db("b").db_prefix
    await eventually(lambda: asleep(host), 30)
    await tenants.push("b", "second")
    await tenants.push("c", "third")
    await eventually(lambda: tenants.done("b", 2), 30)
    await eventually(lambda: tenants.done("c"), 30)
    assert not await tenants.jobs("a")


async def test_tenants_when_there_are_feeds_for_all_then_all_stay_awake(
    serve: Serve, tenants: Tenants, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of one that was at rest starts at once, and not only when the server has told of its database."""
    monkeypatch.setattr(Host, "_most_active", MOST_ACTIVE)
    is_told = asyncio.Event()

    async def never_tell(method: str, path: str, body: bytes) -> None:
        if "_db_updates" in path or "_dbs_info" in path:
            await is_told.wait()

    await tenants.make("a", "b", "c")
    host = await serve("all", url=proxy.url)
    await eventually(lambda: host.awake == 3 and host.is_calm, 30)
    proxy.before = never_tell
    await asyncio.sleep(3 * host_module._LINGER_S)
    for tenant in ("b", "c"):
        await tenants.push(tenant, "job")
        await eventually(lambda tenant=tenant: tenants.done(tenant), 5)
    assert host.awake == 3
    is_told.set()


async def test_tenants_when_there_are_feeds_for_one_then_the_last_that_was_active_stays_awake(
    serve: Serve, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others sleep, and the one that was active before it, too."""
    monkeypatch.setattr(Host, "_most_active", MOST_ACTIVE)
    await tenants.make("a", "b", "c")
    host = await serve("all", most_feeds=5)

    def awake() -> list[str]:
        return [tenant.db.key for tenant in host._tenants.values() if tenant.is_awake]

    async def stays_awake(tenant: str) -> bool:
        count = len(await tenants.jobs(tenant))
        await tenants.push(tenant, f"job-{count}")
        await eventually(lambda: tenants.done(tenant, count + 1), 30)
        await eventually(lambda: host.awake <= 1, 30)
        return awake() == [tenants.db(tenant).key]

    for tenant in (
        "b",
        "c",
        "b",
    ):  # again, where the server tells only now of what another one's databases were made of
        await eventually(lambda tenant=tenant: stays_awake(tenant), 60)


async def test_tenants_when_asleep_then_delays_ticks_and_events_wake_them(serve: Serve, tenants: Tenants) -> None:
    """A job that is due later, a schedule, a document in another database."""
    await tenants.make("late", "clock", "event")
    host = await serve("all")
    await eventually(lambda: asleep(host), 30)
    trigger = {"worker": "note", "message": None}
    await tenants.put("clock", "triggers", {"_id": "every", "type": "@every", "arguments": "2s", **trigger})
    await tenants.put("event", "triggers", {"_id": "paid", "type": "@event", "arguments": "orders:CREATED", **trigger})
    await tenants.push("late", "later", scheduled_at=format_time(now() + timedelta(seconds=4)))
    await eventually(lambda: tenants.done("clock", 2), 40)
    await eventually(lambda: tenants.done("late"), 40)

    async def waited_for() -> bool:  # the trigger is known: the database counts as one of later
        found = await host.connection.control.find(f"checkpoint:{tenants.db('event').database('orders')}")
        return found is not None

    await eventually(waited_for, 40)
    await host.connection.server.create_database(tenants.db("event").database("orders"))
    await tenants.put("event", "orders", {"_id": "order"})
    await eventually(lambda: tenants.done("event"), 40)
    await tenants.put("event", "orders", {"_id": "another"})
    await eventually(lambda: tenants.done("event", 2), 40)
    assert len(await tenants.jobs("event")) == 2


async def test_tenants_when_documents_name_them_then_noticed_and_dropped(
    serve: Serve, tenants: Tenants, name: str
) -> None:
    """Without a restart; a document that names none is told of, and harms nobody."""
    host = await serve("documents")
    control = host.connection.control
    await control.put({"_id": "tenant:bad", "prefix": 5})
    await control.put({"_id": "tenant:a-long-one", "prefix": "l" * 232})
    await control.put({"_id": "tenant:d.example", "prefix": f"{name}-d"})
    await eventually(lambda: len(host.tenants) == 1, 20)
    await eventually(lambda: asleep(host), 30)
    await tenants.push("d", "job")
    await eventually(lambda: tenants.done("d"), 30)
    assert (await tenants.jobs("d"))[0]["prefix"] == f"{name}-d"
    daemon = (await control.with_prefix(PREFIX))[0]
    assert daemon["tenants"] == [f"{name}-d"]
    document = await control.get("tenant:d.example")
    await control.delete(document["_id"], document["_rev"])
    await eventually(lambda: not host.tenants, 20)


async def test_tenants_when_one_is_missing_from_a_single_look_then_nobody_is_dropped(
    serve: Serve, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that comes back may not know the newest databases yet: who is missed twice has gone."""
    await tenants.make("a", "b")
    host = await serve("all")
    await eventually(lambda: len(host.tenants) == 2, 20)
    before = [*host._tenants.values()]
    real, looks, misses = host._named.tenants, list[int](), list[int]()
    missed = 1

    async def some() -> list[Prefixer]:
        found = await real()
        looks.append(1)
        if len(looks) > missed:
            return found
        misses.append(1)
        return [db for db in found if db.key != tenants.db("b").key]

    monkeypatch.setattr(host._named, "tenants", some)
    await eventually(lambda: len(looks) >= 4, 20)
    assert [*host._tenants.values()] == before
    looks.clear()
    misses.clear()
    missed = 1000
    await eventually(lambda: [db.key for db in host.tenants] == [tenants.db("a").key], 20)
    assert len(misses) >= 2


async def test_tenant_when_a_source_is_listed_while_it_sleeps_then_events_of_then_on_fire(
    serve: Serve, tenants: Tenants
) -> None:
    """`couchjobs init --watch` of a tenant whose trigger was refused until then."""
    await tenants.make("a")
    host = await serve("all")
    db = tenants.db("a")
    await eventually(lambda: asleep(host), 30)
    await write_list(host.connection, db, ["others"])
    await host.connection.server.create_database(db.database("orders"))
    trigger = {"type": "@event", "arguments": "orders:CREATED", "worker": "note", "message": None}
    await tenants.put("a", "triggers", {"_id": "paid", **trigger})
    [tenant] = host._tenants.values()
    await eventually(lambda: "paid" in tenant._scheduler.triggers.events, 30)
    await eventually(lambda: asleep(host), 30)
    await tenants.put("a", "orders", {"_id": "before"})
    await write_list(host.connection, db, ["orders"])

    async def is_followed() -> bool:
        return await host.connection.control.find(f"checkpoint:{db.database('orders')}") is not None

    await eventually(is_followed, 30)
    await tenants.put("a", "orders", {"_id": "then"})
    await eventually(lambda: tenants.done("a"), 30)
    assert [job["event"]["doc"]["_id"] for job in await tenants.jobs("a")] == ["then"]


async def test_tenants_when_a_database_has_too_long_a_name_then_it_is_no_tenants(
    serve: Serve, tenants: Tenants, connection: Connection, name: str
) -> None:
    """That of its triggers would have none that CouchDB allows; the others are served."""
    long = f"{name}-{'l' * (238 - len(f'{name}-/jobs-{name}'))}/jobs-{name}"
    await connection.server.create_database(long)
    try:
        await tenants.make("well")
        host = await serve("all", triggers_doctype=f"triggers-{name}")
        await tenants.push("well", "job")
        await eventually(lambda: tenants.done("well"), 30)
        assert [db.key for db in host.tenants] == [tenants.db("well").key]
    finally:
        await connection.server.delete_database(long)


async def test_tenant_when_another_ones_prefix_claims_its_database_then_that_wakes_it_all_the_same(
    serve: Serve, tenants: Tenants
) -> None:
    """Of a tenant `a`, `b/orders` is a doctype; so is `orders`, of a tenant `a/b`."""
    await tenants.make("a", "a/b")
    trigger = {"type": "@event", "arguments": "b/orders:CREATED", "worker": "note", "message": None}
    host = await serve("all")
    await host.connection.server.create_database(tenants.db("a").database("b/orders"))
    await eventually(lambda: asleep(host), 30)
    await tenants.put("a", "triggers", {"_id": "order", **trigger})
    await eventually(lambda: not asleep(host), 30)
    await eventually(lambda: asleep(host), 30)
    await tenants.put("a", "b/orders", {"_id": "first"})
    await eventually(lambda: tenants.done("a"), 30)


async def test_tenants_when_the_databases_of_many_hang_then_the_others_begin(
    serve: Serve, tenants: Tenants, proxy: FaultProxy, name: str
) -> None:
    """More of them than begin at once."""

    async def hang(method: str, path: str, body: bytes) -> None:
        if f"{name}-sick" in path:
            await asyncio.sleep(3600)

    proxy.before = hang
    await tenants.make(*(f"sick{number:02}" for number in range(24)), "well")
    await tenants.push("well", "job")
    await serve("all", url=proxy.url)
    await eventually(lambda: tenants.done("well"), 20)


async def test_tenants_when_two_daemons_serve_them_then_each_job_runs_once(
    serve: Serve, tenants: Tenants, name: str, tmp_path: Path
) -> None:
    """Also where one of them stops: the other one has all of them from then on."""
    listed = tmp_path / "tenants"
    listed.write_text("# two\n" + "".join(f"{name}-{one}\n" for one in ("x", "y", "z")))
    ran: list[str] = []

    @worker("note")
    async def count(ctx: WorkerContext) -> None:
        ran.append(f"{ctx.job.prefix} {ctx.id}")

    await tenants.make("x", "y", "z")
    first = await serve(str(listed), count)
    second = await serve(str(listed), count)
    for number in range(20):
        for tenant in ("x", "y", "z"):
            await tenants.push(tenant, f"job-{number}")
    for tenant in ("x", "y", "z"):
        await eventually(lambda tenant=tenant: tenants.done(tenant, 20), 40)
    assert len(ran) == len(set(ran)) == 60
    await eventually(lambda: asleep(first) and asleep(second), 40)
    await first.shutdown(0)
    for tenant in ("x", "y", "z"):
        await tenants.push(tenant, "last")
    for tenant in ("x", "y", "z"):
        await eventually(lambda tenant=tenant: tenants.done(tenant, 21), 40)


async def test_tenants_when_one_has_very_many_jobs_then_others_do_not_wait(serve: Serve, tenants: Tenants) -> None:
    """A slot in ten is kept for a tenant that has none."""
    going = asyncio.Event()

    @worker("note", concurrency=10)
    async def wait(ctx: WorkerContext) -> None:
        if ctx.job.prefix.endswith("many"):
            await going.wait()

    await tenants.make("many", "few")
    await serve("all", wait)
    for number in range(30):
        await tenants.push("many", f"job-{number}")

    async def running() -> bool:
        return sum(job.get("state") == "running" for job in await tenants.jobs("many")) == 9

    await eventually(running, 30)
    await tenants.push("few", "only")
    await eventually(lambda: tenants.done("few"), 30)
    assert not await tenants.done("many")
    going.set()
    await eventually(lambda: tenants.done("many", 30), 30)


async def test_tenants_when_a_daemon_of_one_shares_them_then_each_job_runs_once(
    serve: Serve, tenants: Tenants, settings_for: Callable[..., Settings], name: str
) -> None:
    """They know of each other: a daemon of one tenant may be started beside that of all."""
    await tenants.make("s")
    host = await serve("all")
    async with connect(settings_for(prefix=f"{name}-s", domain="", jobs_doctype=f"jobs-{name}")) as own:
        await install(own, own.settings.tenant)
        system = await system_start(CouchBroker(own), CouchScheduler(own), WorkersList([config_of(note)]))
        try:
            assert isinstance(system.broker, CouchBroker)
            await eventually(lambda: len(system.broker.daemon.living("note")) == 2, 20)  # type: ignore[attr-defined]
            for number in range(30):
                await tenants.push("s", f"job-{number}")
            await eventually(lambda: tenants.done("s", 30), 40)
        finally:
            await system.shutdown(0)
    assert all(job["exec_count"] == 1 for job in await tenants.jobs("s"))
    await eventually(lambda: asleep(host), 40)


async def test_tenants_when_what_names_them_cannot_be_read_then_refused(connection: Connection, tmp_path: Path) -> None:
    """What, where, how to mend it."""
    with pytest.raises(ConfigurationError, match="all, documents or a file"):
        named_by(connection, "alll")
    listed = tmp_path / "tenants"
    listed.write_text("a\nb c d\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        await named_by(connection, str(listed)).tenants()
    for line in ("1x", "l" * 232):
        listed.write_text(f"a\n{line}\n")
        with pytest.raises(ConfigurationError, match="line 2"):
            await named_by(connection, str(listed)).tenants()
    listed.write_text("a.b  # one\na-b\nc c.example\n")
    found = await named_by(connection, str(listed)).tenants()
    assert found == [Prefixer("", "a.b"), Prefixer("c.example", "c")]


async def test_tenants_when_a_line_is_broken_while_they_are_served_then_nobody_is_dropped(
    connection: Connection, tmp_path: Path
) -> None:
    """New ones are taken on beside it; once it is mended, those that stand nowhere go."""
    listed = tmp_path / "tenants"
    listed.write_text("a\nb\nc\n")
    named = named_by(connection, str(listed))
    assert [db.key for db in await named.tenants()] == ["a", "b", "c"]
    listed.write_text("a\nb of something else\nd\n")
    for _ in range(2):
        assert sorted(db.key for db in await named.tenants()) == ["a", "b", "c", "d"]
    listed.write_text("a\nd\n")
    assert [db.key for db in await named.tenants()] == ["a", "d"]


async def test_tenants_when_their_file_is_being_written_then_nobody_is_taken_on_or_dropped(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ali` is half of `alice`, and a prefix as good as any: its databases would be made."""
    listed = tmp_path / "tenants"
    listed.write_text("")
    named: Any = named_by(connection, str(listed))
    texts = ["bob\n", "bob\nali", "bob\nalice\n", "bob\nalice\n", "", "bob\n", "bob\n"]

    async def read() -> str:
        return texts.pop(0)

    monkeypatch.setattr(named, "_text", read)
    monkeypatch.setattr(naming, "_WRITTEN_S", 0.0)
    assert [db.key for db in await named.tenants()] == ["bob", "alice"]
    assert [db.key for db in await named.tenants()] == ["bob"]
    texts += [f"t{number}\n" for number in range(100)]
    with pytest.raises(ConfigurationError, match="is being written all the time"):
        await named.tenants()


async def test_feeds_when_they_are_stopped_then_that_is_no_news(
    connection: Connection, db: Prefixer, start: Any
) -> None:
    """Else a tenant with an @event trigger would never sleep: it stops them to do so."""
    await connection.server.create_database(db.database("orders"))
    trigger = {"_id": "paid", "type": "@event", "arguments": "orders:CREATED", "worker": "note", "message": None}
    await connection.database(db.database("triggers")).put(trigger)
    feeds = (await start(note)).scheduler._feeds
    await eventually(lambda: feeds._followed and feeds.is_quiet, 20)
    await feeds.stop()
    await asyncio.sleep(0)
    assert feeds.is_quiet


async def test_tenant_when_it_is_to_be_woken_while_it_falls_asleep_then_that_stands(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon has died, or the clock was set, while CouchDB is asked whether there is more to do."""
    runtime: Any = SimpleNamespace(presence=Presence(connection, None))
    tenant = Tenant(db, runtime, Attention())
    tenant.is_awake, tenant.due_at = True, None

    async def nothing() -> None:
        """Pause."""

    async def meanwhile() -> bool:
        tenant.due_at = 7.0
        return False

    monkeypatch.setattr(tenant, "_pause", nothing)
    monkeypatch.setattr(tenant, "_has_more", meanwhile)
    monkeypatch.setattr(Tenant, "_is_quiet", True)
    monkeypatch.setattr(tenant, "_next_in", lambda: 1000.0)
    assert await tenant.sleep_if_quiet(1.0)
    assert tenant.due_at == 7.0
    tenant.is_awake = True
    monkeypatch.setattr(tenant, "_has_more", lambda: asyncio.sleep(0, False))
    assert await tenant.sleep_if_quiet(1.0)
    assert tenant.due_at == 7.0, "it is woken once more, for nobody knows whether it was seen to"


async def test_tenant_when_it_has_not_yet_looked_for_dead_daemons_then_it_does_not_sleep(start: Any) -> None:
    """It may have been woken for just that, and is not woken for it again."""
    broker = (await start(note)).broker
    await eventually(lambda: broker.is_quiet)
    await broker.pause()
    broker.resume()
    assert not broker.is_quiet
    await eventually(lambda: broker.is_quiet)
