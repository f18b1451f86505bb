"""What users' hooks raise, and what people write into jobs and requests: none of it is taken for more than it is."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer
from copies import put_on_all
from triggering import jobs_of, note, orders_of, triggers_of
from waiting import eventually

from couchjobs import log
from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import BadDocumentError, ConfigurationError, Conflict, NotFound
from couchjobs.http import metrics
from couchjobs.http.server import make_app
from couchjobs.http.tokens import create_token
from couchjobs.jobs.ids import follower_id
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.names import near_misses
from couchjobs.jobs.removal import Remover
from couchjobs.jobs.request import JobRequest, moment_of
from couchjobs.jobs.retention import Retention, read_rules
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.transitions import reduced
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.states import state_id
from couchjobs.testing import TestSystem
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Http = TestClient[Any, Any]
ran: list[str] = []


def looks_up(job: Job) -> bool:
    """Look for a document that is not there, as hooks may."""
    raise NotFound("404: missing", 404)


@worker("looks-up", before_hook=looks_up)
async def hooked(ctx: WorkerContext) -> None:
    """Never get a job."""


@worker("echo")
async def echo(ctx: WorkerContext, message: Any) -> Any:
    """Return the message."""
    return message


@worker("wants-nothing", before_hook=lambda job: False)
async def choosy(ctx: WorkerContext) -> None:
    """Want nothing."""


@pytest.fixture
def jobs(connection: Connection, db: Prefixer) -> Any:
    """The database of jobs."""
    return connection.database(db.database("jobs"))


async def test_feed_when_a_hook_raises_what_a_look_up_raises_then_it_goes_on(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """It says nothing about CouchDB: the event is done with, and what comes later fires once."""
    orders, triggers = await orders_of(connection, db), triggers_of(connection, db)
    event = {"type": "@event", "arguments": "orders:CREATED", "message": None}
    await triggers.put({"_id": "a", **event, "worker": "looks-up"})
    await triggers.put({"_id": "b", **event, "worker": "note"})
    await begin(hooked, note)
    await eventually(lambda: connection.control.find(f"checkpoint:{orders.name}"))
    rev = await orders.put({"_id": "one"})

    async def done_with() -> bool:
        checkpoint = await connection.control.find(f"checkpoint:{orders.name}") or {}
        return rev in [one["rev"] for one in checkpoint.get("last", [])]

    await eventually(done_with)
    assert len(await jobs_of(connection, db, "b")) == 1
    assert await jobs_of(connection, db, "a") == []


async def test_hook_when_it_raises_then_who_asked_is_told_by_http_and_by_python(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """Python has what it raised; over HTTP that is no fault of couchjobs."""
    await begin(hooked, choosy)
    await triggers_of(connection, db).put({"_id": "t", "type": "@webhook", "worker": "looks-up", "message": None})
    await triggers_of(connection, db).put(
        {"_id": "u", "type": "@cron", "arguments": "0 0 1 1 *", "worker": "wants-nothing"}
    )
    with pytest.raises(NotFound, match="missing"):
        await Couchjobs.over(connection).push("looks-up", None)
    with pytest.raises(NotFound, match="missing"):
        await Couchjobs.over(connection).fire_webhook("t")
    async with TestClient(TestServer(make_app(connection))) as http:
        for path in ("/jobs/queue/looks-up", "/jobs/triggers/t/launch", "/jobs/webhooks/t", "/jobs/triggers/u/launch"):
            answer = await http.post(path, json={"data": {"attributes": {}}})
            assert (answer.status, path) == (422, path)
            assert "fault of couchjobs" not in await answer.text()
    assert await Couchjobs.over(connection).jobs() == []


async def test_reduced_job_when_tried_again_then_it_is_not_run_with_nothing(
    connection: Connection, db: Prefixer, jobs: Any, begin: Any
) -> None:
    """What it held is in an attachment, or gone: by a command, or by hand."""
    ended = {"_id": "r", "worker": "echo", "message": {"order": 1}, "state": "errored"}
    await jobs.put(reduced(ended, b'{"message": {"order": 1}}', now(), "too large"))
    await begin(echo)
    with pytest.raises(Conflict, match=r"original\.json"):
        await Couchjobs.over(connection).retry("r")
    document = await jobs.get("r")
    await jobs.put({**document, "state": "queued"})
    job = await wait(db, "r", 15)
    assert (job.state, "cannot be tried again" in str(job.error), job.exec_count) == (State.ERRORED, True, 0)


async def test_webhook_when_it_is_debounced_and_a_hook_skips_the_job_then_told(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """As without: there is no job to answer with."""
    await begin(choosy)
    trigger = {"_id": "d", "type": "@webhook", "worker": "wants-nothing", "debounce": "1s"}
    await triggers_of(connection, db).put(trigger)
    async with TestClient(TestServer(make_app(connection))) as http:
        answer = await http.post("/jobs/triggers/d/launch", json={"data": {"attributes": {}}})
        assert answer.status == 422
    with pytest.raises(BadDocumentError, match="does not want this job"):
        await Couchjobs.over(connection).fire_webhook("d", {"a": 1})
    assert await Couchjobs.over(connection).jobs() == []


@pytest.mark.parametrize("worker_type", ["looks-up", "wants-nothing"])
async def test_push_when_its_job_is_there_and_a_hook_refuses_it_by_now_then_that_is_returned(
    connection: Connection, jobs: Any, begin: Any, worker_type: str
) -> None:
    """Perhaps the answer of the first push never came."""
    await begin(hooked, choosy)
    await jobs.put({"_id": "there", "worker": worker_type, "state": "done", "queued_at": format_time(now())})
    result = await Couchjobs.over(connection).push(worker_type, None, id="there")
    assert (result.job.state, result.created) == (State.DONE, False)


@pytest.mark.parametrize(
    "queued_at",
    [
        "30/11/2026, 03:00:00",
        "Mon, 30 Nov 2026 03:00:00 GMT",
        [],
        {},
        True,
        17,
        {"$date": "2026-11-24T08:00:00Z"},
        [{}],
        "\U0001f600" * 40,
    ],
)
async def test_retention_when_it_is_odd_when_a_job_was_queued_then_it_counts_from_its_end(
    connection: Connection, jobs: Any, queued_at: Any
) -> None:
    """A faulty producer's errored jobs do not pile up."""
    old = format_time(now() - timedelta(days=90))
    await jobs.put({"_id": "o", "worker": "w", "state": "errored", "queued_at": queued_at, "finished_at": old})
    await jobs.put({"_id": "n", "worker": "w", "state": "errored", "queued_at": old, "finished_at": format_time(now())})
    rules = read_rules([{"worker": "*", "keep": "30d"}])

    async def remains() -> bool:
        async for _ in Remover(JobStore(connection, connection.settings.tenant)).steps(Retention(rules.rules), now()):
            pass
        return list(await jobs.get_many(["o", "n"])) == ["n"]

    await eventually(remains)


async def test_job_when_it_has_ended_and_is_queued_by_hand_then_its_spent_tries_are_told_as_such(
    connection: Connection, db: Prefixer, jobs: Any, begin: Any
) -> None:
    """No daemon has died."""
    ended = {"worker": "echo", "state": "done", "exec_count": 3, "message": 1, "finished_at": format_time(now())}
    await begin(echo)
    await jobs.put({"_id": "e", **ended, "state": "queued"})
    job = await wait(db, "e", 15)
    assert str(job.error).startswith("its 3 tries are spent: `couchjobs jobs retry` gives it new ones")


async def test_token_when_it_may_not_what_is_asked_then_told_what_it_needs(
    connection: Connection, db: Prefixer, begin: Any
) -> None:
    """The rule, and not what it has already."""
    await begin(echo)
    token = await create_token(connection, db, "shop", ["jobs:POST:mail:worker", "jobs:GET"])
    header = {"Authorization": f"Bearer {token}"}
    async with TestClient(TestServer(make_app(connection))) as http:
        answer = await http.post("/jobs/queue/echo", headers=header, json={"data": {"attributes": {}}})
        assert (answer.status, "jobs:POST:echo:worker" in await answer.text()) == (403, True)


@pytest.mark.parametrize(
    "path",
    [
        "DELETE /jobs/purge?workers=", "DELETE /jobs/purge?workers=,,", "DELETE /jobs/purge?workers=a,",
        "DELETE /jobs/purge?workers=a&workers=b", "DELETE /jobs/purge?duration=1M", "GET /jobs/triggers?Worker=,",
        "GET /jobs/triggers?Type=,@cron", "GET /jobs?worker=", "GET /jobs?state=done&state=errored",
        "POST /jobs/cancel?trigger=", "POST /jobs/retry?worker=", "GET /events?worker=", "GET /jobs/triggers?Worker=",
        "GET /jobs/triggers?page[cursor]=",
    ],
)  # fmt: skip
async def test_parameter_when_it_says_nothing_or_is_there_twice_then_refused(
    connection: Connection, jobs: Any, path: str
) -> None:
    """By its name; nothing is done for all where somebody meant few."""
    old = format_time(now() - timedelta(days=90))
    await jobs.put({"_id": "old", "worker": "w", "state": "done", "queued_at": old, "finished_at": old})
    async with TestClient(TestServer(make_app(connection))) as http:
        method, _, url = path.partition(" ")
        answer = await http.request(method, url)
        assert answer.status == 400
        assert url.partition("?")[2].partition("=")[0].split("&")[0] in await answer.text()
    assert await jobs.find("old") is not None


async def test_trouble_when_a_token_of_one_tenant_looks_then_nothing_of_others(
    connection: Connection, db: Prefixer
) -> None:
    """The control database is everybody's: who runs all this sees what is wrong there."""
    await connection.control.put({"_id": "tenant:customer.example", "prefix": 5})
    token = await create_token(connection, db, "all", ["*"])
    async with TestClient(TestServer(make_app(connection))) as http:
        bearer = {"Authorization": f"Bearer {token}"}
        page = await (await http.get("/dashboard/trouble", headers=bearer)).text()
        csrf = page.partition('name="_csrf" value="')[2].partition('"')[0]
        form = {"_csrf": csrf}
        said = await http.post("/dashboard/trouble", data=form, headers=bearer)
        assert said.status == 200
        assert "customer.example" not in await said.text()


async def test_push_of_a_job_when_somebody_has_guessed_its_id_then_the_follower_is_stored_all_the_same(
    db: Prefixer, start: Any
) -> None:
    """And once, however often it is pushed."""

    @worker("leads")
    async def leads(ctx: WorkerContext) -> list[Any]:
        first = await ctx.push("echo", "mine", key="k")
        second = await ctx.push("echo", "mine", key="k")
        return [first.created, second.created, first.job.id == second.job.id]

    system = await start(echo, leads)
    guessed = JobRequest(worker_type="echo", message="theirs", id=follower_id("lead", "echo", "key k"))
    await system.broker.push_job(db, guessed)
    await system.broker.push_job(db, JobRequest(worker_type="leads", id="lead"))
    assert (await wait(db, "lead", 15)).result == [True, False, True]


async def test_push_when_a_copy_is_behind_then_the_job_that_is_there_is_returned(
    connection: Connection, db: Prefixer, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that there is none for a moment, though the id is taken."""
    client = Couchjobs.over(connection)
    assert (await client.push("echo", 1, id="e")).created
    find, sees_it_at = Database.find, asyncio.get_running_loop().time() + 0.5

    async def behind(database: Database, doc_id: str) -> Any:
        return None if asyncio.get_running_loop().time() < sees_it_at else await find(database, doc_id)

    monkeypatch.setattr(Database, "find", behind)
    assert not (await client.push("echo", 1, id="e")).created


async def test_progress_when_it_cannot_be_written_then_the_job_ends_all_the_same(
    db: Prefixer, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason is."""

    async def fails(*_: Any) -> bool:
        raise ValueError("no")

    @worker("tells")
    def tells(ctx: WorkerContext) -> str:
        ctx.progress(1)
        return "done"

    system = await start(tells)
    monkeypatch.setattr("couchjobs.workers.engine.CouchEngine.write_progress", fails)
    await system.broker.push_job(db, JobRequest(worker_type="tells", id="t"))
    assert (await wait(db, "t", 15)).result == "done"


async def test_pushes_when_worker_start_gives_another_context_then_each_counts(db: Prefixer, start: Any) -> None:
    """Copies of a context are one try."""

    @worker("copies", worker_start=lambda ctx: ctx.with_cookie("c"))
    async def copies(ctx: WorkerContext) -> list[Any]:
        pushed = [await one.push("echo", n) for n, one in enumerate((ctx, ctx.with_timeout(60), ctx))]
        return [one.job.message for one in pushed if one.created]

    system = await start(echo, copies)
    await system.broker.push_job(db, JobRequest(worker_type="copies", id="c"))
    assert (await wait(db, "c", 15)).result == [0, 1, 2]


@pytest.mark.parametrize("change", [{"note": "seen"}, {"at": "2026-11-29T22:00:00Z"}, {"daemon": "x"}])
async def test_claim_when_somebody_writes_into_it_then_the_job_runs_once(
    db: Prefixer, start: Any, jobs: Any, change: dict[str, Any]
) -> None:
    """A claim is known by its id."""
    ran.clear()
    go = asyncio.Event()

    @worker("waits")
    async def waits(ctx: WorkerContext) -> None:
        ran.append(ctx.id)
        await go.wait()

    system = await start(waits)
    await system.broker.push_job(db, JobRequest(worker_type="waits", id="w"))
    await eventually(lambda: ran)
    document = await jobs.get("w")
    await jobs.put({**document, "claim": {**document["claim"], **change}})
    go.set()
    job = await wait(db, "w", 15)
    assert (job.state, job.exec_count, ran) == (State.DONE, 1, ["w"])


@pytest.mark.parametrize("word", [True, 1, "true", "yes"])
async def test_cancel_when_it_is_said_in_another_way_then_alike_for_queued_and_running(
    db: Prefixer, start: Any, jobs: Any, word: Any
) -> None:
    """What cancels the one cancels the other."""
    ran.clear()

    @worker("endless")
    async def endless(ctx: WorkerContext) -> None:
        ran.append(ctx.id)
        await asyncio.Event().wait()

    system = await start(endless)
    queued = {"worker": "endless", "message": None, "state": "queued"}
    await jobs.put({"_id": "later", **queued, "scheduled_at": "2099-01-01T00:00:00Z", "cancel_requested": word})
    await system.broker.push_job(db, JobRequest(worker_type="endless", id="now"))
    await eventually(lambda: ran)
    await jobs.put({**await jobs.get("now"), "cancel_requested": word})
    for job_id in ("later", "now"):
        job = await wait(db, job_id, 15)
        assert (job.state, job.document().get("cancelled")) == (State.ERRORED, True), job_id


async def test_delete_when_a_job_is_in_conflict_then_no_leaf_of_it_is_left(
    connection: Connection, db: Prefixer, jobs: Any
) -> None:
    """The queued one would be the job then, and run."""
    ended = {"_id": "c", "_rev": "2-b", "worker": "echo", "message": None, "state": "done"}
    queued = {**ended, "_rev": "2-a", "state": "queued"}
    body = orjson.dumps({"docs": [ended, queued], "new_edits": False})
    await jobs.server.request("POST", f"{jobs.path}/_bulk_docs", body=body)
    await Couchjobs.over(connection).delete("c")
    assert await jobs.leaves("c") == []


async def test_result_when_a_job_that_was_done_is_queued_by_hand_then_it_is_that_of_the_last_try(
    db: Prefixer, start: Any, jobs: Any
) -> None:
    """Nothing, where the function returns nothing."""

    @worker("nothing")
    async def nothing(ctx: WorkerContext) -> None:
        return None

    await jobs.put({"_id": "n", "worker": "nothing", "message": None, "state": "queued", "result": "of before"})
    await start(nothing)
    assert (await wait(db, "n", 15)).result is None


async def test_retention_when_an_end_cannot_be_read_then_kept(connection: Connection, db: Prefixer, jobs: Any) -> None:
    """When it was queued says nothing then."""
    old = format_time(now() - timedelta(days=90))
    for number, at in enumerate((5, "T22:50Z", ["x"])):
        await jobs.put({"_id": f"o{number}", "worker": "w", "state": "done", "queued_at": old, "finished_at": at})
    await jobs.put({"_id": "gone", "worker": "w", "state": "done", "queued_at": old})
    rules = read_rules([{"worker": "*", "state": "*", "keep": "1d"}])

    async def others_are_kept() -> bool:  # by the copy that answers, too
        async for _ in Remover(JobStore(connection, db)).steps(Retention(rules.rules), now()):
            pass
        kept = [document["_id"] async for page in jobs.all_docs() for document in page]
        return sorted(one for one in kept if not one.startswith("_")) == ["o0", "o1", "o2"]

    await eventually(others_are_kept)


@pytest.mark.parametrize(("year", "hours"), [(9999, -15), (1, 15)])
def test_time_when_it_is_beyond_all_calendars_then_refused(year: int, hours: int) -> None:
    """By name, and not by an error of the calendar."""
    at = datetime(year, 12 if hours < 0 else 1, 31 if hours < 0 else 1, 12, tzinfo=timezone(timedelta(hours=hours)))
    with pytest.raises(ConfigurationError, match="no time that can be stored"):
        moment_of(None, at)


async def test_rebuild_when_jobs_of_ticks_were_removed_then_the_state_tells_of_them(
    connection: Connection, db: Prefixer
) -> None:
    """The last job that is left may be an old one."""
    scheduler = CouchScheduler(connection)
    triggers = triggers_of(connection, db)
    await triggers.put({"_id": "t", "type": "@every", "arguments": "1h", "worker": "echo", "message": None})
    await scheduler.rebuild(db)
    key = state_id(triggers.name, "t")
    state = await eventually(lambda: connection.control.find(key))
    last = now().replace(microsecond=0) - timedelta(minutes=5)
    before = {**state, "last": format_time(last), "fired": format_time(last), "passed": format_time(last)}
    await connection.control.put(before)
    old = {"worker": "echo", "trigger_id": "t", "state": "errored", "queued_at": format_time(last - timedelta(hours=3))}
    await connection.database(db.database("jobs")).put({"_id": "old", **old})
    await scheduler.rebuild(db)

    async def kept() -> bool:
        return bool((await connection.control.find(key) or {}).get("last") == format_time(last))

    await eventually(kept)


async def test_body_when_a_number_is_beyond_all_then_refused(connection: Connection, jobs: Any) -> None:
    """It is the caller's, and no fault of couchjobs."""
    await jobs.put({"_id": "c", "worker": "client", "message": None, "state": "queued"})
    body = b'{"data": {"attributes": {"state": "done", "result": 1e400}}}'
    async with TestClient(TestServer(make_app(connection))) as http:
        answer = await http.patch("/jobs/c", data=body, headers={"Content-Type": "application/json"})
        assert answer.status == 422, await answer.text()


async def test_cookies_when_there_are_several_of_one_name_then_any_that_is_good(
    connection: Connection, db: Prefixer
) -> None:
    """A browser that is signed in at the root, too, sends both, and says not which is whose."""
    token = await create_token(connection, db, "all", ["*"])
    async with TestClient(TestServer(make_app(connection))) as http:
        for cookie in (
            f"couchjobs_token={token}; couchjobs_token=cj_0_0",
            f"couchjobs_token=x; couchjobs_token={token}",
        ):
            assert (await http.get("/jobs", headers={"Cookie": cookie})).status == 200
        assert (await http.get("/jobs", headers={"Cookie": "couchjobs_token=cj_0_0"})).status == 401


async def test_bad_job_when_it_names_no_worker_and_no_time_then_listed_all_the_same(
    connection: Connection, db: Prefixer, jobs: Any, begin: Any
) -> None:
    """Among those that have failed since then."""
    await jobs.put({"_id": "b", "type": "greet", "message": None, "state": "queued"})
    await begin(echo)
    await wait(db, "b", 15)
    (listed,) = await Couchjobs.over(connection).jobs(state="errored", since="1h")
    assert (listed.id, listed.worker, "worker" in str(listed.error)) == ("b", "?", True)


@pytest.mark.parametrize(
    ("model", "document", "told"),
    [
        (Job, {"delay": "10m"}, "delay is no field: did you mean scheduled_at?"),
        (Job, {"max_retries": 3}, "max_retries is no field: did you mean options.max_exec_count?"),
        (Job, {"timeout": 3}, "timeout is no field: did you mean options.timeout?"),
        (
            Job,
            {"options": {"max_retries": 3}},
            "options.max_retries is no option: did you mean options.max_exec_count?",
        ),
        (Job, {"sheduled_at": "x"}, "sheduled_at is no field: did you mean scheduled_at?"),
        (TriggerInfos, {"enabled": False}, "enabled is no field: did you mean disabled?"),
        (TriggerInfos, {"tz": "Europe/Paris"}, "tz is no field: did you mean timezone?"),
        (TriggerInfos, {"retries": 3}, "retries is no field: did you mean options.max_exec_count?"),
    ],
)
def test_field_when_it_is_named_as_elsewhere_then_told_where_it_is_here(
    model: Any, document: dict[str, Any], told: str
) -> None:
    """Of jobs and of triggers: the field is kept, and does nothing."""
    assert near_misses(document, model) == [told]


@pytest.mark.parametrize("document", [{"order": 1, "customer": "x", "priority_of": 1}, {"tags": [], "note": ""}])
def test_field_when_it_is_somebodys_own_then_nothing_is_said(document: dict[str, Any]) -> None:
    """Whoever writes a document may keep there what he likes."""
    assert near_misses(document, Job) == near_misses(document, TriggerInfos) == []


async def test_progress_when_a_function_ends_then_its_last_word_is_there(db: Prefixer, start: Any) -> None:
    """However soon after the word before."""

    @worker("steps")
    def steps(ctx: WorkerContext) -> None:
        for number in range(11):
            ctx.progress(number / 10, f"row {number}")

    system = await start(steps)
    await system.broker.push_job(db, JobRequest(worker_type="steps", id="p"))
    progress = (await wait(db, "p", 15)).progress
    assert (progress["done"], progress["text"]) == (1, "row 10")


@pytest.mark.parametrize("what", ["push", "couch"])
async def test_coroutine_when_a_plain_function_calls_it_then_told_which_to_call(
    db: Prefixer, start: Any, what: str
) -> None:
    """Nobody would await it, and nothing would happen, without a word."""

    @worker("plain", max_exec_count=1)
    def plain(ctx: WorkerContext) -> None:
        if what == "push":
            ctx.push("echo", 1)
        else:
            ctx.couch["orders"].get("1")

    system = await start(plain, echo)
    await system.broker.push_job(db, JobRequest(worker_type="plain", id="p"))
    job = await wait(db, "p", 15)
    assert (job.state, f"ctx.sync_{what}" in str(job.error)) == (State.ERRORED, True)


async def test_progress_when_it_is_a_sum_of_fractions_then_taken() -> None:
    """Though it is a little off."""

    @worker("thirds", max_exec_count=1)
    async def thirds(ctx: WorkerContext) -> None:
        ctx.progress(1 - 0.9 - 0.1)
        ctx.progress(1 + 1e-9)

    async with TestSystem(thirds) as system:
        job = await system.push("thirds", None)
        await system.run_pending()
        assert system.job(job.id).state is State.DONE
        assert system.job(job.id).progress["done"] == 1


@pytest.mark.parametrize("done", [50, -1, 1.7, None, "half", True, float("nan")])
async def test_progress_when_it_is_no_part_of_one_then_told(done: Any) -> None:
    """A percentage would stand there as fifty times the whole."""

    @worker("percent", max_exec_count=1)
    async def percent(ctx: WorkerContext) -> None:
        ctx.progress(done)

    async with TestSystem(percent) as system:
        job = await system.push("percent", None)
        await system.run_pending()
        assert "a number from 0 to 1" in str(system.job(job.id).error)


@pytest.mark.parametrize("awaits", [False, True])
async def test_coroutine_when_it_blocks_the_loop_beyond_its_time_then_told(
    db: Prefixer, start: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, awaits: bool
) -> None:
    """It is done where it awaits nothing after that, for nobody could end it; nothing else ran meanwhile."""
    monkeypatch.setattr(log, "_own", [])
    structlog.reset_defaults()

    @worker("blocks", timeout=0.2, max_exec_count=1)
    async def blocks(ctx: WorkerContext) -> None:
        time.sleep(0.9)  # noqa: ASYNC251
        if awaits:
            await asyncio.sleep(0.01)

    system = await start(blocks)
    await system.broker.push_job(db, JobRequest(worker_type="blocks", id="b"))
    assert (await wait(db, "b", 15)).state is (State.ERRORED if awaits else State.DONE)
    assert "what blocks must be a plain function" in caplog.text


async def test_message_when_it_is_null_and_a_payload_came_then_told_where_that_is() -> None:
    """Whoever takes a message thinks of what the webhook has brought."""

    @worker("takes", max_exec_count=1)
    async def takes(ctx: WorkerContext, message: dict[str, Any]) -> None:
        pass

    async with TestSystem(takes) as system:
        await system.add_trigger({"_id": "hook", "type": "@webhook", "message": None, "worker": "takes"})
        job = await system.fire("hook", {"id": 1})
        await system.run_pending()
        assert "ctx.job.payload" in str(system.job(job.id).error)


@pytest.mark.parametrize("fields", [{}, {"queued_at": "0001-01-01T00:00:00Z"}, {"queued_at": "1 o'clock"}])
async def test_lag_when_a_due_job_says_no_time_then_counted_from_when_it_was_seen(
    connection: Connection, db: Prefixer, jobs: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """As those of events, whose worker nobody has: an alert that looks at the lag would never come."""
    monkeypatch.setattr(metrics, "_KEPT_S", 0.0)
    await put_on_all(jobs, {"_id": "undated", "worker": "gone", "message": None, "state": "queued", **fields})
    async with TestClient(TestServer(make_app(connection))) as http:

        async def lag() -> float:
            text = await (await http.get("/metrics")).text()
            line = next(one for one in text.splitlines() if one.startswith('couchjobs_due_lag_seconds{worker="gone"}'))
            return float(line.split()[-1])

        await eventually(lag)
        before = await lag()
        await asyncio.sleep(0.3)
        assert await lag() >= before + 0.25
        hour_ago = format_time(now() - timedelta(hours=1))
        dated = {"_id": "dated", "worker": "gone", "message": None, "state": "queued", "queued_at": hour_ago}
        await put_on_all(jobs, dated)

        async def late() -> bool:
            return await lag() > 3_000

        await eventually(late)


@pytest.mark.parametrize("keep", [14, 0.5, "14", True])
def test_retention_when_it_names_no_unit_then_refused(keep: Any) -> None:
    """What is gone is no way to learn what a number means."""
    with pytest.raises(ConfigurationError, match=r"rules\[0\].keep"):
        read_rules([{"keep": keep}])


def test_retention_when_shown_then_as_it_was_written() -> None:
    """So that it can be changed, and written again; and in words."""
    rules = [
        {"worker": "*", "state": "done", "keep": "14d"},
        {"worker": "w", "state": "*", "at_most": 5, "keep": "90s"},
    ]
    found = read_rules(rules)
    assert [rule.as_json() for rule in found.rules] == rules
    assert [str(rule) for rule in found.rules] == [
        "done jobs of all workers are removed 14d after their end",
        "finished jobs of worker 'w' are removed 90s after their end, and beyond the newest 5 of each worker and state",
    ]
