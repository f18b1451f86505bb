"""How the headers are made that make a request ours, for credentials of each kind.

A name and a password become a session, for what is sent with each request may be wrong as often: CouchDB locks an
account after five wrong passwords, and never for a cookie that it does not know. Where a server gives no session, the
password goes with each request. The other kinds are those of ibmcloudant's authenticators: see `sdk_tokens`. Source:
CouchDB docs, api/server/authn, and config/auth, "Authentication lockout".
"""

from __future__ import annotations

from base64 import b64encode
from typing import Protocol

import orjson

from couchjobs.couch.answers import Shown, error_of, of_credentials
from couchjobs.couch.login import Login
from couchjobs.couch.transport import Transport
from couchjobs.errors import ConfigurationError, Locked, NotCouchDB, Unauthorized, Unavailable

_LOGIN_S = 30.0
"""Seconds without a byte of the answer to a login."""
_PLAIN_KINDS = ("noauth", "basic", "bearertoken")
_OWN_KINDS = (*_PLAIN_KINDS, "password", "couchdb_session")
_NO_SESSIONS = (200, 400, 403, 404, 405, 406, 410, 415, 501)
"""Statuses, whoever answers, that say that a server gives no sessions; 200 is an answer without a cookie."""

Headers = dict[str, str]


class _Hidden(str):
    """A header that is sent as it is and shown as nothing, not even where a traceback prints its locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class _Tokens(Protocol):
    async def headers(self) -> Headers:
        """Return headers with a token."""


class Authentication:
    """Makes the headers of one login. Built without the network.

    Args:
        login: of whatever kind.
        url: of the server, without credentials.
        transport: how a server is asked for sessions and tokens.

    Raises:
        ConfigurationError: the login is not complete, or of no kind that there is.
    """

    def __init__(self, login: Login, url: str, transport: Transport) -> None:
        self.login = login
        self._url = url
        self._transport = transport
        self._tokens = _sdk_of(login, transport)

    def is_renewable(self, headers: Headers) -> bool:
        """Return whether headers like these are given by a server, which may give others."""
        return self.login.kind not in _PLAIN_KINDS and not self.is_plain(headers)

    def is_plain(self, headers: Headers) -> bool:
        """Return whether these headers hold the password."""
        return headers.get("Authorization", "").startswith("Basic ")

    async def make(self, *, plain: bool = False) -> Headers:
        """Return headers; may ask a server for a session or a token.

        `plain`: the password itself, where there may be a session.

        Raises:
            Unauthorized: the server that gives them refuses.
            Locked: it does not say, for the account is locked for a while.
            Unavailable: it does not answer.
        """
        headers = await self._make(plain)
        return {name: _Hidden(value) for name, value in headers.items()}

    async def _make(self, plain: bool) -> Headers:
        config = self.login.config
        match self.login.kind:
            case "noauth":
                return {}
            case "bearertoken":
                return {"Authorization": f"Bearer {config['BEARER_TOKEN']}"}
            case "basic":
                return _basic(config)
            case "password":
                return (None if plain else await self._log_in_if_possible()) or _basic(config)
            case "couchdb_session":
                return await self._log_in(config["USERNAME"], config.get("PASSWORD", ""))
            case _:
                return {} if self._tokens is None else await self._tokens.headers()

    async def _log_in_if_possible(self) -> Headers | None:
        """Begin a session; return None where the server does not give any."""
        try:
            return await self._log_in(self.login.config["USERNAME"], self.login.config.get("PASSWORD", ""))
        except Unavailable as error:
            if error.status not in _NO_SESSIONS or isinstance(error, Locked):
                raise
            return None

    async def _log_in(self, name: str, password: str) -> Headers:
        """Begin a session."""
        body = orjson.dumps({"name": name, "password": password})
        url = f"{self._url}/_session"
        answer = await self._transport.send("POST", url, headers={}, body=body, silence_s=_LOGIN_S)  # beats wait for it
        if answer.status >= 300:
            error = error_of("POST", "_session", answer.status, answer.body)
            self._transport.note_answer(answer, is_couchdb=not isinstance(error, NotCouchDB))
            says_wrong = isinstance(error, Unauthorized) and of_credentials(answer.body) is Shown.REFUSED
            raise error if says_wrong or isinstance(error, Unavailable) else Unavailable(str(error), answer.status)
        if "AuthSession" not in answer.cookies:
            self._transport.note_answer(answer, is_couchdb=False)
            raise NotCouchDB(f"POST /_session: {answer.status}, and no cookie: not an answer of CouchDB", answer.status)
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in answer.cookies.items())}


def _basic(config: dict[str, str]) -> Headers:
    pair = f"{config['USERNAME']}:{config.get('PASSWORD', '')}"
    return {"Authorization": "Basic " + b64encode(pair.encode()).decode()}


def _sdk_of(login: Login, transport: Transport) -> _Tokens | None:
    """Return what asks for tokens; None where none is needed: some kinds are a header, some a cookie.

    Raises:
        ConfigurationError: something is missing, or there is no such kind.
    """
    by_name = dict.fromkeys(("basic", "password", "couchdb_session"), "USERNAME")
    needed = {**by_name, "bearertoken": "BEARER_TOKEN"}.get(login.kind)
    if needed and not login.config.get(needed):
        raise ConfigurationError(f"credentials of kind {login.kind.upper()} need COUCHJOBS_{needed}")
    if login.kind in ("basic", "password") and ":" in login.config["USERNAME"]:
        raise ConfigurationError("a user name with a : cannot log in so: set COUCHJOBS_AUTH_TYPE=COUCHDB_SESSION")
    if login.kind in _OWN_KINDS:
        return None
    from couchjobs.couch.sdk_tokens import SdkTokens  # noqa: PLC0415  20 MB that most logins do not need

    return SdkTokens(login, transport)
