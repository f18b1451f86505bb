"""Webhooks of services: whose they must be, how they come, and that each is one job."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from waiting import eventually

from couchjobs.couch.connection import Connection
from couchjobs.errors import MalformedTriggerError
from couchjobs.http.server import make_app
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.secrets import write_secret
from couchjobs.scheduler.store import TriggerStore
from couchjobs.triggers.delivery import Delivery, RefusedDelivery, charset_of, payload_of, read_delivery
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

GITHUB = {"hmac": "sha256", "header": "X-Hub-Signature-256", "secret": "github", "prefix": "sha256="}


def webhook(**fields: Any) -> TriggerInfos:
    """A trigger that says so."""
    return TriggerInfos(type="@webhook", worker="w", id="hook", **fields)


def github(body: bytes, secret: str = "s3cret") -> dict[str, str]:
    """The headers with which that service sends a body."""
    return {
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        "X-GitHub-Delivery": hashlib.sha1(body).hexdigest(),  # noqa: S324  an id
        "Content-Type": "application/json",
    }


def stripe(body: bytes, at: float, secret: str = "whsec") -> dict[str, str]:
    """The same of another one."""
    signature = hmac.new(secret.encode(), f"{at:.0f}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={at:.0f},v1={'0' * 64},v1={signature}", "Content-Type": "application/json"}


@pytest.fixture
async def http(connection: Connection) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of a server for the tenant of this test."""
    async with TestClient(TestServer(make_app(connection))) as client:
        yield client


async def jobs_of(connection: Connection, db: Prefixer) -> list[dict[str, Any]]:
    """All jobs of webhooks."""
    return [job for job in await JobStore(connection, db).database.with_prefix("") if job.get("trigger_id")]


async def test_delivery_when_signed_then_taken_once_and_refused_where_it_is_not(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Each sent twice, as services do; the bytes that were sent are what is signed."""
    await write_secret(connection, db, "github", "s3cret")
    store = TriggerStore(connection, db)
    await store.add(webhook(verify=GITHUB, unique_by="header:X-GitHub-Delivery", headers=["X-GitHub-Delivery"]))
    for number in range(5):
        body = b'{ "number":  %d }' % number
        for _ in range(2):
            assert (await http.post("/jobs/webhooks/hook", data=body, headers=github(body))).status == 204
    for headers in (github(b"other"), github(b"{}", "wrong"), {"Content-Type": "application/json"}):
        refused = await http.post("/jobs/webhooks/hook", data=b"{}", headers=headers)
        assert refused.status == 403
        assert "signature" not in await refused.text()
    jobs = await jobs_of(connection, db)
    assert sorted(job["payload"]["number"] for job in jobs) == [0, 1, 2, 3, 4]
    assert all(job["payload_headers"].keys() == {"X-GitHub-Delivery"} for job in jobs)
    await write_secret(connection, db, "github", None)
    assert (await http.post("/jobs/webhooks/hook", data=b"{}", headers=github(b"{}"))).status == 403


async def test_delivery_when_of_a_form_text_or_bytes_then_as_the_trigger_accepts_it(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any], start: Callable[..., Any]
) -> None:
    """Bytes become an attachment of the job; what is not accepted is refused by its media type."""
    await TriggerStore(connection, db).add(webhook(accept=["form", "text", "raw"]))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await http.post("/jobs/webhooks/hook", data=b"a=1&b=2&b=3&c=", headers=form)).status == 204
    assert (await http.post("/jobs/webhooks/hook", data="hällo")).status == 204
    picture = {"Content-Type": "image/png"}
    assert (await http.post("/jobs/webhooks/hook", data=io.BytesIO(b"\x89PNG"), headers=picture)).status == 204
    jobs = {str(job["payload"]): job for job in await jobs_of(connection, db)}
    assert str({"a": "1", "b": ["2", "3"], "c": ""}) in jobs
    assert "hällo" in jobs
    (raw,) = [job for job in jobs.values() if "_attachments" in job]
    assert raw["payload"] == {"attachment": "payload", "content_type": "image/png", "length": 4}
    path = f"{JobStore(connection, db).database.path}/{raw['_id']}/payload"

    @worker("w")
    async def work(ctx: WorkerContext) -> Any:
        return ctx.job.payload

    await start(work)

    async def done() -> bool:
        return all(job["state"] == "done" for job in await jobs_of(connection, db))

    await eventually(done)
    assert await connection.server.request_bytes("GET", path) == b"\x89PNG"


def test_stripe_when_its_signature_is_old_or_wrong_then_refused() -> None:
    """With more than one signature, as while a secret is rolled."""
    delivery = read_delivery(webhook(verify={"stripe": "s"}, unique_by="body:data.id"))
    body, present = b'{"data": {"id": "evt"}}', time.time()
    assert delivery.secret == "s"
    delivery.check(body, stripe(body, present), "whsec", present)
    for headers, at in (
        (stripe(body, present - 301), present),
        (stripe(body, present, "other"), present),
        (stripe(b"x", present), present),
        ({}, present),
        ({"Stripe-Signature": "t=,v1="}, present),
        ({"Stripe-Signature": "t=\udcfc,v1=\udcfc"}, present),
    ):
        with pytest.raises(RefusedDelivery):
            delivery.check(body, headers, "whsec", at)
    assert delivery.key({}, {"data": {"id": "evt"}}) == "evt"
    for payload in ({}, {"data": 5}, {"data": {"id": {}}}, None, [1]):
        with pytest.raises(RefusedDelivery):
            delivery.key({}, payload)


def test_hmac_when_base64_then_compared_so() -> None:
    """As shops sign."""
    delivery = read_delivery(
        webhook(verify={"hmac": "sha256", "header": "X-Sign", "secret": "s", "encoding": "base64"})
    )
    shown = base64.b64encode(hmac.new(b"key", b"body", hashlib.sha256).digest()).decode()
    delivery.check(b"body", {"X-Sign": shown}, "key", 0.0)
    with pytest.raises(RefusedDelivery):
        delivery.check(b"body", {"X-Sign": shown.lower()}, "key", 0.0)


async def test_delivery_when_its_trigger_misspells_what_it_checks_then_nothing_is_taken(
    connection: Connection, db: Prefixer, http: TestClient[Any, Any]
) -> None:
    """Whoever wrote it believes that signatures are checked; who sends something is told nothing of it."""
    triggers = TriggerStore(connection, db).database
    for name, field in (("a", {"verfy": GITHUB}), ("b", {"verify": {"hmac": "md5"}}), ("c", {"verified_by": "ann"})):
        await triggers.put({"_id": name, "type": "@webhook", "worker": "w", "message": None, **field})
        answered = await http.post(f"/jobs/webhooks/{name}", json={})
        assert answered.status == (204 if name == "c" else 403)
        assert "hmac" not in await answered.text()
    assert [job["trigger_id"] for job in await jobs_of(connection, db)] == ["c"]
    with pytest.raises(MalformedTriggerError, match=r"verfy is no field: did you mean verify\?"):
        parse_trigger(webhook(verfy=GITHUB))


@pytest.mark.parametrize(
    "fields",
    [
        {"verify": {"hmac": "md5", "header": "h", "secret": "s"}},
        {"verify": {"hmac": "sha256", "secret": "s"}},
        {"verify": "sha256"},
        {"verify": {"stripe": ""}},
        {"headers": "X-One"},
        {"unique_by": "X-One"},
        {"unique_by": "header:X", "debounce": 5},
        {"accept": ["json", "raw"], "debounce": 5},
        {"accept": "raw", "debounce": 5},
        {f"verif{number}": 1 for number in range(2000)},
        {"accept": "xml"},
        {"type": "@in", "arguments": "1h", "accept": "json"},
    ],
)
def test_trigger_when_it_says_that_wrongly_then_refused(fields: dict[str, Any]) -> None:
    """Where it is written, and not when the first delivery comes."""
    infos = TriggerInfos(**({"type": "@webhook", "worker": "w"} | fields))
    with pytest.raises(MalformedTriggerError):
        parse_trigger(infos)


def test_form_when_one_name_comes_very_often_then_refused_at_once() -> None:
    """Nobody else waits for it."""
    began = time.monotonic()
    assert payload_of("form", b"a=1&" * 9000, "")["a"] == ["1"] * 9000
    with pytest.raises(RefusedDelivery):
        payload_of("form", b"a=1&" * 200_000, "")
    assert time.monotonic() - began < 5


def test_kind_when_the_media_type_is_another_then_raw_or_refused() -> None:
    """JSON has many names."""

    def kind(accept: Any, content_type: str) -> str:
        delivery: Delivery = read_delivery(webhook(accept=accept))
        return delivery.kind_of(content_type)

    assert kind("json", "application/cloudevents+json") == "json"
    assert kind(["json", "raw"], "application/xml") == "raw"
    assert kind("raw", "application/json") == "raw"
    with pytest.raises(RefusedDelivery):
        kind("json", "text/plain")


def test_payload_when_in_another_charset_then_read_in_it() -> None:
    """As the Content-Type says; one that nobody knows is refused."""
    latin = {"Content-Type": "text/plain; charset=iso-8859-1"}
    assert payload_of("text", "caf\u00e9".encode("latin-1"), "text/plain", charset_of(latin)) == "caf\u00e9"
    assert payload_of("form", b"a=%E9&b=1", "", charset_of(latin)) == {"a": "\u00e9", "b": "1"}
    assert charset_of({}) == charset_of({"Content-Type": "text/plain"}) == ""
    assert payload_of("form", b"a=%E9", "") == {"a": "\ufffd"}  # the form itself may say in which, as some services do
    for charset, raw, status in (
        ("klingon", b"a", 415),
        ("punycode", b"a" * 1_000_000, 415),  # it takes a minute
        ("idna", b"a", 415),
        ("utf-8", b"a=%E9", 400),
        ("utf-8", "\u00e9".encode("latin-1"), 400),
    ):
        with pytest.raises(RefusedDelivery) as caught:
            payload_of("form", raw, "", charset)
        assert caught.value.status == status


def test_kind_when_the_body_is_empty_then_what_is_expected() -> None:
    """It has no media type that would say anything."""
    for accept, payload in (("json", None), ("form", {}), ("text", ""), (["form", "json"], {})):
        delivery: Delivery = read_delivery(webhook(accept=accept))
        assert payload_of(delivery.kind_of("application/octet-stream", is_empty=True), b"", "") == payload


def test_headers_when_one_is_no_utf8_then_kept_as_far_as_it_can_be_read() -> None:
    """It is no reason to refuse a delivery."""
    delivery: Delivery = read_delivery(webhook(headers=["X-Odd"]))
    assert delivery.kept({"X-Odd": b"caf\xe9".decode("utf-8", "surrogateescape")}) == {"X-Odd": "caf\ufffd"}
