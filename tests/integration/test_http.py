"""Every route over a socket: what it answers, what it wants to be allowed, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from copies import is_on_all, put_on_all
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError
from couchjobs.http import access, events, gate
from couchjobs.http.address import read_address
from couchjobs.http.scopes import read_scope
from couchjobs.http.server import HttpServer, make_app
from couchjobs.http.tokens import create_token, revoke_token, tokens
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.waiting import wait
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.sources import write_list
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

Start = Callable[..., Any]
JSON_API = "application/vnd.api+json"


@worker("echo")
async def echo(ctx: WorkerContext, message: Any) -> Any:
    """Return the message; fail where it says so."""
    if message == "fail":
        raise ValueError("as it was told")
    return message


@pytest.fixture
async def http(connection: Connection) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of a server for the tenant of this test; nobody has a token."""
    async with TestClient(TestServer(make_app(connection))) as client:
        yield client


async def body_of(response: ClientResponse, status: int) -> Any:
    """What an answer holds, which has that status."""
    assert response.status == status, await response.text()
    assert response.content_type == JSON_API
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return await response.json(content_type=JSON_API)


def attributes(**given: Any) -> dict[str, Any]:
    """A body."""
    return {"data": {"attributes": given}}


async def test_job_when_pushed_then_shown_retried_cancelled_and_purged(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], start: Start
) -> None:
    """The whole life of jobs, as a program without the library sees it."""
    pushed = await body_of(
        await http.post("/jobs/queue/echo", json=attributes(arguments={"a": 1}, id="one", manual=True)), 202
    )
    assert (pushed["data"]["id"], pushed["meta"], pushed["data"]["type"]) == ("one", {"created": True}, "jobs")
    assert pushed["data"]["attributes"]["arguments"] == {"a": 1}
    assert pushed["data"]["attributes"]["manual_execution"] is True
    jobs = connection.database(db.database("jobs"))
    await eventually(lambda: is_on_all(jobs, "one"))
    again = await body_of(await http.post("/jobs/queue/echo", json=attributes(arguments=2, id="one")), 202)
    assert (again["meta"], again["data"]["attributes"]["arguments"]) == ({"created": False}, {"a": 1})
    listed = await body_of(await http.get("/jobs/queue/echo"), 200)
    assert ([one["id"] for one in listed["data"]], listed["meta"]) == (["one"], {"count": 1})
    later = attributes(arguments=1, id="later", delay="1h", options={"timeout": 5}, priority=2)
    shown = (await body_of(await http.post("/jobs/queue/echo", json=later), 202))["data"]["attributes"]
    assert (shown["priority"], shown["options"]) == (2, {"timeout": 5.0})
    cancelled = await body_of(await http.post("/jobs/later/cancel"), 200)
    assert cancelled["data"]["attributes"]["cancel_requested"] is True
    await http.post("/jobs/queue/echo", json=attributes(arguments="fail", id="bad", options={"max_exec_count": 1}))
    await start(echo)

    async def state(job_id: str) -> str:
        found = await body_of(await http.get(f"/jobs/{job_id}"), 200)
        assert found["data"]["links"] == {"self": f"/jobs/{job_id}"}
        assert not found["data"]["attributes"].keys() & {"claim", "admin_proof", "_rev"}
        return str(found["data"]["attributes"]["state"])

    async def is_over() -> bool:
        return [await state(one) for one in ("one", "bad", "later")] == ["done", "errored", "errored"]

    await eventually(is_over)
    assert (await http.post("/jobs/one/retry")).status == 409
    await body_of(await http.post("/jobs/one/retry?again=true"), 200)
    await body_of(await http.post("/jobs/bad/retry"), 200)
    await eventually(is_over)
    retried = await body_of(await http.post("/jobs/retry?worker=echo"), 200)
    assert retried["meta"] == {"changed": 1, "refused": 0}, "one that was cancelled has not failed"
    await eventually(is_over)
    assert (await body_of(await http.post("/jobs/cancel"), 200))["meta"] == {"changed": 0, "refused": 0}
    going = {"worker": "other", "message": None, "state": "running", "claim": {"id": "c", "daemon": "somebody"}}
    jobs = JobStore(connection, db).database
    await put_on_all(jobs, {"_id": "going", **going})

    async def is_cancelled() -> bool:  # a view of a cluster may be behind
        await http.post("/jobs/cancel?worker=other")
        return bool((await jobs.get("going")).get("cancel_requested"))

    await eventually(is_cancelled)
    kept = await body_of(await http.delete("/jobs/purge?duration=3W&workers=echo"), 200)
    assert kept["meta"]["deleted"] == 0

    async def gone() -> bool:
        await body_of(await http.delete("/jobs/purge?duration=0s"), 200)
        return [(await http.get(f"/jobs/{one}")).status for one in ("one", "bad", "later")] == [404] * 3

    await eventually(gone)


async def test_jobs_when_listed_then_newest_first_and_page_by_page(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Each once, though many were queued in the same moment."""
    database = JobStore(connection, db).database
    times = ["2026-01-01T00:00:00Z"] * 207 + ["2026-01-02T00:00:00Z"] * 4
    for number, time in enumerate(times):
        job = {"worker": "w" if number % 2 else "v", "message": None, "state": "queued", "queued_at": time}
        await database.put({"_id": f"job-{number:02}", **job})

    async def all_pages(url: str) -> list[str]:
        found: list[str] = []
        while url:
            page = await body_of(await http.get(url), 200)
            found += [one["id"] for one in page["data"]]
            url = page["links"].get("next", "")
        return found

    async def indexed() -> bool:
        return len(await all_pages("/jobs")) == len(times)

    await eventually(indexed)
    found = await all_pages("/jobs?page[size]=23")
    assert len(found) == len(set(found)) == len(times)
    assert set(found[:4]) == {f"job-{number:02}" for number in range(207, 211)}
    assert set(await all_pages("/jobs?worker=w&page[size]=40")) == {f"job-{n:02}" for n in range(1, 211, 2)}
    assert len(await all_pages("/jobs?state=queued&since=2026-01-02T00:00:00Z")) == 4
    for number in range(7):
        await database.put({"_id": f"by-hand-{number}", "worker": "hand", "message": None, "state": "queued"})
    await eventually(lambda: _all_seven(all_pages))
    for query in ("state=odd", "since=soon", "page[size]=0", "page[size]=x", "page[cursor]=!!"):
        error = (await body_of(await http.get(f"/jobs?{query}"), 400))["errors"][0]
        assert error["source"] == {"parameter": query.partition("=")[0]}


async def _all_seven(all_pages: Callable[[str], Any]) -> bool:
    found = await all_pages("/jobs?page[size]=3&worker=hand")
    return len(found) == len(set(found)) == 7 and len(await all_pages("/jobs?page[size]=50")) == 218


async def test_triggers_when_made_changed_and_launched_then_as_their_documents_say(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """With the names of the specified system, old ones included."""
    made = await body_of(
        await http.post(
            "/jobs/triggers",
            json=attributes(type="@cron", arguments="0 0 * * * *", worker="echo", worker_arguments={"x": 1}),
        ),
        201,
    )
    trigger = made["data"]["id"]
    assert made["data"]["attributes"]["message"] == made["data"]["attributes"]["worker_arguments"] == {"x": 1}
    assert made["data"]["attributes"]["current_state"]["status"] == "done"
    assert made["data"]["links"] == {"self": f"/jobs/triggers/{trigger}"}
    other = attributes(type="@event", arguments="orders:CREATED", worker="other", message=None, id="named")
    assert (await body_of(await http.post("/jobs/triggers", json=other), 201))["data"]["id"] == "named"
    assert (await http.post("/jobs/triggers", json=other)).status == 409
    for query, count in (("", 2), ("?Worker=echo", 1), ("?Type=@event,@cron", 2), ("?Worker=none", 0)):
        assert len((await body_of(await http.get(f"/jobs/triggers{query}"), 200))["data"]) == count
    first = await body_of(await http.get("/jobs/triggers?Type=@event,@cron&page[size]=1"), 200)
    second = await body_of(await http.get(first["links"]["next"]), 200)
    assert {one["data"][0]["id"] for one in (first, second)} == {trigger, "named"}
    assert "links" not in second or "next" not in second["links"]
    assert (await http.get("/jobs/triggers?page[cursor]=%C3%A4")).status == 400
    patched = await body_of(
        await http.patch(f"/jobs/triggers/{trigger}", json=attributes(arguments="0 5 * * * *", message=2)), 200
    )
    assert (patched["data"]["attributes"]["arguments"], patched["data"]["attributes"]["message"]) == ("0 5 * * * *", 2)
    refused = await http.patch("/jobs/triggers/named", json=attributes(arguments="orders:DELETED"))
    assert refused.status == 422
    launched = await body_of(await http.post(f"/jobs/triggers/{trigger}/launch"), 201)
    assert launched["data"]["attributes"]["trigger_id"] == trigger

    async def counted() -> bool:
        return len((await body_of(await http.get(f"/jobs/triggers/{trigger}/jobs?Limit=5"), 200))["data"]) == 1

    await eventually(counted)
    state = (await body_of(await http.get(f"/jobs/triggers/{trigger}/state"), 200))["data"]
    assert (state["type"], state["attributes"]["last_manual_job_id"]) == ("jobs.state", launched["data"]["id"])
    assert (await http.get(f"/jobs/triggers/{trigger}/jobs?Limit=0")).status == 400
    assert (await http.delete(f"/jobs/triggers/{trigger}")).status == 204
    assert (await http.get(f"/jobs/triggers/{trigger}")).status == 404


async def test_webhook_when_called_then_its_payload_is_in_the_job(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """The id is the secret; who guesses is told nothing."""
    await http.post("/jobs/triggers", json=attributes(type="@webhook", worker="echo", message=None, id="hook"))
    assert (await http.post("/jobs/webhooks/hook?Manual=true", json={"paid": True})).status == 204
    assert (await http.post("/jobs/webhooks/hook")).status == 204

    async def both() -> list[Any] | None:
        found = await JobStore(connection, db).database.with_prefix("")
        found = [job for job in found if job.get("trigger_id") == "hook"]
        return found if len(found) == 2 else None

    jobs = await eventually(both)
    assert sorted((job.get("payload"), job.get("manual_execution", False)) for job in jobs if job.get("payload")) == [
        ({"paid": True}, True)
    ]
    assert (await http.post("/jobs/webhooks/other", json=1)).status == 404
    as_json = {"Content-Type": "application/json"}
    assert (await http.post("/jobs/webhooks/hook", data=b"{", headers=as_json)).status == 400
    assert (await http.post("/jobs/webhooks/hook", data=b"a=b")).status == 415
    huge = b'"' + b"x" * (connection.settings.max_message_bytes + 70_000) + b'"'
    assert (await http.post("/jobs/webhooks/hook", data=io.BytesIO(huge), headers=as_json)).status == 413


async def test_client_job_when_its_client_has_done_it_then_ended(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """No daemon does it; no other job may be ended so."""
    await http.post("/jobs/triggers", json=attributes(type="@client", message=None, id="c", worker="client"))
    job = (await body_of(await http.post("/jobs/triggers/c/launch"), 201))["data"]["id"]
    ended = await body_of(await http.patch(f"/jobs/{job}", json=attributes(state="errored", error="no paper")), 200)
    assert (ended["data"]["attributes"]["state"], ended["data"]["attributes"]["error"]) == ("errored", "no paper")
    await http.post("/jobs/queue/echo", json=attributes(arguments=1, id="own"))
    assert (await http.patch("/jobs/own", json=attributes(state="done"))).status == 403
    assert (await http.patch(f"/jobs/{job}", json=attributes(state="odd"))).status == 422


async def test_queues_daemons_and_health_when_asked_then_told(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], start: Start
) -> None:
    """What who watches wants to know."""
    system = await start(echo)
    await http.post("/jobs/queue/echo", json=attributes(arguments=1))
    daemons = (await body_of(await http.get("/daemons"), 200))["data"]
    assert [one["id"] for one in daemons] == [system.broker.daemon.id]
    assert (await body_of(await http.post("/queues/echo/pause"), 200))["meta"] == {"changed": True}
    await eventually(lambda: system.broker.daemon.paused == {"echo"})
    (queue,) = (await body_of(await http.get("/queues"), 200))["data"]
    assert (queue["id"], queue["attributes"]["paused"]) == ("echo", True)
    assert (await body_of(await http.post("/queues/echo/resume"), 200))["data"]["attributes"] == {"paused": False}

    async def is_well(path: str) -> bool:  # CouchDB may take longer than a probe waits, on a busy machine
        health = await http.get(path)
        return (health.status, (await health.json())["status"]) == (200, "ok")

    for path in ("/health/live", "/health/ready"):
        await eventually(lambda path=path: is_well(path))


async def test_metrics_when_scraped_then_parsed_and_true(
    connection: Connection, db: Prefixer, start: Start, settings_for: Callable[..., Any]
) -> None:
    """By the parser of Prometheus; the counts are those of the documents."""
    system = await start(echo)
    async with TestClient(TestServer(make_app(connection, system.broker.runtime))) as http:
        for number in range(5):
            await http.post("/jobs/queue/echo", json=attributes(arguments=number, id=f"job-{number}"))
        await http.post("/jobs/queue/echo", json=attributes(arguments="fail", options={"max_exec_count": 1}))
        await eventually(lambda: sum(system.broker.runtime.stats.ended.values()) == 6)
        scraped = await http.get("/metrics")
        assert scraped.status == 200
        families = {one.name: one for one in text_string_to_metric_families(await scraped.text())}
    samples = {(one.labels["worker"], one.labels["outcome"]): one.value for one in families["couchjobs_tries"].samples}
    assert samples == {("echo", "done"): 5, ("echo", "failed"): 1}
    counts = [one.value for one in families["couchjobs_run_seconds"].samples if one.name.endswith("_count")]
    assert counts == [6]
    assert families["couchjobs_couchdb_up"].samples[0].value == 1
    assert families["couchjobs_daemons"].samples[0].value == 1
    assert {one.labels["result"] for one in families["couchjobs_claims"].samples} == {"ours"}
    assert families["couchjobs_wait_seconds"].samples
    assert families["couchjobs_feed_age_seconds"].samples[0].value == 0
    asked = {one.labels["request"] for one in families["couchjobs_couchdb_seconds"].samples}
    assert {"POST _bulk_docs", "POST _bulk_get", "GET _view"} <= asked, "those of this server's own connection"
    assert sum(one.value for one in families["couchjobs_group_commit_documents"].samples if "_sum" in one.name) == 6


SCOPES = {
    "mail": ["jobs:POST,GET:sendmail:worker"],
    "watch": ["jobs:GET", "queues:GET", "daemons:GET", "metrics:GET"],
    "triggers": ["triggers:ALL:@webhook:type"],
    "admin": ["*"],
}
MAIL, WATCH, TRIGGERS, ADMIN = 1, 2, 4, 8
NEW_HOOK = attributes(type="@webhook", worker="w", message=None)
NEW_CRON = attributes(type="@cron", arguments="0 0 * * * *", worker="w", message=None)
ALLOWED = [
    ("POST", "/jobs/queue/sendmail", attributes(arguments=1), MAIL | ADMIN),
    ("POST", "/jobs/queue/other", attributes(arguments=1), ADMIN),
    ("GET", "/jobs/queue/sendmail", None, MAIL | WATCH | ADMIN),
    ("GET", "/jobs/queue/other", None, WATCH | ADMIN),
    ("GET", "/jobs", None, MAIL | WATCH | ADMIN),
    ("GET", "/jobs/triggers", None, TRIGGERS | ADMIN),
    ("GET", "/jobs?worker=sendmail", None, MAIL | WATCH | ADMIN),
    ("GET", "/jobs/mine", None, MAIL | WATCH | ADMIN),
    ("GET", "/jobs/theirs", None, WATCH | ADMIN),
    ("POST", "/jobs/mine/cancel", None, MAIL | ADMIN),
    ("POST", "/jobs/theirs/cancel", None, ADMIN),
    ("POST", "/jobs/cancel?worker=sendmail", None, MAIL | ADMIN),
    ("POST", "/jobs/retry", None, ADMIN),
    ("DELETE", "/jobs/purge", None, ADMIN),
    ("POST", "/jobs/triggers", NEW_HOOK, TRIGGERS | ADMIN),
    ("POST", "/jobs/triggers", NEW_CRON, ADMIN),
    ("GET", "/jobs/triggers/cron", None, ADMIN),
    ("PATCH", "/jobs/triggers/hook", attributes(message=1), TRIGGERS | ADMIN),
    ("GET", "/queues", None, MAIL | WATCH | TRIGGERS | ADMIN),
    ("POST", "/queues/sendmail/pause", None, ADMIN),
    ("GET", "/daemons", None, WATCH | ADMIN),
    ("GET", "/metrics", None, WATCH | ADMIN),
]


async def test_tokens_when_used_then_allowed_what_their_scopes_say(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """A table of requests by four tokens; nobody without one; none of them is stored as it is."""
    for job_id, name in (("mine", "sendmail"), ("theirs", "other")):
        await http.post(f"/jobs/queue/{name}", json=attributes(arguments=1, id=job_id, delay="1h"))
    for trigger_id, kind in (("hook", NEW_HOOK), ("cron", NEW_CRON)):
        await http.post("/jobs/triggers", json=attributes(**kind["data"]["attributes"], id=trigger_id))
    made = {name: await create_token(connection, db, name, scopes) for name, scopes in SCOPES.items()}
    stored = str(await connection.control.with_prefix("token:"))
    assert not any(token.rpartition("_")[2] in stored for token in made.values())
    async with TestClient(TestServer(make_app(connection))) as guarded:
        for verb, path, body, who in ALLOWED:
            for bit, name in enumerate(SCOPES):
                headers = {"Authorization": f"Bearer {made[name]}"}
                response = await guarded.request(verb, path, json=body, headers=headers)
                allowed = bool(who & (1 << bit))
                assert (response.status != 403) is allowed, (name, verb, path, response.status)
                assert response.status < 500
            assert (await guarded.request(verb, path, json=body)).status == 401
        for path, name, seen in (("/jobs", "mail", {"mine"}), ("/jobs", "watch", {"mine", "theirs"})):
            listed = await guarded.get(path, headers={"Authorization": f"Bearer {made[name]}"})
            found = {one["id"] for one in (await listed.json(content_type=None))["data"]}
            assert found & {"mine", "theirs"} == seen
        assert (await guarded.get("/jobs", headers={"Authorization": "Bearer cj_odd"})).status == 401
        wrong = made["admin"][:-1] + ("0" if made["admin"][-1] != "0" else "1")
        assert (await guarded.get("/jobs", headers={"Authorization": f"Bearer {wrong}"})).status == 401
        assert {one["name"] for one in await tokens(connection, db)} == set(SCOPES)
        await revoke_token(connection, db, made["watch"].split("_")[1])

        async def is_refused() -> bool:
            answered = await guarded.get("/jobs", headers={"Authorization": f"Bearer {made['watch']}"})
            return answered.status == 401

        await eventually(is_refused, 3)
        assert (await guarded.get("/health/live")).status == 200
        with pytest.raises(ConfigurationError):
            await revoke_token(connection, Prefixer("", "another"), made["mail"].split("_")[1])


async def test_event_trigger_when_a_token_makes_it_then_only_of_listed_databases(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Without a list, it could have documents copied into jobs that its holder may not read."""
    token = await create_token(connection, db, "any", ["triggers"])
    made = attributes(type="@event", arguments="secrets:CREATED", worker="w", message=None)
    async with TestClient(TestServer(make_app(connection))) as guarded:
        headers = {"Authorization": f"Bearer {token}"}
        assert (await guarded.post("/jobs/triggers", json=made, headers=headers)).status == 403
        await write_list(connection, db, ["orders"])
        assert (await guarded.post("/jobs/triggers", json=made, headers=headers)).status == 403
        made = attributes(type="@event", arguments="orders:CREATED", worker="w", message=None)
        assert (await guarded.post("/jobs/triggers", json=made, headers=headers)).status == 201


async def test_user_of_couchdb_when_he_asks_then_as_his_roles_say(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], server_url: str
) -> None:
    """An administrator may everything; who is unknown nothing."""
    await create_token(connection, db, "any", ["jobs"])
    user, _, password = server_url.partition("//")[2].partition("@")[0].partition(":")
    good = base64.b64encode(f"{user}:{password}".encode()).decode()
    bad = base64.b64encode(f"{user}:wrong".encode()).decode()
    async with TestClient(TestServer(make_app(connection))) as guarded:
        assert (await guarded.get("/jobs", headers={"Authorization": f"Basic {good}"})).status == 200
        assert (await guarded.get("/jobs", headers={"Authorization": f"Basic {bad}"})).status == 401


async def test_server_when_open_then_only_for_this_machine(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of other hosts change nothing, a name that was bound to it sees nothing, and nobody asks too often."""
    push = attributes(arguments=1)
    foreign = {"Origin": "http://evil.example"}
    assert (await http.post("/jobs/queue/echo", json=push, headers=foreign)).status == 403
    assert (await http.get("/jobs", headers={"Host": "evil.example"})).status == 403
    with pytest.raises(ConfigurationError, match="make a token first"):
        await HttpServer(connection, ("0.0.0.0", 0)).open()  # noqa: S104  it refuses
    server = HttpServer(connection, ("127.0.0.1", 0))
    await server.start()
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigurationError, match="in use"):
        await HttpServer(connection, ("127.0.0.1", port)).open()
    await server.stop()
    monkeypatch.setattr(gate, "_BURST", 3.0)
    monkeypatch.setattr(gate, "_PER_S", 0.1)
    async with TestClient(TestServer(make_app(connection))) as slow:
        statuses = [(await slow.get("/jobs")).status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]


async def test_tokens_when_the_last_is_revoked_then_nobody_may_what_needed_one(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither here, nor where it listens for other machines, which is never open."""
    monkeypatch.setattr(gate, "_LOOK_S", 0.0)
    token = await create_token(connection, db, "any", ["*"])
    async with TestClient(TestServer(make_app(connection))) as here:
        assert (await here.get("/jobs")).status == 401
        await revoke_token(connection, db, token.split("_")[1])
        assert (await here.get("/jobs")).status == 401
    async with TestClient(TestServer(make_app(connection, gate=gate.Gate(connection, may_be_open=False)))) as elsewhere:
        assert (await elsewhere.get("/jobs")).status == 401
    async with TestClient(TestServer(make_app(connection))) as started_anew:
        assert (await started_anew.get("/jobs")).status == 401
    wanted = await connection.control.get("token:wanted")
    await connection.control.delete("token:wanted", wanted["_rev"])
    older = await create_token(connection, db, "of an older version", ["*"])
    wanted = await connection.control.get("token:wanted")
    await connection.control.delete("token:wanted", wanted["_rev"])
    await revoke_token(connection, db, older.split("_")[1])
    wanted = await connection.control.get("token:wanted")
    await connection.control.delete("token:wanted", wanted["_rev"])
    async with TestClient(TestServer(make_app(connection))) as open_one:
        assert (await open_one.get("/jobs")).status == 200
        assert (await open_one.get("/jobs", headers={"Host": "127.0.0.1:99999"})).status == 200


async def test_password_when_wrong_then_couchdb_is_not_asked_again_at_once(
    connection: Connection, db: Prefixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five of them lock the account for the host: this server's own, perhaps."""
    await create_token(connection, db, "any", ["jobs"])
    asked: list[str] = []

    async def user_of(headers: dict[str, str]) -> None:
        asked.append(headers["Authorization"])

    monkeypatch.setattr(connection.server, "user_of", user_of)
    async with TestClient(TestServer(make_app(connection))) as guarded:
        for number in range(5):
            shown = base64.b64encode(f"admin:wrong-{number}".encode()).decode()
            answered = await guarded.get("/jobs", headers={"Authorization": f"Basic {shown}"})
            assert answered.status == (429 if number else 401)
    assert len(asked) == 1


async def test_push_when_the_id_is_anothers_job_then_nothing_of_it_is_told(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Neither to whom may not see it, nor as if it were the one that was pushed."""
    jobs = connection.database(db.database("jobs"))
    await put_on_all(jobs, {"_id": "one", "worker": "private", "message": "hidden", "state": "queued"})
    await put_on_all(jobs, {"_id": "own", "worker": "greet", "message": 1, "state": "queued"})
    assert (await http.post("/jobs/queue/greet", json=attributes(arguments=1, id="one"))).status == 409
    token = await create_token(connection, db, "any", ["jobs:POST:greet:worker"])
    async with TestClient(TestServer(make_app(connection))) as guarded:
        headers = {"Authorization": f"Bearer {token}"}
        pushed = await guarded.post("/jobs/queue/greet", json=attributes(arguments=1, id="one"), headers=headers)
        assert pushed.status == 409
        assert "hidden" not in await pushed.text()
        again = await guarded.post("/jobs/queue/greet", json=attributes(arguments=1, id="own"), headers=headers)
        assert again.status == 409, "it may push, and not see"


async def test_request_when_it_is_none_then_refused_by_name(http: TestClient[Any, Any]) -> None:
    """What, where, how to mend it."""
    assert (await http.post("/jobs/queue/echo", data=b"x=1")).status == 415
    error = (await body_of(await http.post("/jobs/queue/echo", json=[1]), 400))["errors"][0]
    assert (error["title"], error["source"]) == ("Bad Request", {"pointer": "/data"})
    error = (await body_of(await http.post("/jobs/queue/echo", json=attributes(argumens=1)), 422))["errors"][0]
    assert error["source"] == {"pointer": "/data/attributes/argumens"}
    assert (await http.get("/nowhere")).status == 404
    assert (await http.put("/jobs")).status == 405
    assert (await http.delete("/jobs/purge?duration=soon")).status == 400
    assert (await http.post("/jobs/triggers", json=attributes(type="@odd", worker="w"))).status == 422
    hidden = attributes(type="@webhook", worker="w", id="_design/x")
    assert (await http.post("/jobs/triggers", json=hidden)).status == 422
    assert (await http.post("/jobs/triggers", json=attributes(type="@cron", arguments="x", worker="w"))).status == 400
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await http.post("/jobs/queue/echo", data=b"no gzip", headers=packed)).status == 400


async def test_parameter_when_no_route_knows_it_then_refused_and_nothing_is_changed(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """A filter that is misspelt lets nothing through; who calls a webhook adds what he likes."""
    jobs = connection.database(db.database("jobs"))
    await jobs.put({"_id": "old", "worker": "w", "state": "done", "queued_at": "2020-01-01T00:00:00Z"})
    await jobs.put({"_id": "new", "worker": "w", "message": None, "state": "queued"})
    for verb, path, name in (
        ("DELETE", "/jobs/purge?duration=1s&worker=nosuch", "worker"),
        ("POST", "/jobs/cancel?wroker=nosuch", "wroker"),
        ("POST", "/jobs/retry?Worker=nosuch", "Worker"),
        ("GET", "/jobs?wroker=x", "wroker"),
        ("GET", "/jobs/new?worker=x", "worker"),
    ):
        refused = (await body_of(await http.request(verb, path), 400))["errors"][0]
        assert refused["source"] == {"parameter": name}
    assert (await jobs.get("old"))["state"] == "done"
    assert "cancel_requested" not in await jobs.get("new")
    assert (await http.get("/health/live?from=probe")).status == 200


def test_scope_when_it_is_none_then_refused() -> None:
    """By name."""
    for text in ("odd", "jobs:PUT", "jobs:GET::worker", "a:b:c:d:e", ""):
        with pytest.raises(ConfigurationError):
            read_scope(text)
    assert read_address("8080") == ("127.0.0.1", 8080)
    assert read_address("[::1]:80") == ("::1", 80)
    for text in ("x", "h:", "h:99999"):
        with pytest.raises(ConfigurationError):
            read_address(text)


async def told(stream: ClientResponse, count: int) -> tuple[list[dict[str, Any]], str]:
    """So many events of a stream, and the last id that came with them."""
    found: list[dict[str, Any]] = []
    last = ""
    async with asyncio.timeout(20):
        while len(found) < count or not last:
            line = (await stream.content.readline()).decode()
            if line.startswith("data: "):
                found.append(orjson.loads(line.removeprefix("data: ")))
            last = line.removeprefix("id: ").strip() if line.startswith("id: ") else last
    return found, last


async def test_events_when_read_then_what_becomes_of_jobs_and_what_came_meanwhile(
    connection: Connection, db: Prefixer, start: Start
) -> None:
    """A reader that comes back with the last id is told what it has missed; each sees what it may."""
    token = await create_token(connection, db, "any", ["jobs:GET:echo:worker"])
    every = {"Authorization": f"Bearer {await create_token(connection, db, 'all', ['*'])}"}
    async with TestClient(TestServer(make_app(connection))) as guarded:
        headers = {"Authorization": f"Bearer {token}"}
        assert (await guarded.get("/events?worker=other", headers=headers)).status == 403
        async with guarded.get("/events", headers=headers) as stream:
            assert (stream.status, stream.content_type) == (200, "text/event-stream")
            for job_id, name in (("hidden", "other"), ("one", "echo")):
                await guarded.post(f"/jobs/queue/{name}", json=attributes(arguments=1, id=job_id), headers=every)
            (event, *_), last = await told(stream, 1)
            assert (event["id"], event["worker"], event["state"]) == ("one", "echo", "queued")
            assert "arguments" not in event
        await start(echo)
        await wait(db, "one", 20)
        again = {**headers, "Last-Event-ID": last}
        async with guarded.get("/events?worker=echo", headers=again) as stream:
            event = {}
            while event.get("state") != "done":  # a copy that is behind tells what it was before, too
                (*_, event), _ = await told(stream, 1)
                assert event["id"] == "one"
            await guarded.post("/jobs/queue/echo", json=attributes(arguments=1, id="two"), headers=every)
            events, last = await told(stream, 1)
            assert {one["state"] for one in events} <= {"queued", "running", "done"}
        await wait(db, "two", 20)
        async with guarded.get("/events?worker=echo", headers={**headers, "Last-Event-ID": last}) as stream:
            await guarded.post("/jobs/queue/echo", json=attributes(arguments=1, id="three"), headers=every)
            assert "one" not in {one["id"] for one in (await told(stream, 2))[0]}, "told already"
        assert not {task.get_name() for task in asyncio.all_tasks() if "for readers" in task.get_name()} or (
            await eventually(lambda: not any("for readers" in task.get_name() for task in asyncio.all_tasks()))
        ), "nobody reads"
        odd = {**headers, "Last-Event-ID": "!!"}
        assert (await guarded.get("/events?worker=echo", headers=odd)).status == 400


async def test_events_when_a_reader_does_not_keep_up_then_dropped_and_nobody_waits(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are told; the memory of the server is bounded."""
    monkeypatch.setattr(events, "_MOST_BEHIND", 5)
    reader = events._Reader(access.Caller("any", access._ALL), None)
    for number in range(7):
        reader.tell([events.Event("w", "jobs", str(number), b"data: 1\n\n")])
    assert reader.is_dropped
    assert len(reader.waiting) == 6, "nothing more is kept for it"
    async with http.get("/events") as stream:
        for number in range(20):
            await http.post("/jobs/queue/echo", json=attributes(arguments=number, id=f"job-{number}"))
        found, _ = await told(stream, 1)
        assert found[0]["id"] == "job-0"
