"""How a client names itself to CouchDB: credentials, their sources, certificates."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import sys
import threading
from base64 import b64encode
from pathlib import Path

import keyring
import keyring.backend
import pytest
import trustme
from aiohttp import web

from couchjobs.couch import credentials as credentials_module
from couchjobs.couch.client import CouchServer
from couchjobs.couch.credentials import Credentials, find_credentials
from couchjobs.couch.login import Login, split_url
from couchjobs.errors import ConfigurationError, Unavailable
from couchjobs.settings import load_settings


@pytest.mark.parametrize(
    ("url", "environment", "kind"),
    [
        ("http://localhost:5984", {}, "noauth"),
        ("http://ann:hush%40@localhost:5984/", {}, "password"),
        ("http://localhost", {"USERNAME": "ann", "PASSWORD": "hush@"}, "password"),
        ("http://localhost", {"USERNAME": "a:nn", "PASSWORD": "hush@"}, "couchdb_session"),
        ("http://localhost", {"AUTH_TYPE": "BASIC", "USERNAME": "ann", "PASSWORD": "hush@"}, "basic"),
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
    monkeypatch.setenv("COUCHJOBS_AUTH_TYPE", "BASIC")
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
        return web.json_response({"couchdb": "Welcome", "version": "3.5.2"})

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


def test_url_when_its_password_holds_a_slash_then_said_without_it() -> None:
    """Else the name would be taken for the host, and the password be shown."""
    with pytest.raises(ConfigurationError, match="%2F") as error:
        split_url("http://admin:/Secret1@db.example:5984")
    assert "Secret1" not in str(error.value)


async def test_credentials_when_their_source_hangs_then_the_known_ones_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A keyring that is locked, or a disk that hangs, stops no daemon whose password is right."""
    monkeypatch.setattr(credentials_module, "_LONGEST_READ_S", 0.05)
    goes_on, reads = threading.Event(), []

    def source() -> Login:
        reads.append(1)
        if len(reads) > 1:
            goes_on.wait(20)
        return Login("basic", {"AUTH_TYPE": "BASIC", "USERNAME": "w", "PASSWORD": "s3cret"})

    credentials = Credentials(source, "http://nowhere.invalid")
    first = await credentials.headers()
    try:
        for _ in range(3):
            credentials._headers, credentials._read_again_at = None, 0.0
            async with asyncio.timeout(5):
                assert await credentials.headers() == first
        assert len(reads) == 2, "no second one is asked beside one that hangs"
    finally:
        goes_on.set()
        await credentials.close()
