"""What a client does when its credentials are refused, run out, or change; and which way its logins go."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme
from aiohttp import web
from waiting import eventually

from couchjobs.couch import client as client_module
from couchjobs.couch import credentials as credentials_module
from couchjobs.couch.client import CouchServer
from couchjobs.couch.database import Database
from couchjobs.couch.login import source_of
from couchjobs.errors import ConfigurationError, Forbidden, Locked, Unauthorized, Unavailable

WRONG = {"error": "unauthorized", "reason": "Name or password is incorrect."}
WELCOME = {"couchdb": "Welcome", "version": "3.5.2"}


def _part(what: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(what).encode()).decode().rstrip("=")


def _token(name: str) -> str:
    """A token as IBM's server gives them, of which the SDK reads when it ends."""
    return f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part({'iat': 1, 'exp': 2**33, 'name': name})}.{'0' * 43}"


FIRST, SECOND = _token("t1"), _token("t2")


class Couch:
    """A server that looks at credentials, and at nothing else."""

    def __init__(self) -> None:
        self.password = "right"
        self.token = FIRST
        self.locked = 0
        self.gives_sessions = self.takes_sessions = True
        self.passing = 0
        """So many requests are still answered 401, by whomever."""
        self.url = ""
        self.asked: list[tuple[str, str, int]] = []

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer and take note."""
        response = await self._answer(request)
        self.asked.append((request.method, request.path, response.status))
        return response

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if self.locked:
            self.locked -= 1
            reason = "Account is temporarily locked due to multiple authentication failures"
            return web.json_response({"error": "forbidden", "reason": reason}, status=403)
        if request.method == "POST":
            return await self._give_token(request)
        if request.path != "/_session" and self.passing:
            self.passing -= 1
            return web.json_response({"error": "unauthorized", "reason": "by whomever"}, status=401)
        if (refused := self._refusal(request)) is not None:
            return web.json_response({"error": "unauthorized", "reason": refused}, status=401)
        if request.path == "/_active_tasks":
            return web.json_response({"error": "unauthorized", "reason": "You are not a server admin."}, status=401)
        return web.json_response(WELCOME)

    async def _give_token(self, request: web.BaseRequest) -> web.Response:
        if request.path == "/_session" and not self.gives_sessions:
            return web.Response(status=405, text="<html>")
        if request.path == "/identity/token":
            key = parse_qs((await request.read()).decode())["apikey"][0]
            if key != self.password:
                return web.json_response({"errorCode": "BXNIM0415E"}, status=400)
            return web.json_response({"access_token": self.token, "expiration": 2**33, "expires_in": 3600})
        if (await request.json())["password"] != self.password:
            return web.json_response(WRONG, status=401)
        answer = web.json_response({"ok": True})
        answer.set_cookie("AuthSession", self.token)
        return answer

    def _refusal(self, request: web.BaseRequest) -> str | None:
        kind, _, shown = request.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            return None if b64decode(shown).decode() == f"ann:{self.password}" else WRONG["reason"]
        if kind == "Bearer":
            return None if shown == self.token else "exp not in future"
        shown = request.cookies.get("AuthSession")
        return None if shown == self.token and self.takes_sessions else "You are not authorized to access this db."

    def count(self, status: int, method: str = "", path: str = "") -> int:
        """How many requests were answered so."""
        return sum(one[2] == status and method in one[0] and path in one[1] for one in self.asked)


@pytest.fixture
async def couch() -> AsyncIterator[Couch]:
    """The server."""
    server = Couch()
    listening = await asyncio.get_running_loop().create_server(web.Server(server.answer), "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield server
    listening.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass for whoever waits to show credentials again."""
    real: list[Callable[[], float]] = []

    def sooner(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        real.append(loop.time)
        monkeypatch.setattr(loop, "time", lambda: real[0]() + seconds)

    return sooner


GIVEN = {
    "password": "COUCHJOBS_USERNAME=ann\nCOUCHJOBS_PASSWORD={0}\n",
    "basic": "COUCHJOBS_AUTH_TYPE=BASIC\nCOUCHJOBS_USERNAME=ann\nCOUCHJOBS_PASSWORD={0}\n",
    "couchdb_session": "COUCHJOBS_AUTH_TYPE=COUCHDB_SESSION\nCOUCHJOBS_USERNAME=ann\nCOUCHJOBS_PASSWORD={0}\n",
    "bearertoken": "COUCHJOBS_BEARER_TOKEN={1}\n",
    "iam": "COUCHJOBS_APIKEY={0}\nCOUCHJOBS_AUTH_URL={2}\n",
}


@pytest.mark.parametrize("kind", GIVEN)
async def test_password_when_changed_on_the_server_then_the_file_is_read_again_and_the_server_left_alone(
    couch: Couch, tmp_path: Path, clock: Callable[[float], None], kind: str
) -> None:
    """One question with what is wrong, then none before a minute, unless the file says something else."""
    file = tmp_path / "credentials"
    file.write_text(GIVEN[kind].format("right", FIRST, couch.url))
    async with CouchServer(couch.url, credentials_file=str(file)) as server:
        assert (await server.welcome())["version"]
        couch.password, couch.token = "new", SECOND
        before = len(couch.asked)
        for _ in range(20):
            with pytest.raises(Unauthorized):
                await server.welcome()
        asked = couch.asked[before:]
        assert len(asked) <= 2, asked  # the request, and who says so: a login, or the session
        clock(30)
        with pytest.raises(Unauthorized, match="shown to it again"):
            await server.welcome()
        assert len(couch.asked[before:]) == len(asked)
        clock(61)
        with pytest.raises(Unauthorized):
            await server.welcome()
        assert len(couch.asked[before:]) in (len(asked) + 1, 2 * len(asked))
        file.write_text(GIVEN[kind].format("new", SECOND, couch.url))
        clock(63)
        assert (await server.welcome())["version"]
        assert couch.count(200) >= 2


async def test_password_when_refused_then_two_daemons_on_a_host_are_never_locked_out(
    couch: Couch, clock: Callable[[float], None]
) -> None:
    """CouchDB locks an account after five failures within five minutes of the first."""
    couch.password = "new"
    async with CouchServer(couch.url.replace("//", "//ann:old@")) as server:
        for second in range(0, 1200, 5):
            clock(second)
            with pytest.raises(Unauthorized):
                await server.welcome()
            couch.asked[:] = [(*one[:2], second) if one[2] == 401 else one for one in couch.asked]
    times = [one[2] for one in couch.asked]
    assert times[:2] == [0, 60]
    assert all(sum(first <= time < first + 300 for time in times) <= 2 for first in times), times


async def test_requests_when_one_cookie_has_expired_then_one_login(couch: Couch, tmp_path: Path) -> None:
    """For forty at a time."""
    file = tmp_path / "credentials"
    file.write_text(GIVEN["couchdb_session"].format("right"))
    async with CouchServer(couch.url, credentials_file=str(file)) as server:
        await server.welcome()
        couch.token = SECOND
        await asyncio.gather(*(server.welcome() for _ in range(40)))
    assert couch.count(200, "POST", "/_session") == 2


async def test_password_when_many_requests_run_at_its_change_then_one_wrong_one_is_shown(
    couch: Couch, tmp_path: Path
) -> None:
    """CouchDB counts passwords, not sessions; who waits for a new one goes on at once when it is there."""
    file = tmp_path / "credentials"
    file.write_text(GIVEN["password"].format("old"))
    couch.password = "old"
    async with CouchServer(couch.url, credentials_file=str(file)) as server:
        server.wait_for_credentials(30)
        await server.welcome()
        couch.password, couch.token = "new", SECOND
        before = len(couch.asked)
        asking = asyncio.gather(*(server.welcome() for _ in range(40)))
        await eventually(lambda: couch.count(401, "POST") > 0)
        file.write_text(GIVEN["password"].format("new"))
        assert len(await asking) == 40
        await server.welcome()
    assert couch.count(401, "POST") == 1
    assert len(couch.asked) - before <= 40 + 2 + 41


@pytest.mark.parametrize("what", ["gives_sessions", "takes_sessions"])
async def test_password_when_there_are_no_sessions_then_shown_with_each_request(
    couch: Couch, what: str, clock: Callable[[float], None]
) -> None:
    """A proxy takes cookies away, or knows no logins; after a minute sessions are asked for again."""
    setattr(couch, what, False)
    async with CouchServer(couch.url.replace("//", "//ann:right@")) as server:
        for _ in range(20):
            assert (await server.welcome())["version"]
        assert couch.count(200, "GET", "/") >= 20
        assert sum(one[:2] == ("POST", "/_session") for one in couch.asked) <= 2
        couch.password = "new"
        for _ in range(20):
            with pytest.raises(Unauthorized):
                await server.welcome()
        wrong = [one for one in couch.asked if one[2] == 401 and what == "gives_sessions"]
        assert len(wrong) <= 2, wrong
        couch.password = "right"
        setattr(couch, what, True)
        clock(61)
        await server.welcome()
    assert ("POST", "/_session", 200) in couch.asked[-3:]


async def test_account_when_locked_then_asked_seldom(couch: Couch) -> None:
    """And a session that there is goes on: CouchDB locks passwords, not sessions."""
    async with CouchServer(couch.url.replace("//", "//ann:right@")) as server:
        couch.locked = 3
        for _ in range(40):
            with pytest.raises(Locked, match="temporarily locked"):
                await server.welcome()
    assert len(couch.asked) == 1


@pytest.mark.parametrize("kind", ["password", "basic", "couchdb_session"])
async def test_credentials_when_a_401_passes_or_is_about_rights_then_not_doubted(
    couch: Couch, tmp_path: Path, kind: str
) -> None:
    """A proxy restarts; and who is no administrator may still do all else."""
    file = tmp_path / "credentials"
    file.write_text(GIVEN[kind].format("right"))
    async with CouchServer(couch.url, credentials_file=str(file)) as server:
        couch.passing = 4
        while couch.passing:
            with pytest.raises(Unauthorized):
                await server.welcome()
        assert (await server.welcome())["version"]
        with pytest.raises(Unauthorized, match="server admin"):
            await server.active_tasks()
        assert (await server.welcome())["version"]


async def test_account_when_locked_then_an_outage_also_at_the_start(
    couch: Couch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a server is waited for that does not answer."""
    monkeypatch.setattr(client_module, "_LOOK_S", 0.01)
    monkeypatch.setattr(credentials_module, "_LOCKED_S", 0.01)
    async with CouchServer(couch.url.replace("//", "//ann:right@")) as server:
        couch.locked = 1
        with pytest.raises(Unavailable, match="temporarily locked") as raised:
            await Database(server, "db").info()
        assert not isinstance(raised.value, Forbidden)
        couch.locked = 20
        await server.wait_until_up(0.0)


@pytest.mark.parametrize("password", ['"x"', "{x", "x}", "'", "p@ss:w/ord", "ümlaut", " x ", "x#y"])
async def test_password_when_it_holds_odd_characters_then_taken_as_it_is(couch: Couch, password: str) -> None:
    """From the environment; some clients refuse braces and quotes."""
    couch.password = password
    os.environ["COUCHJOBS_USERNAME"], os.environ["COUCHJOBS_PASSWORD"] = "ann", password
    try:
        async with CouchServer(couch.url) as server:
            assert (await server.welcome())["version"]
    finally:
        del os.environ["COUCHJOBS_USERNAME"], os.environ["COUCHJOBS_PASSWORD"]


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ('COUCHJOBS_PASSWORD="x y"', "x y"),
        ("COUCHJOBS_PASSWORD='x\"y'", 'x"y'),
        ("export COUCHJOBS_PASSWORD=x", "x"),
        ("\ufeffCOUCHJOBS_PASSWORD=x", "x"),
        ("COUCHJOBS_PASSWORD = x ", "x"),
        ("# mine\n\nCOUCHJOBS_PASSWORD={x\r\n", "{x"),
        ("COUCHJOBS_PASSWORD=$HOME", "$HOME"),
        ("COUCHJOBS_PASSWORD=a=b#c", "a=b#c"),
    ],
)
def test_file_when_written_as_environment_files_are_then_read_so(tmp_path: Path, text: str, password: str) -> None:
    """Quotes, export, a byte order mark."""
    file = tmp_path / "credentials"
    file.write_text(text + "\nCOUCHJOBS_USERNAME=ann\n", encoding="utf-8")
    login = source_of(None, None, str(file))()
    assert (login.kind, login.config["USERNAME"], login.config["PASSWORD"]) == ("password", "ann", password)
    assert password not in repr(login)


@pytest.mark.parametrize("text", ["COUCHJOBS_PASSWORD", 'COUCHJOBS_PASSWORD="x', "hush"])
def test_file_when_a_line_says_nothing_then_named_and_not_shown(tmp_path: Path, text: str) -> None:
    """By its number: it may hold a password."""
    file = tmp_path / "credentials"
    file.write_text(f"COUCHJOBS_USERNAME=ann\n{text}\n")
    with pytest.raises(ConfigurationError, match="line 2 of the credentials file") as error:
        source_of(None, None, str(file))()
    assert "hush" not in str(error.value)


async def test_proxy_when_the_setting_names_one_then_all_requests_go_there(couch: Couch) -> None:
    """The server's name need not even exist for the client."""
    async with CouchServer("http://ann:right@db.invalid:5984", proxy=couch.url) as server:
        assert (await server.welcome())["version"]


@pytest.mark.parametrize("kind", ["couchdb_session", "iam"])
async def test_login_when_the_environment_names_a_proxy_and_an_authority_then_as_all_other_requests(
    tmp_path: Path, kind: str
) -> None:
    """The proxy hears nothing, least of all a password; the authority of SSL_CERT_FILE is trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    couch, heard = Couch(), []

    async def overhear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(web.Server(couch.answer), "127.0.0.1", 0, ssl=context)
    proxy = await asyncio.start_server(overhear, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    program = (
        "import asyncio; from couchjobs.couch.client import CouchServer;"
        f"print(asyncio.run(CouchServer({url!r}, credentials_file={str(tmp_path / 'credentials')!r}).welcome()))"
    )
    (tmp_path / "credentials").write_text(GIVEN[kind].format("right", "", url))
    through = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    environment: dict[str, Any] = {
        **os.environ,
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), through),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", program, env=environment, stdout=asyncio.subprocess.PIPE
    )
    answer, _ = await process.communicate()
    server.close()
    proxy.close()
    assert b"3.5.2" in answer
    assert heard == []


def test_user_when_the_name_holds_a_colon_then_basic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Basic authentication cannot say it."""
    monkeypatch.setenv("COUCHJOBS_AUTH_TYPE", "BASIC")
    with pytest.raises(ConfigurationError, match="COUCHDB_SESSION"):
        credentials_module.Credentials(source_of("a:b", "x", None), "http://localhost")
