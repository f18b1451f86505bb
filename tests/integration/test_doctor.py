"""The doctor: every trouble is planted, found, and mended where that can be done."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from typing import Any

import orjson
import pytest
from copies import put_on_all
from waiting import eventually

from couchjobs.cluster.presence import Presence
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.doctor.examine import examine
from couchjobs.doctor.finding import Finding
from couchjobs.errors import Unavailable
from couchjobs.installation import secure
from couchjobs.jobs.job import State
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.remarks import Remarks
from couchjobs.triggers.infos import TriggerInfos

QUEUED = {"worker": "w", "message": None, "state": "queued"}


async def plant_conflict(database: Database, document: dict[str, Any]) -> None:
    """Two branches of one document."""
    docs = [{**document, "_rev": f"1-{name * 32}", "branch": name} for name in "ab"]
    body = orjson.dumps({"docs": docs, "new_edits": False})
    await database.server.request("POST", f"{database.path}/_bulk_docs", body=body)


async def test_doctor_when_all_is_well_then_finds_nothing(connection: Connection, db: Prefixer) -> None:
    """A fresh installation."""
    await secure(connection, db)
    assert await examine(connection, db) == []


async def hour_ahead(_: object) -> float:
    """What the clock of another host tells."""
    return 3600.0


async def test_doctor_when_clocks_are_off_then_told_whose(connection: Connection, db: Prefixer) -> None:
    """That of a daemon, too, which has told of it; this one is the server's, here."""
    await secure(connection, db)
    ahead = await connection.server.clock_ahead_s()
    assert ahead is not None
    assert abs(ahead) < 5
    for name, told in (("a", 3600.0), ("b", 0.5), ("c", "1 h"), ("d", -7)):
        await connection.control.put({"_id": f"daemon:{name}", "clock_ahead_s": told, "version": version("couchjobs")})
    found = {one.where: one.what for one in await examine(connection, db) if one.kind == "clock"}
    assert sorted(found) == ["daemon:a", "daemon:d"]
    assert "+3600 s off" in found["daemon:a"]


async def test_presence_when_the_clock_is_off_then_its_document_says_so(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its second beat on."""
    monkeypatch.setattr(type(connection.server), "clock_ahead_s", hour_ahead)
    connection.settings = connection.settings.model_copy(update={"beat_interval": 0.05})
    presence = Presence(connection, db)
    await presence.join()

    async def told() -> bool:
        return (await connection.control.get(f"daemon:{presence.id}")).get("clock_ahead_s") == 3600.0

    await eventually(told)
    await presence.leave()


async def test_doctor_when_documents_name_no_tenant_then_found(connection: Connection, db: Prefixer) -> None:
    """One without a prefix, one that CouchDB allows no database for, two for the same databases."""
    await secure(connection, db)
    for domain, prefix in (("a.example", "a.b"), ("b.example", 7), ("c.example", "1c"), ("d.example", "a-b")):
        await connection.control.put({"_id": f"tenant:{domain}", "prefix": prefix})
    found = {one.where: one.what for one in await examine(connection, db) if one.kind == "tenant"}
    assert sorted(found) == ["tenant:b.example", "tenant:c.example", "tenant:d.example"]
    assert "its prefix is no text, but 7" in found["tenant:b.example"]
    assert "no name for a database" in found["tenant:c.example"]
    assert "those of tenant:a.example" in found["tenant:d.example"]


async def test_doctor_when_troubles_are_planted_then_found_and_mended(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once; what is left is for people."""
    await secure(connection, db)
    store, control = JobStore(connection, db), connection.control
    jobs, triggers = store.database, connection.database(db.database("triggers"))
    monkeypatch.setattr(type(connection.server), "clock_ahead_s", hour_ahead)
    connection.settings = connection.settings.model_copy(update={"dead_after": 0.5})
    await control.set_security({})
    ddoc = await jobs.get("_design/jobs")
    await jobs.delete(ddoc["_id"], ddoc["_rev"])
    await plant_conflict(jobs, {"_id": "job-conflict", **QUEUED, "worker": "client"})
    await plant_conflict(triggers, {"_id": "trigger-conflict", "type": "@every", "arguments": "1h", "worker": "w"})
    await plant_conflict(control, {"_id": "schedule:conflict"})
    running = {**QUEUED, "state": "running", "exec_count": 1}
    await put_on_all(jobs, {"_id": "orphan", **running, "claim": {"id": "c", "daemon": "ghost"}})
    await put_on_all(jobs, {"_id": "unclaimed", **running})
    await put_on_all(jobs, {"_id": "clients", **running, "worker": "client"})
    await put_on_all(jobs, {"_id": "bad", **QUEUED, "worker": ["w"]})
    await put_on_all(triggers, {"_id": "bad", "type": "@nothing", "worker": "w"})
    await connection.server.create_database(db.database("orders"))
    checkpoint = {"domain": db.domain, "prefix": db.db_prefix, "doctype": "orders", "seq": "999999999-none"}
    await put_on_all(control, {"_id": f"checkpoint:{db.database('orders')}", **checkpoint})
    daemon = {"beat": 1, "version": "0.0.1", "domain": db.domain, "prefix": db.db_prefix, "worker_types": ["other"]}
    await put_on_all(control, {"_id": "daemon:old", **daemon})

    found = await examine(connection, db, repair=True)
    kinds = [one.kind for one in found]
    assert Counter(kinds) == Counter(conflict=3, orphans=2, trigger=2) + Counter(
        ("version", "clock", "security", "views", "checkpoint", "job", "takers")
    )
    left = {(one.kind, one.where) for one in found if one.done is None}
    assert left == {
        ("version", "daemon:old"),
        ("clock", connection.server.url),
        ("trigger", "bad"),
        ("trigger", "trigger-conflict"),  # nobody has its worker
        ("takers", "w"),
    }
    assert {(one.kind, one.where) for one in await examine(connection, db)} == left
    for job_id in ("orphan", "unclaimed"):
        assert (await store.get(job_id)).state is State.QUEUED
    assert (await store.get("clients")).state is State.RUNNING, "no daemon does it, and none ends it"
    bad = await store.get("bad")
    assert bad.state is State.ERRORED
    assert "worker" in str(bad.error)
    for database, doc_id in ((jobs, "job-conflict"), (triggers, "trigger-conflict"), (control, "schedule:conflict")):
        assert len(await database.leaves(doc_id)) == 1
    position = await control.get(f"checkpoint:{db.database('orders')}")
    assert position["seq"] not in ("0", checkpoint["seq"])  # from its beginning, all that is older would fire


async def test_doctor_when_a_daemon_lives_again_before_somebody_mends_then_its_jobs_are_left_to_it(
    connection: Connection, db: Prefixer
) -> None:
    """The page of troubles stays open for hours: what was dead then may run jobs by now, and each would run twice."""
    store, control = JobStore(connection, db), connection.control
    connection.settings = connection.settings.model_copy(update={"dead_after": 0.5})
    daemon = {"_id": "daemon:still", "beat": 1, "domain": db.domain, "prefix": db.db_prefix, "worker_types": ["w"]}
    rev = await put_on_all(control, daemon)
    running = {**QUEUED, "state": "running", "exec_count": 1, "claim": {"id": "c", "daemon": "still"}}
    await put_on_all(store.database, {"_id": "its", **running})

    async def orphans() -> list[Finding]:  # a view of a cluster may be behind
        return [one for one in await examine(connection, db) if one.kind == "orphans"]

    [found] = await eventually(orphans, 20)
    await put_on_all(control, {**daemon, "_rev": rev, "beat": 2})
    assert found.mend is not None
    assert "lives again" in await found.mend()
    assert (await store.get("its")).state is State.RUNNING


async def test_doctor_when_triggers_are_odd_then_it_says_what_triggers_ls_says(
    connection: Connection, db: Prefixer
) -> None:
    """A database that is not there, a worker that nobody has, a zone that nobody asks, a secret that is missing."""
    triggers = connection.database(db.database("triggers"))
    event = {"type": "@event", "arguments": "odrers:CREATED", "worker": "w", "timezone": "Europe/Berlin"}
    await triggers.put({"_id": "event", "message": None, **event})
    await triggers.put({"_id": "daily", "type": "@daily", "worker": "w", "message": None, "disabled": True})
    found = [(one.where, one.what) for one in await examine(connection, db) if one.kind == "trigger"]
    documents = [document async for page in triggers.all_docs() for document in page]
    stored = [TriggerInfos.from_document(document) for document in documents if document["_id"] == "event"]
    remarks = await Remarks.of(connection, db, stored)
    assert found == [("event", note) for note in remarks.notes(stored[0], stored[0].document())]
    assert len(found) == 3
    assert any(f"there is no database {db.database('odrers')}" in what for _, what in found)


async def test_doctor_when_couchdb_does_not_answer_then_not_all_is_well(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a list leaves out, an examination must not."""

    async def away(*_: object) -> None:
        raise Unavailable("503", 503)

    triggers = connection.database(db.database("triggers"))
    await triggers.put({"_id": "t", "type": "@event", "arguments": "orders:CREATED", "worker": "w", "message": None})
    monkeypatch.setattr("couchjobs.remarks.read_sources", away)
    with pytest.raises(Unavailable):
        await examine(connection, db)
