"""How the headers are made that make a request ours, for credentials of each kind.

A name and a password become a session, for what is sent with each request may be wrong as often: CouchDB locks an
account after five wrong passwords, and never for a cookie that it does not know. Where a server gives no session, the
password goes with each request. The other kinds are those of ibmcloudant's authenticators: basic, session cookie,
bearer, IAM and the rest of the IBM family. Source: CouchDB docs, api/server/authn, and config/auth, "Authentication
lockout"; IBM Cloud SDK core, "Authentication".
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import ibmcloudant.couchdb_session_get_authenticator_patch as session_patch
import orjson
from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import Authenticator
from ibm_cloud_sdk_core.token_managers.jwt_token_manager import JWTTokenManager
from requests import Response

from couchjobs.couch.answers import Shown, error_of, of_credentials
from couchjobs.couch.login import Login
from couchjobs.couch.transport import Transport
from couchjobs.errors import ConfigurationError, CouchError, Locked, Unauthorized, Unavailable

_TOKEN_S = 60.0
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
        self._authenticator = _authenticator_of(login)

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
                return await self._ask_for_token(self._authenticator)

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
        answer = await self._transport.send("POST", f"{self._url}/_session", headers={}, body=body)
        if answer.status >= 300:
            error = error_of("POST", "_session", answer.status, answer.body)
            says_wrong = isinstance(error, Unauthorized) and of_credentials(answer.body) is Shown.REFUSED
            raise error if says_wrong or isinstance(error, Unavailable) else Unavailable(str(error), answer.status)
        if "AuthSession" not in answer.cookies:
            raise Unavailable(
                f"POST /_session: {answer.status}, and no cookie: not an answer of CouchDB", answer.status
            )
        return {"Cookie": "; ".join(f"{name}={value}" for name, value in answer.cookies.items())}

    async def _ask_for_token(self, authenticator: Any) -> Headers:
        """Have the SDK get a token, in a thread; its own requests go the way of all others."""
        manager = getattr(authenticator, "token_manager", None)
        if manager is not None:
            ask = _by(self._transport, asyncio.get_running_loop())
            parsed = isinstance(manager, JWTTokenManager)
            manager._request = (lambda **what: ask(**what).json()) if parsed else ask  # noqa: SLF001  its only way out
            manager.expire_time = manager.request_time = 0  # else it paces itself, for a minute
        request: dict[str, Any] = {"headers": {}}
        try:
            async with asyncio.timeout(_TOKEN_S):
                await asyncio.to_thread(authenticator.authenticate, request)
        except CouchError:
            raise
        except Exception as error:  # noqa: BLE001  the SDK has a family of errors
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            if status in (400, 401, 403):
                raise Unauthorized(f"the server refused to give a token ({self.login.kind})", 401) from None
            raise Unavailable(f"no token to be had ({self.login.kind}): {type(error).__name__}") from None
        headers: Headers = request["headers"]
        return headers


def _basic(config: dict[str, str]) -> Headers:
    pair = f"{config['USERNAME']}:{config.get('PASSWORD', '')}"
    return {"Authorization": "Basic " + b64encode(pair.encode()).decode()}


def _authenticator_of(login: Login) -> Authenticator | None:
    """Return the SDK's authenticator; None where none is needed: some kinds are a header, some a cookie.

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
    try:
        authenticator = session_patch.new_construct_authenticator({**login.config})
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"credentials of kind {login.kind.upper()}: {error}") from None
    if not isinstance(authenticator, Authenticator):
        kinds = "BASIC, COUCHDB_SESSION, BEARERTOKEN, IAM"
        raise ConfigurationError(f"COUCHJOBS_AUTH_TYPE={login.kind.upper()} is no kind of credentials: {kinds}")
    return authenticator


def _by(transport: Transport, loop: asyncio.AbstractEventLoop) -> Callable[..., Response]:
    """Return what the SDK's token managers send requests by, from a thread: the transport, in the event loop."""

    def request(
        method: str,
        url: str,
        *,
        headers: Headers | None = None,
        params: dict[str, str] | None = None,
        data: Any = None,
        auth_tuple: tuple[str, str] | None = None,
        **_: Any,
    ) -> Response:
        sent = {name: str(value) for name, value in (headers or {}).items() if value is not None}
        if auth_tuple is not None:
            sent["Authorization"] = "Basic " + b64encode(":".join(auth_tuple).encode()).decode()
        where = f"{url}?{urlencode(params)}" if params else url
        body = (urlencode(data) if isinstance(data, dict) else data or "").encode()
        sending = asyncio.run_coroutine_threadsafe(transport.send(method, where, headers=sent, body=body), loop)
        answer = sending.result(_TOKEN_S)
        response = Response()
        response.status_code, response._content = answer.status, answer.body  # noqa: SLF001  there is no other way
        if not 200 <= answer.status < 300:
            raise ApiException(answer.status, http_response=response)
        return response

    return request
