"""What becomes of the jobs of daemons that die, stop, or cannot be heard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import pytest
from copies import is_on_all, put_on_all
from fault_proxy import FaultProxy, Refusal
from waiting import SOON_SWEPT, eventually

from couchjobs import watchdog
from couchjobs.cluster.daemon import Daemon
from couchjobs.cluster.peers import Peers, taken_types
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import generation
from couchjobs.errors import Unavailable
from couchjobs.jobs.job import State
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.recovery import dead_daemons
from couchjobs.recovery.audit import Audit
from couchjobs.recovery.conflicts import conflicted, settle_conflicts
from couchjobs.recovery.dead_daemons import Rescuer, claimants
from couchjobs.recovery.lost import LostJobs
from couchjobs.recovery.unnamed_claims import UnnamedClaims
from couchjobs.timestamps import format_time, now
from couchjobs.watchdog import Watchdog
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.failure import Failures
from couchjobs.workers.registry import config_of, worker

Start = Callable[..., Any]


@worker("count", max_exec_count=3)
async def count(ctx: WorkerContext) -> int:
    """Tell which try it is."""
    return ctx.exec_count


def claimed(job_id: str, daemon: str, **more: Any) -> dict[str, Any]:
    """A job that a daemon runs, or ran when it died."""
    return {
        "_id": job_id,
        "worker": "count",
        "message": None,
        "state": "running",
        "queued_at": format_time(now()),
        "exec_count": 1,
        "claim": {"id": "c", "daemon": daemon, "at": format_time(now())},
        **more,
    }


def lost_by(store: JobStore, daemon: Daemon) -> LostJobs:
    """What that daemon does with lost jobs: they have a try left."""
    return LostJobs(store, daemon.peers, Failures(WorkersList(), daemon.id))


async def test_claims_when_their_daemon_is_unknown_then_jobs_are_rescued(
    connection: Connection, db: Prefixer, start: Start, neighbour: Daemon
) -> None:
    """With tries left they run again, without they end; those of a living daemon are left alone."""
    store = JobStore(connection, db)
    await store.database.put(claimed("again", "ghost"))
    await store.database.put(claimed("spent", "ghost", exec_count=3))
    await store.database.put(claimed("few", "ghost", options={"max_exec_count": 1}))
    over = {"started_at": "2020-01-01T00:00:00Z", "options": {"max_exec_time": "10s"}}
    await store.database.put(claimed("late", "ghost", **over))
    await store.database.put(claimed("other", "ghost", worker="elsewhere"))
    await store.database.put(claimed("living", neighbour.id))

    async def indexed() -> bool:  # a view of a cluster may be behind
        return sorted(await claimants(store)) == sorted(["ghost", neighbour.id])

    await eventually(indexed)
    await start(count, dead_after=0.5, beat_interval=0.1, sweep_interval=0.2)
    again = await wait(db, "again", 10)
    assert (again.state, again.result) == (State.DONE, 2)
    assert again.errors[0].error == "worker lost: daemon ghost is dead"
    for job_id in ("spent", "few", "late"):
        ended = await wait(db, job_id, 10)
        assert (ended.state, ended.error) == (State.ERRORED, "worker lost: daemon ghost is dead")

    async def queued() -> bool:
        return (await get_job(db, "other")).state is State.QUEUED

    await eventually(queued)
    assert (await get_job(db, "living")).state is State.RUNNING


async def test_queued_job_when_its_tries_are_spent_then_not_run(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """Whoever rescued it may not have known how many it has."""
    await start(count)
    document = {"_id": "spent", "worker": "count", "message": None, "state": "queued", "exec_count": 3}
    await JobStore(connection, db).database.put(document)
    ended = await wait(db, "spent", 10)
    assert (ended.state, ended.exec_count) == (State.ERRORED, 3)
    assert str(ended.error).startswith("worker lost")


@pytest.mark.parametrize(
    "odd",
    [
        {"claim": 5},
        {"claim": {"daemon": "d" * 201, "id": "c"}},
        {"claim": {"id": "c"}},
        {"claim": {"daemon": None, "id": []}, "exec_count": "x"},
        {"started_at": "2020-01-01T00:00:00Z"},
        {},
    ],
)
async def test_running_job_when_it_names_no_daemon_then_rescued_by_the_second_sweep(
    connection: Connection, db: Prefixer, start: Start, odd: dict[str, Any]
) -> None:
    """Whatever its claim holds; the next try is an ordinary one."""
    store = JobStore(connection, db)
    await store.database.put({"_id": "job", "worker": "count", "message": None, "state": "running", **odd})
    await start(count, **SOON_SWEPT)
    ended = await wait(db, "job", 20)
    assert ended.state is (State.ERRORED if odd.get("exec_count") == "x" else State.DONE), ended.error
    assert (await store.database.get("job"))["state"] != "running"


async def test_running_job_when_another_engine_may_have_it_then_left_alone(
    connection: Connection, db: Prefixer, neighbour: Daemon
) -> None:
    """One without a claim, that began within a day."""
    store = JobStore(connection, db)
    fields = {"worker": "count", "message": None, "state": "running"}
    await store.database.put({"_id": "theirs", **fields, "started_at": format_time(now())})
    await store.database.put({"_id": "ours", **fields, "claim": {"id": "c", "daemon": neighbour.id}})
    unnamed = UnnamedClaims(lost_by(store, neighbour))
    assert [await unnamed.rescue() for _ in range(3)] == [0, 0, 0]
    assert [(await store.get(job_id)).state for job_id in ("theirs", "ours")] == [State.RUNNING] * 2


NEVER_ERRORED = """function (doc) {
  if (doc.state === "errored") doc.nothing.of.that;
}"""
STUMBLES = """function (doc) {
  if (doc._id === "odd" && doc.state === "queued") doc.nothing.of.that;
}"""


async def test_rescue_when_one_job_is_refused_then_the_others_do_not_wait(
    connection: Connection, db: Prefixer, neighbour: Daemon
) -> None:
    """It is tried again at each look, and what was said of it so far counts: in the end it says why."""
    store = JobStore(connection, db)
    for job_id in ("odd", "good"):
        await store.database.put(claimed(job_id, "ghost"))
    await put_on_all(store.database, {"_id": "_design/stumbles", "validate_doc_update": STUMBLES})

    async def indexed() -> bool:
        return len(await store.database.view("queue/claimed", ["ghost"], ["ghost", {}], limit=9)) == 2

    await eventually(indexed)
    lost = lost_by(store, neighbour)
    began = time.monotonic()
    assert await Rescuer(lost).rescue("ghost") == 1
    assert time.monotonic() - began < 15
    odd = await store.get("odd")
    assert (odd.state, (await store.get("good")).state) == (State.RUNNING, State.QUEUED)
    row = (store.database.name, "odd", "c", "queued")
    refusals = lost.ends._refusals
    assert refusals is not None
    assert refusals.times(*row) >= 3
    refusals.of(*row)._since = time.monotonic() - 1000  # type: ignore[assignment]
    await store.writer.write({"_id": "other", "state": "done"})
    await Rescuer(lost).rescue("ghost")
    assert (await store.get("odd")).state is State.ERRORED


async def test_rescue_when_an_end_is_refused_again_and_again_then_told_once(
    connection: Connection, db: Prefixer, neighbour: Daemon
) -> None:
    """Of a dead daemon's job whose tries are spent; so is whoever hears of one that is refused, by marks."""
    told: list[str] = []

    @worker("count", max_exec_count=1, on_failed=lambda ctx, error: told.append(ctx.id))
    async def spent(ctx: WorkerContext) -> None:
        """Have one try."""

    store = JobStore(connection, db)
    await put_on_all(store.database, {"_id": "_design/stumbles", "validate_doc_update": NEVER_ERRORED})
    await store.database.put(claimed("odd", "ghost"))
    failures = Failures(WorkersList([config_of(spent)]), neighbour.id)
    lost = LostJobs(store, neighbour.peers, failures)
    for _ in range(3):
        await eventually(lambda: is_on_all(store.database, "odd"))
        job = store.read((await store.get("odd")).document())
        with pytest.raises(Unavailable):
            await lost.take(job)
    assert told == ["odd"]
    job = await store.get("odd")
    assert (job.state, generation(job.rev)) == (State.RUNNING, 2)
    for _ in range(2):
        await failures.tell_refused(store.read({"_id": "bad", "_rev": "1-a", "worker": "count"}), "bad job")
    assert told == ["odd", "bad"]


async def test_audit_when_the_end_of_a_try_that_began_is_not_taken_then_it_counts_at_the_next_look(
    connection: Connection, db: Prefixer, neighbour: Daemon
) -> None:
    """Put back as if it had never begun, it would run beyond its tries."""
    store, claims = JobStore(connection, db), OwnClaims()
    await store.database.put(claimed("odd", neighbour.id))
    rev = await put_on_all(store.database, {"_id": "_design/stumbles", "validate_doc_update": STUMBLES})
    claims.begun["odd"] = "c"
    audit = Audit(lost_by(store, neighbour), claims)

    async def is_refused() -> bool:  # a cluster's nodes may take a moment to know the function
        with suppress(Unavailable):
            await audit.give_up("odd")
            present = await store.database.get("odd")
            await put_on_all(store.database, {**claimed("odd", neighbour.id), "_rev": present["_rev"]})
            claims.begun["odd"] = "c"
            return False
        return True

    await eventually(is_refused, 20)
    await store.database.delete("_design/stumbles", rev)

    async def is_given_up() -> bool:  # CouchDB may take a moment to forget the function
        with suppress(Unavailable):
            return await audit.give_up("odd")
        return False

    await eventually(is_given_up, 20)
    job = await store.get("odd")
    assert (job.state, job.exec_count, len(job.errors)) == (State.QUEUED, 1, 1)
    assert not claims.begun


async def test_mark_when_the_job_has_changed_since_then_left_alone(connection: Connection, db: Prefixer) -> None:
    """What was to be cancelled was cancelled by another daemon, and somebody has queued it again."""
    store = JobStore(connection, db)
    for job_id in ("a", "b"):
        await put_on_all(store.database, {"_id": job_id, "worker": "w", "message": None, "state": "queued"})
    read = [store.check((await store.get(job_id)).document()) for job_id in ("a", "b")]
    for job in read:
        await store.update(await store.get(job.id), note="somebody was here")
    assert not await store.ends.cancel(read[0])
    assert not await store.nack(read[1], "its tries are spent")
    assert {(await store.get(job_id)).state for job_id in ("a", "b")} == {State.QUEUED}


@pytest.mark.parametrize("other", ["running", "done"])
async def test_rescue_when_another_branch_is_settled_then_the_job_is_left_alone(
    connection: Connection, db: Prefixer, neighbour: Daemon, other: str
) -> None:
    """On a cluster, the winner may be the dead daemon's, and the owner another one."""
    store = JobStore(connection, db)
    leaves = [claimed("job", "ghost"), claimed("job", neighbour.id, state=other)]
    revisions = [{"start": 2, "ids": ["f" * 32, "1" * 32]}, {"start": 2, "ids": ["a" * 32, "1" * 32]}]
    docs = [
        {**leaf, "_rev": f"2-{revision['ids'][0]}", "_revisions": revision}
        for leaf, revision in zip(leaves, revisions, strict=True)
    ]
    body = {"docs": docs, "new_edits": False}
    await connection.server.request("POST", f"{store.database.path}/_bulk_docs", body=orjson.dumps(body))
    assert (await store.get("job")).rev.startswith("2-f")
    assert await Rescuer(lost_by(store, neighbour)).rescue("ghost") == 0
    assert (await store.get("job")).rev.startswith("2-f")


LIVING, GHOST = "living", "ghost"


@pytest.mark.parametrize(
    ("leaves", "left"),
    [
        ([("f", 3, "done", GHOST), ("a", 2, "running", GHOST), ("b", 2, "running", GHOST)], ["done"]),
        ([("f", 4, "queued", None), ("a", 3, "done", GHOST)], ["done"]),
        ([("f", 2, "running", LIVING), ("a", 2, "running", GHOST)], ["running"]),
        ([("f", 2, "queued", None), ("a", 2, "queued", None)], ["queued"]),
        ([("f", 2, "queued", None), ("a", 2, "running", LIVING)], ["running"]),
        ([("f", 3, "done", GHOST), ("a", 2, "running", LIVING)], ["done"]),
        ([("f", 90, "queued", None), ("a", 3, "done", GHOST)], ["done"]),
        ([("f", 2, "running", LIVING), ("a", 2, "running", LIVING)], ["running", "running"]),
    ],
)
async def test_reap_when_jobs_are_in_conflict_then_the_branch_that_counts_stays(
    connection: Connection, db: Prefixer, neighbour: Daemon, leaves: list[Any], left: list[str]
) -> None:
    """Never all leaves; what a living daemon runs is waited for."""
    store = JobStore(connection, db)
    docs = []
    for name, length, state, daemon in leaves:
        ids = [name * 32, *(f"{name if number > 1 else 0}{number}" * 16 for number in range(length - 1, 0, -1))]
        document = claimed("job", neighbour.id if daemon == LIVING else GHOST, state=state)
        if daemon is None:
            del document["claim"]
        docs.append({**document, "_rev": f"{length}-{ids[0]}", "_revisions": {"start": length, "ids": ids}})
    body = orjson.dumps({"docs": docs, "new_edits": False})
    await connection.server.request("POST", f"{store.database.path}/_bulk_docs", body=body)
    peers = Peers("own", dead_after=1000)
    peers.note([{"_id": f"daemon:{neighbour.id}", "beat": 1}], moved=True)
    peers.is_dead = lambda daemon, times=1.0: daemon == GHOST  # type: ignore[method-assign]
    await eventually(lambda: conflicted(store))
    assert await settle_conflicts(store.ends, peers, ["job"]) == (len(left) == 1)
    present = [leaf["state"] for leaf in await store.database.leaves("job") if not leaf.get("_deleted")]
    assert sorted(present) == left
    assert (await store.get("job")).state == left[0]

    async def indexed() -> bool:
        return await conflicted(store) == (["job"] if len(left) > 1 else [])

    await eventually(indexed)


async def test_reap_when_both_branches_gathered_payloads_then_all_are_kept(
    connection: Connection, db: Prefixer, neighbour: Daemon
) -> None:
    """Each once, however often."""
    store = JobStore(connection, db)
    docs = []
    for name, numbers in (("f", (1, 2)), ("a", (1, 3)), ("b", (1, 2, 4))):
        together = {"payload": {"payloads": [*numbers]}, "payload_ids": [f"p{number}" for number in numbers]}
        fields = {"_id": "hook", "worker": "w", "message": None, "state": "queued", **together}
        revisions = {"start": 2, "ids": [name * 32, "1" * 32]}
        docs.append({**fields, "_rev": f"2-{name * 32}", "_revisions": revisions})
    body = orjson.dumps({"docs": docs, "new_edits": False})
    await connection.server.request("POST", f"{store.database.path}/_bulk_docs", body=body)
    assert await settle_conflicts(store.ends, neighbour.peers, ["hook", "hook"]) == 2
    (leaf,) = [leaf for leaf in await store.database.leaves("hook") if not leaf.get("_deleted")]
    assert sorted(leaf["payload"]["payloads"]) == [1, 2, 3, 4]
    assert leaf["payload_ids"] == [f"p{number}" for number in leaf["payload"]["payloads"]]


async def test_daemon_when_it_cannot_beat_then_stops_its_jobs_before_others_take_them(
    connection: Connection, db: Prefixer, start: Start, server_url: str
) -> None:
    """It claims again once it beats; the try does not count."""
    async with FaultProxy(server_url) as proxy:
        silent = False
        tries: list[int] = []

        def before(method: str, path: str, body: bytes) -> None:
            if silent and b'"daemon:' in body and path.endswith("/_bulk_docs"):
                raise Refusal(503)

        @worker("endless", timeout=None)
        async def endless(ctx: WorkerContext) -> None:
            tries.append(ctx.exec_count)
            await asyncio.Event().wait()

        proxy.before = before
        await start(endless, url=proxy.url, dead_after=1, beat_interval=0.1)
        await JobStore(connection, db).database.put(
            {"_id": "job", "worker": "endless", "message": None, "state": "queued"}
        )
        await eventually(lambda: tries)
        silent = True

        async def put_back() -> bool:
            job = await get_job(db, "job")
            return (job.state, job.exec_count) == (State.QUEUED, 0)

        await eventually(put_back)
        silent = False
        await eventually(lambda: len(tries) == 2)
        assert tries == [1, 1]


def test_peers_when_time_passes_then_still_ones_are_dead_unless_nobody_could_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The observer's own clock; a pause of its own sight counts for nobody."""
    present = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: present)
    peers = Peers("own", dead_after=30)
    document = {"_id": "daemon:a", "beat": 1, "domain": "d", "prefix": "P", "worker_types": ["w"]}
    assert peers.note([document], moved=False)
    assert not peers.note([document], moved=True), "the same beat is no sign of life"
    present += 20
    assert not peers.is_dead("unknown")
    assert [name for name, _ in peers.living("p")] == ["a"]
    assert not list(peers.living("other"))
    present += 11
    assert peers.is_dead("a")
    assert peers.suspects() == ["a"]
    assert not peers.is_dead("unknown"), "asked about for 11 s"
    peers.blinded()
    assert not peers.is_dead("a")
    peers.note([{**document, "beat": 2}], moved=True)
    peers.gone("a")
    present += 31
    assert peers.is_dead("a")
    assert peers.is_dead("unknown")
    assert not peers.is_dead("own")


def test_peer_when_it_beats_more_seldom_than_the_observer_then_it_has_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two daemons with other settings: each counts as dead by those of the more patient one."""
    clock = [1000.0]
    monkeypatch.setattr("couchjobs.cluster.peers.time.monotonic", lambda: clock[0])
    peers = Peers("own", dead_after=5)
    told: dict[str, Any] = {"a": 30, "b": None, "c": 1, "d": 10**9, "e": "30", "f": True}
    peers.note([{"_id": f"daemon:{name}", "beat": 1, "dead_after": one} for name, one in told.items()], moved=False)
    clock[0] += 6
    assert sorted(peers.suspects()) == ["b", "c", "d", "e", "f"]
    assert [daemon for daemon, _ in peers.living()] == ["a"]
    assert "a" not in peers.still()
    clock[0] += 25
    assert peers.is_dead("a")


def test_peers_when_another_daemon_has_watched_one_then_a_newcomer_believes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the very count that it sees, and of nothing else; a sign of life ends it."""
    present = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: present)
    still = {"_id": "daemon:still", "beat": 7}
    witness, newcomer = Peers("witness", dead_after=30), Peers("newcomer", dead_after=30)
    witness.note([still], moved=False)
    assert witness.still() == {}
    present += 25
    told = witness.still()
    assert told == {"still": {"beat": 7, "seconds": 25}}
    present += 500  # of the witness's death, which nobody has timed
    newcomer.note([{"_id": "daemon:witness", "beat": 3, "still": told}, still], moved=False)
    assert not newcomer.is_dead("still")
    present += 6
    assert newcomer.is_dead("still")
    assert not newcomer.is_dead("witness")
    newcomer.note([{**still, "beat": 8}], moved=True)
    newcomer.note([{"_id": "daemon:other", "beat": 1, "still": told}], moved=True)
    assert not newcomer.is_dead("still"), "another count"
    for odd in (5, {"still": 5}, {"still": {"beat": 8, "seconds": "x"}}, {"still": {"beat": 8, "seconds": -1}}):
        newcomer.note([{"_id": "daemon:odd", "beat": 1, "still": odd}], moved=True)
    assert not newcomer.is_dead("still")


def test_taken_types_when_documents_are_odd_or_of_others_then_only_this_tenants_names() -> None:
    """A daemon document may have been written by anybody."""
    documents = [
        {"_id": "daemon:a", "domain": "d", "prefix": "", "worker_types": ["w", 5, None]},
        {"_id": "daemon:b", "domain": "d", "prefix": "other", "worker_types": ["theirs"]},
        {"_id": "daemon:e", "tenants": ["p", 5], "worker_types": ["some"]},
        {"_id": "daemon:f", "tenants": "all", "worker_types": ["any"]},
        {"_id": "daemon:c", "domain": "d", "worker_types": 7},
        {"_id": "daemon:d"},
    ]
    assert taken_types(documents, Prefixer("d")) == {"w", "any", "client"}
    assert taken_types(documents, Prefixer("d", "P")) == {"some", "any", "client"}


async def test_watchdog_when_the_loop_is_blocked_then_says_by_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, with the task and its stack."""
    told: list[dict[str, Any]] = []

    class Log:
        def error(self, _: str, **fields: Any) -> None:
            told.append(fields)

    monkeypatch.setattr(watchdog, "_logger", Log())
    monkeypatch.setattr(watchdog, "_LOOK_S", 0.05)

    async def blocks() -> None:
        until = time.monotonic() + 10
        while not told and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251  that is what it is about

    with Watchdog(blocked_s=0.2):
        await asyncio.sleep(0)
        await asyncio.create_task(blocks(), name="couchjobs job j-1")
    (fields,) = told
    assert fields["task"] == "couchjobs job j-1"
    assert "blocks" in fields["stack"]


async def test_rescue_when_the_view_of_a_cluster_is_behind_then_looked_at_again(
    connection: Connection, db: Prefixer, neighbour: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within seconds, and not at the next sweep."""
    monkeypatch.setattr(dead_daemons, "_LOOK_AGAIN_S", 0.0)
    looked: list[str] = []

    async def rescue(_: Rescuer, dead: str) -> int:
        looked.append(dead)
        return 0

    monkeypatch.setattr(Rescuer, "rescue", rescue)
    monkeypatch.setattr(neighbour.peers, "suspects", lambda: ["ghost"])
    monkeypatch.setattr(neighbour.peers, "is_dead", lambda *_: True)
    rescuer = Rescuer(lost_by(JobStore(connection, db), neighbour))
    for _ in range(6):
        await rescuer.look_after(neighbour, ())
    assert looked == ["ghost"] * 3
    await rescuer.suspect_unknown()
    await rescuer.look_after(neighbour, ())
    assert len(looked) == 4
