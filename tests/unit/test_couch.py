"""Group commit, settling, credentials and settings, without a network."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keyring
import keyring.backend
import orjson
import pytest
import trustme
from aiohttp import web

from couchjobs.couch.client import CouchServer
from couchjobs.couch.credentials import find_credentials
from couchjobs.couch.database import Database
from couchjobs.couch.settle import settle
from couchjobs.couch.writer import GroupWriter, Written
from couchjobs.errors import BadRequest, ConfigurationError, NotFound, TooLarge, Unavailable
from couchjobs.recovery.rendezvous import BUCKETS, bucket, buckets_of, first_right
from couchjobs.settings import load_settings
from couchjobs.supervisor import Supervisor, backoff


class ScriptedServer(CouchServer):
    """A server whose answers a function makes up."""

    def __init__(self, answer: Callable[[str, str, Any], Any]) -> None:
        super().__init__("http://nowhere.invalid")
        self.requests: list[tuple[str, str, Any]] = []
        self._answer = answer

    async def request(self, method: str, path: str, **more: Any) -> Any:
        """Answer at the next turn of the loop."""
        body = orjson.loads(more["body"]) if more.get("body") else None
        self.requests.append((method, path, body))
        await asyncio.sleep(0)
        return self._answer(method, path, body)


def writer_on(answer: Callable[[str, str, Any], Any], **options: Any) -> tuple[GroupWriter, ScriptedServer]:
    """A writer on a scripted server."""
    server = ScriptedServer(answer)
    return GroupWriter(Database(server, "db"), **options), server


def all_ok(method: str, path: str, body: Any) -> Any:
    """Every document is stored."""
    return [{"ok": True, "id": doc["_id"], "rev": "1-a"} for doc in body["docs"]]


async def test_writer_when_many_wait_then_they_go_together() -> None:
    """At most two requests at a time, at most 500 documents each."""
    writer, server = writer_on(all_ok)
    answers = await asyncio.gather(*(writer.write({"_id": str(n)}) for n in range(1200)))
    assert all(answer.written is Written.OK for answer in answers)
    assert [len(body["docs"]) for _, _, body in server.requests] == [500, 500, 200]
    await writer.close()


async def test_writer_when_a_few_may_be_held_then_they_go_with_the_next_that_may_not() -> None:
    """Or as soon as they are many, or the moment is over, or the writer is closed."""
    writer, server = writer_on(all_ok)
    writer.may_hold = lambda: True
    held = writer.submit({"_id": "held"})
    for _ in range(10):
        await asyncio.sleep(0)
    assert not server.requests
    writer.may_hold = lambda: False
    await asyncio.gather(held, writer.write({"_id": "urgent"}))
    writer.may_hold = lambda: True
    await asyncio.gather(*(writer.write({"_id": str(n)}) for n in range(20)))
    await writer.write({"_id": "alone"})
    last = writer.submit({"_id": "last"})
    await writer.close()
    assert last.done()
    assert [len(body["docs"]) for _, _, body in server.requests] == [2, 20, 1, 1]


async def test_writer_when_documents_are_large_then_smaller_batches() -> None:
    """Bytes are limited too."""
    writer, server = writer_on(all_ok, max_bytes=1000)
    await asyncio.gather(*(writer.write({"_id": str(n), "x": "y" * 400}) for n in range(5)))
    assert [len(body["docs"]) for _, _, body in server.requests] == [2, 2, 1]


async def test_writer_when_rows_differ_then_each_caller_gets_his_own() -> None:
    """Matched by id, whatever the order; a row that is missing is unknown."""
    rows = [
        {"id": "conflict", "error": "conflict", "reason": "r"},
        {"id": "forbidden", "error": "forbidden", "reason": "no"},
        {"id": "special", "error": "doc_validation", "reason": "r"},
        {"id": "broken", "error": "internal_server_error", "reason": "r"},
        {"id": "twice", "error": "conflict", "reason": "r"},
        {"id": "accepted", "ok": True, "accepted": True, "rev": "1-b"},
        {"id": "ok", "ok": True, "rev": "1-a"},
        {"id": "twice", "ok": True, "rev": "1-c"},
    ]
    writer, _ = writer_on(lambda method, path, body: rows)
    names = ["ok", "accepted", "conflict", "forbidden", "special", "broken", "missing", "twice", "twice"]
    answers = await asyncio.gather(*(writer.write({"_id": name}) for name in names))
    assert [answer.written.value for answer in answers] == [
        "ok",
        "accepted",
        "conflict",
        "forbidden",
        "forbidden",
        "unknown",
        "unknown",
        "conflict",
        "ok",
    ]
    assert answers[3].reason == "forbidden: no"
    assert answers[1].stored


async def test_writer_when_the_request_fails_then_unknown_or_an_error() -> None:
    """No answer: it may have happened. No database: an error for everybody."""

    def unavailable(method: str, path: str, body: Any) -> Any:
        raise Unavailable("lost")

    writer, _ = writer_on(unavailable)
    assert (await writer.write({"_id": "a"})).written is Written.UNKNOWN

    def missing(method: str, path: str, body: Any) -> Any:
        raise NotFound("no database")

    writer, _ = writer_on(missing)
    with pytest.raises(NotFound):
        await writer.write({"_id": "a"})
    with pytest.raises(BadRequest, match="not JSON"):
        await writer.write({"_id": "a", "x": object()})


@pytest.mark.parametrize("error", [TooLarge("413", 413), BadRequest("400", 400)])
async def test_writer_when_one_document_spoils_the_batch_then_it_alone_is_refused(error: Exception) -> None:
    """The request is halved until it stands alone."""

    def answer(method: str, path: str, body: Any) -> Any:
        if any(doc["_id"] == "bad" for doc in body["docs"]):
            raise error
        return all_ok(method, path, body)

    writer, _ = writer_on(answer)
    names = [f"good-{n}" for n in range(20)]
    names.insert(7, "bad")
    answers = await asyncio.gather(*(writer.write({"_id": name}) for name in names))
    refused = [name for name, answer in zip(names, answers, strict=True) if answer.written is not Written.OK]
    assert refused == ["bad"]
    assert answers[7].written is Written.FORBIDDEN


async def test_writer_when_a_caller_is_cancelled_then_the_others_get_their_answers() -> None:
    """And the write happens all the same."""
    writer, server = writer_on(all_ok)
    first, second = asyncio.create_task(writer.write({"_id": "a"})), asyncio.create_task(writer.write({"_id": "b"}))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).written is Written.OK
    assert len(server.requests[0][2]["docs"]) == 2


async def test_settle_when_answer_is_lost_then_the_document_decides() -> None:
    """The same content there: stored. Another: a conflict. No server: asked again."""
    stored: dict[str, Any] = {"_id": "a", "_rev": "1-z", "x": 1}
    asked = 0

    def answer(method: str, path: str, body: Any) -> Any:
        nonlocal asked
        asked += 1
        if path.endswith("_bulk_docs"):
            if asked == 1:
                raise Unavailable("lost")
            return [{"id": "a", "error": "conflict", "reason": "r"}]
        if asked == 3:
            raise Unavailable("lost")
        return stored

    writer, _ = writer_on(answer)
    found = await settle(writer, {"_id": "a", "x": 1})
    assert (found.written, found.rev) == (Written.OK, "1-z")
    asked = 0
    stored["x"] = 2
    assert (await settle(writer, {"_id": "a", "x": 1})).written is Written.CONFLICT


async def test_settle_when_patience_ends_then_unknown() -> None:
    """The caller says how long."""

    def unavailable(method: str, path: str, body: Any) -> Any:
        raise Unavailable("down")

    writer, _ = writer_on(unavailable)
    assert (await settle(writer, {"_id": "a"}, patience_s=0.01)).written is Written.UNKNOWN


def test_first_right_when_a_daemon_comes_or_goes_then_only_its_share_moves() -> None:
    """Evenly, and all daemons agree."""
    three, keys = ["a", "b", "c"], [str(n) for n in range(3000)]
    before = {key: first_right(key, three) for key in keys}
    assert before == {key: first_right(key, three[::-1]) for key in keys}
    assert all(900 < list(before.values()).count(daemon) < 1100 for daemon in three)
    after = {key: first_right(key, ["a", "c"]) for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != "b")
    assert first_right("x", []) is None
    assert first_right("x", ["a"]) == "a"


def test_buckets_when_shared_then_each_has_one_owner_and_all_have_about_as_many() -> None:
    """The parts of the daemons are apart, and together everything."""
    daemons = [f"host-{number}" for number in range(8)]
    shares = [buckets_of(daemon, daemons) for daemon in daemons]
    assert sorted(number for share in shares for number in share) == [*range(BUCKETS)]
    assert max(len(share) for share in shares) < 1.5 * BUCKETS / 8
    assert buckets_of("a", ["a"]) == frozenset(range(BUCKETS))
    assert len({bucket(f"job-{number}") for number in range(10_000)}) == BUCKETS


@pytest.mark.parametrize(
    ("url", "environment", "kind"),
    [
        ("http://localhost:5984", {}, "noauth"),
        ("http://ann:hush%40@localhost:5984/", {}, "basic"),
        ("http://localhost", {"USERNAME": "ann", "PASSWORD": "hush@"}, "basic"),
        (
            "http://localhost",
            {"AUTH_TYPE": "COUCHDB_SESSION", "USERNAME": "ann", "PASSWORD": "hush@"},
            "couchdb_session",
        ),
        ("http://ann:hush%40@localhost", {"AUTH_TYPE": "COUCHDB_SESSION"}, "couchdb_session"),
        ("http://localhost", {"BEARER_TOKEN": "hush@"}, "bearertoken"),
        ("http://localhost", {"APIKEY": "hush@"}, "iam"),
    ],
)
async def test_credentials_when_given_then_of_that_kind_and_never_shown(
    url: str, environment: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the URL or the environment."""
    for name, value in environment.items():
        monkeypatch.setenv(f"COUCHJOBS_{name}", value)
    bare, credentials = find_credentials(url)
    assert credentials.kind == kind
    assert "hush" not in bare + repr(credentials) + repr(CouchServer(url))
    assert "hush" not in repr(load_settings(url=url))
    if kind in ("basic", "bearertoken"):
        assert "***" in repr(await credentials.headers())
    if kind == "basic":
        assert await credentials.headers() == {"Authorization": "Basic YW5uOmh1c2hA"}
    if kind == "bearertoken":
        assert await credentials.headers() == {"Authorization": "Bearer hush@"}


def test_credentials_when_in_a_file_then_read(tmp_path: Path) -> None:
    """A file that cannot be read is said plainly."""
    file = tmp_path / "credentials"
    file.write_text("# mine\nCOUCHJOBS_AUTH_TYPE=BASIC\nCOUCHJOBS_USERNAME=ann\nCOUCHJOBS_PASSWORD=a=b\n")
    file.chmod(stat.S_IRUSR)
    assert find_credentials("http://localhost", str(file))[1].kind == "basic"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        find_credentials("http://localhost", str(tmp_path / "nothing"))


@pytest.mark.parametrize("url", ["", "localhost:5984", "ftp://x", "http://", "http://x:port"])
def test_url_when_senseless_then_configuration_error_without_it(url: str) -> None:
    """It might hold a password."""
    with pytest.raises(ConfigurationError, match="must look like"):
        find_credentials(url)


class OnePassword(keyring.backend.KeyringBackend):
    """A keyring that holds one password."""

    priority = 1.0  # type: ignore[assignment]

    def get_password(self, service: str, username: str) -> str | None:
        """Return it for that service and name."""
        return "s3cret" if (service, username) == ("jobs", "w") else None

    def set_password(self, service: str, username: str, password: str) -> None:
        """Do nothing."""

    def delete_password(self, service: str, username: str) -> None:
        """Do nothing."""


async def test_credentials_when_in_the_keyring_then_read_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the name comes from the URL or the environment; one that is not there is told, without secrets."""
    monkeypatch.setattr(keyring, "get_password", OnePassword().get_password)
    monkeypatch.setenv("COUCHJOBS_KEYRING", "jobs")
    _, credentials = find_credentials("http://w@localhost")
    assert (await credentials.headers())["Authorization"] == "Basic " + b64encode(b"w:s3cret").decode()
    monkeypatch.setenv("COUCHJOBS_PASSWORD", "another")
    _, credentials = find_credentials("http://w@localhost")
    assert (await credentials.headers())["Authorization"] == "Basic " + b64encode(b"w:another").decode()
    monkeypatch.delenv("COUCHJOBS_PASSWORD")
    monkeypatch.setenv("COUCHJOBS_USERNAME", "other")
    with pytest.raises(ConfigurationError, match="keyring set jobs other"):
        find_credentials("http://localhost")


async def test_client_when_certificate_is_not_trusted_then_unavailable(tmp_path: Path) -> None:
    """And with the authority in SSL_CERT_FILE, as OpenSSL reads it, the same server is trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def welcome(_request: web.BaseRequest) -> web.Response:
        return web.json_response({"version": "3.5.2"})

    server = await asyncio.get_running_loop().create_server(web.Server(welcome), "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with CouchServer(url) as couch:
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await couch.welcome()
    program = (
        "import asyncio; from couchjobs.couch.client import CouchServer;"
        f"print(asyncio.run(CouchServer({url!r}).welcome()))"
    )
    environment = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", program, env=environment, stdout=asyncio.subprocess.PIPE
    )
    answer, _ = await process.communicate()
    server.close()
    assert b"3.5.2" in answer


def test_settings_when_misspelt_or_senseless_then_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped in silence."""
    monkeypatch.setenv("COUCHJOBS_SHUTDOWN_TIMEOUT", "1m30s")
    assert load_settings().shutdown_timeout == 90
    assert load_settings(shutdown_timeout=5).shutdown_timeout == 5
    monkeypatch.setenv("COUCHJOBS_SHUTDOWN_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="shutdown_timeout"):
        load_settings()
    monkeypatch.setenv("COUCHJOBS_SHUTDOWN_TIMEOUT", "5")
    monkeypatch.setenv("COUCHJOBS_BEAT_INTERVALL", "5")
    with pytest.raises(ConfigurationError, match="did you mean COUCHJOBS_BEAT_INTERVAL"):
        load_settings()
    monkeypatch.delenv("COUCHJOBS_BEAT_INTERVALL")
    with pytest.raises(ConfigurationError, match="colour"):
        load_settings(colour="red")
    assert "COUCHJOBS_URL" not in os.environ


async def test_supervisor_when_a_task_fails_then_started_again_and_counted() -> None:
    """One that returns has ended; stop cancels the rest."""
    runs = 0
    done = asyncio.Event()

    async def fails_twice() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("x")
        done.set()

    supervisor = Supervisor()
    task = supervisor.start("task", fails_twice)
    await asyncio.wait_for(done.wait(), 5)
    await task
    assert supervisor.failures == {"task": 2}
    forever = supervisor.start("forever", asyncio.Event().wait)
    await supervisor.stop()
    assert forever.cancelled()
    assert all(0.05 <= backoff(1) <= 0.1 and backoff(99) <= 10 for _ in range(100))
