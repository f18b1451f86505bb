"""Credentials of every kind, applied to the requests of the client and never shown.

The kinds are those of ibmcloudant's authenticators: basic, session cookie, bearer, IAM and the rest of the IBM
family. They come from the URL, from the environment (COUCHJOBS_AUTH_TYPE and its companions) or from a file of such
lines; a password may lie in the keyring of the system instead (COUCHJOBS_KEYRING names the service). Source: IBM Cloud
SDK core, "Authentication"; ibmcloudant, "Authentication with external configuration"; keyring, "get_password".
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import ibmcloudant.couchdb_session_get_authenticator_patch as session_patch
from ibm_cloud_sdk_core.authenticators import Authenticator, BasicAuthenticator
from ibmcloudant import CouchDbSessionAuthenticator
from requests import Session
from requests.cookies import RequestsCookieJar

from couchjobs.errors import ConfigurationError, Unauthorized, Unavailable

_PREFIX = "COUCHJOBS_"
_SESSION_S = 8 * 60  # CouchDB ends a session after 10 minutes and does not say so in the cookie


class _Hidden(str):
    """A header that is sent as it is and shown as nothing, not even where a traceback prints its locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Credentials:
    """What makes a request one of ours. Its repr shows the kind alone."""

    def __init__(self, authenticator: Authenticator, service_url: str = "") -> None:
        self._authenticator = authenticator
        self._headers: dict[str, str] | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()
        self._jar: RequestsCookieJar | None = None
        if isinstance(authenticator, CouchDbSessionAuthenticator):
            self._jar = RequestsCookieJar()
            authenticator._set_http_client(Session(), self._jar)  # noqa: SLF001  the SDK's own service does the same
            authenticator.token_manager.set_service_url(service_url)
            authenticator.token_manager.set_default_headers({"Accept": "application/json"})
            authenticator.token_manager.http_config = {"timeout": 30}

    def __repr__(self) -> str:
        return f"<Credentials {self.kind}>"

    @property
    def kind(self) -> str:
        """Return the kind: noauth, basic, bearertoken, couchdb_session, iam, ..."""
        return str(self._authenticator.authentication_type()).lower()

    async def headers(self) -> dict[str, str]:
        """Return the headers that make a request ours; may ask a server for a token, in a thread.

        Raises:
            Unauthorized: the server that gives tokens refuses.
            Unavailable: it does not answer.
        """
        loop = asyncio.get_running_loop()
        if self._headers is None or loop.time() > self._until:
            async with self._lock:
                if self._headers is None or loop.time() > self._until:
                    self._headers = await asyncio.to_thread(self._authenticate)
                    self._until = loop.time() + (_SESSION_S if self.renewable else float("inf"))
        return self._headers

    @property
    def renewable(self) -> bool:
        """Return whether a refused request may succeed with a fresh token."""
        return self.kind not in ("noauth", "basic", "bearertoken")

    def forget(self) -> None:
        """Drop the token at hand, because the server refused it."""
        self._headers = None
        manager = getattr(self._authenticator, "token_manager", None)
        if manager is not None:
            manager.expire_time = 0

    def _authenticate(self) -> dict[str, str]:
        request: dict[str, Any] = {"headers": {}}
        manager = getattr(self._authenticator, "token_manager", None)
        try:
            if manager is not None and self._headers is not None:
                manager.expire_time = 0
            self._authenticator.authenticate(request)
        except Exception as error:  # noqa: BLE001  the SDK and requests have a family of errors each
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            if status in (400, 401, 403):
                raise Unauthorized(f"the server refused to give a token ({self.kind})", 401) from None
            raise Unavailable(f"no token to be had ({self.kind}): {type(error).__name__}") from None
        headers: dict[str, str] = dict(request["headers"])
        if self._jar is not None:
            cookies = manager.access_token if manager is not None and manager.access_token else self._jar
            headers["Cookie"] = "; ".join(f"{cookie.name}={cookie.value}" for cookie in cookies)
        return {name: _Hidden(value) for name, value in headers.items()}


def split_url(url: str) -> tuple[str, str | None, str | None]:
    """Return the URL without credentials, and the name and password that it held.

    Raises:
        ConfigurationError: it is no URL of a server. The message does not repeat it, for what it may hold.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("the URL of CouchDB must look like http://host:5984 (set COUCHJOBS_URL)")
    if "@" in parts.path:
        raise ConfigurationError(
            "the URL of CouchDB holds a name or password with a /: write it as %2F (set COUCHJOBS_URL)"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    bare = urlunsplit((parts.scheme, host + (f":{port}" if port else ""), parts.path.rstrip("/"), "", ""))
    name = unquote(parts.username) if parts.username else None
    return bare, name, unquote(parts.password or "") if name else None


def find_credentials(url: str, file: str | None = None) -> tuple[str, Credentials]:
    """Return the URL without credentials, and those: of the URL, else of the file, else of the environment.

    Raises:
        ConfigurationError: the file cannot be read, or what it or the environment says is not complete.
    """
    bare, name, password = split_url(url)
    given = _read_file(file) if file else dict(os.environ)
    config = {key.removeprefix(_PREFIX): value for key, value in given.items() if key.startswith(_PREFIX)}
    if name is not None:
        config |= {"USERNAME": name} | ({"PASSWORD": password} if password else {})
    kind = config.setdefault("AUTH_TYPE", _kind_of(config)).upper()
    if "KEYRING" in config and "USERNAME" in config and "PASSWORD" not in config:
        config["PASSWORD"] = _from_keyring(config["KEYRING"], config["USERNAME"])
    if kind == "BASIC" and "USERNAME" in config:
        return bare, Credentials(BasicAuthenticator(config["USERNAME"], config.get("PASSWORD", "")))
    try:
        authenticator = session_patch.new_construct_authenticator(config)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"credentials of kind {config['AUTH_TYPE']}: {error}") from None
    if authenticator is None:
        kinds = "BASIC, COUCHDB_SESSION, BEARERTOKEN, IAM"
        raise ConfigurationError(f"COUCHJOBS_AUTH_TYPE={config['AUTH_TYPE']} is no kind of credentials: {kinds}")
    return bare, Credentials(authenticator, bare)


def _kind_of(config: dict[str, str]) -> str:
    """Return the kind of credentials that the variables are for, where none of them says it."""
    kinds = {"USERNAME": "BASIC", "APIKEY": "IAM", "BEARER_TOKEN": "BEARERTOKEN"}
    return next((kind for name, kind in kinds.items() if name in config), "NOAUTH")


def _from_keyring(service: str, name: str) -> str:
    try:
        import keyring  # noqa: PLC0415  an extra
    except ImportError:
        raise ConfigurationError("COUCHJOBS_KEYRING is set: pip install 'couchjobs[keyring]'") from None
    try:
        password = keyring.get_password(service, name)
    except Exception as error:  # noqa: BLE001  each backend has errors of its own
        raise ConfigurationError(f"the keyring cannot be read: {type(error).__name__}") from None
    if password is None:
        raise ConfigurationError(f"the keyring holds no password: keyring set {service} {name}")
    return password


def _read_file(path: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"the credentials file {path} cannot be read: {error.strerror}") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}
