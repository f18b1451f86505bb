"""Credentials of every kind, applied to the requests of the client, renewed, and never shown.

The kinds are those of ibmcloudant's authenticators: basic, session cookie, bearer, IAM and the rest of the IBM family.
Where they come from is said by `login`; that is asked again once CouchDB refuses them, for passwords are changed while
daemons run. CouchDB locks an account for five minutes after five wrong passwords from one address, so that credentials
which it has refused, and which are still the same, are shown to it again after a minute, then after four, then every
five: until then, requests fail here, and the source is looked at each second. Source: CouchDB docs, config/auth,
"Authentication lockout"; IBM Cloud SDK core, "Authentication".
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

from couchjobs.couch.answers import error_of
from couchjobs.couch.login import Login, Source, source_of, split_url
from couchjobs.couch.transport import Transport
from couchjobs.errors import ConfigurationError, CouchError, Forbidden, Unauthorized, Unavailable
from couchjobs.log import get_logger

_logger = get_logger(__name__)
_SESSION_S = 8 * 60
"""CouchDB ends a session after 10 minutes and does not say so in the cookie."""
_ASK_AGAIN_S = (60.0, 240.0, 300.0)
"""Seconds until credentials that were refused are shown again, at the first refusal, the second, each further one."""
_READ_AGAIN_S = 1.0
_TOKEN_S = 60.0
_OWN_KINDS = ("noauth", "basic", "bearertoken", "couchdb_session")

Headers = dict[str, str]


class _Hidden(str):
    """A header that is sent as it is and shown as nothing, not even where a traceback prints its locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Credentials:
    """What makes a request one of ours. Its repr shows the kind alone.

    Args:
        source: where they come from.
        url: of the server, without credentials.
        transport: how a server is asked for tokens; None: in a way of its own, which `close` ends.

    Raises:
        ConfigurationError: what the source says is not complete.
    """

    def __init__(self, source: Source, url: str, transport: Transport | None = None) -> None:
        self._source = source
        self._url = url
        self._transport = transport or Transport()
        self._login = source()
        self._authenticator = _authenticator_of(self._login)
        self._headers: Headers | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()
        self._refusals = 0
        self._ask_again_at = 0.0
        self._read_again_at = 0.0

    def __repr__(self) -> str:
        return f"<Credentials {self.kind}>"

    @property
    def kind(self) -> str:
        """Return the kind: noauth, basic, bearertoken, couchdb_session, iam, ..."""
        return self._login.kind

    @property
    def doubted(self) -> bool:
        """Return whether the server has refused them, the last time that they were shown."""
        return self._refusals > 0

    @property
    def renewable(self) -> bool:
        """Return whether a refused request may succeed with a fresh token."""
        return self.kind not in ("noauth", "basic", "bearertoken")

    async def headers(self) -> Headers:
        """Return the headers that make a request ours; may ask a server for a token.

        Raises:
            Unauthorized: the credentials were refused, and are still the same, or the server gives no token for them.
            Unavailable: the server that gives tokens does not answer.
        """
        if self._refusals:
            await self._wait_to_ask_again()
        loop = asyncio.get_running_loop()
        if self._headers is not None and loop.time() <= self._until:
            return self._headers
        async with self._lock:
            if self._headers is None or loop.time() > self._until:
                self._headers = await self._authenticate()
                self._until = loop.time() + (_SESSION_S if self.renewable else float("inf"))
            return self._headers

    async def others_than(self, refused: Headers) -> bool:
        """Return whether there may be other headers by now than those that the server has refused."""
        async with self._lock:
            if self._headers is not refused:
                return True
            if self.renewable:
                self._headers = None
                return True
            return await self._read_again()

    def refuse(self) -> None:
        """Take note that the server refuses these credentials: they are not shown to it again for a while."""
        if self.kind == "noauth":
            return
        wait = _ASK_AGAIN_S[min(self._refusals, len(_ASK_AGAIN_S) - 1)]
        self._refusals += 1
        present = asyncio.get_running_loop().time()
        self._ask_again_at, self._read_again_at = present + wait, present + _READ_AGAIN_S
        _logger.error("CouchDB refuses the credentials", kind=self.kind, the_same_again_in_s=wait)

    def accept(self) -> None:
        """Take note that the server takes these credentials, which were shown after a refusal."""
        self._refusals = 0

    async def _wait_to_ask_again(self) -> None:
        """Return where the credentials may be shown to the server: after a while, or because they are others now."""
        present = asyncio.get_running_loop().time()
        if present >= self._ask_again_at:
            self._ask_again_at = present + _ASK_AGAIN_S[0]  # one request asks, not all that wait
            return
        if present >= self._read_again_at:
            self._read_again_at = present + _READ_AGAIN_S
            async with self._lock:
                if await self._read_again():
                    return
        if self._refusals:
            raise Unauthorized(
                f"CouchDB has refused the credentials of kind {self.kind}; the same are shown to it again in "
                f"{self._ask_again_at - present:.0f} s, others at once (see COUCHJOBS_URL, COUCHJOBS_CREDENTIALS_FILE)",
                401,
            )

    async def _read_again(self) -> bool:
        """Ask the source again; return whether the credentials have changed, and take them if so."""
        try:
            login = await asyncio.to_thread(self._source)
            if login == self._login:
                return False
            self._authenticator = _authenticator_of(login)
        except ConfigurationError as error:
            _logger.warning("credentials cannot be read again", reason=str(error))
            return False
        _logger.info("credentials have changed", kind=login.kind)
        self._login, self._headers, self._refusals = login, None, 0
        return True

    async def _authenticate(self) -> Headers:
        """Make the headers, with what the source says now where the server gives no token for what it said before.

        Raises:
            Unauthorized: the server that gives tokens refuses.
            Unavailable: it does not answer.
        """
        try:
            headers = await self._ask_for_headers()
        except Unauthorized:
            if not await self._read_again():
                self.refuse()
                raise
            headers = await self._ask_for_headers()
        return {name: _Hidden(value) for name, value in headers.items()}

    async def _ask_for_headers(self) -> Headers:
        config = self._login.config
        match self.kind:
            case "noauth":
                return {}
            case "basic":
                pair = f"{config['USERNAME']}:{config.get('PASSWORD', '')}"
                return {"Authorization": "Basic " + b64encode(pair.encode()).decode()}
            case "bearertoken":
                return {"Authorization": f"Bearer {config['BEARER_TOKEN']}"}
            case "couchdb_session":
                return await self._log_in(config["USERNAME"], config.get("PASSWORD", ""))
            case _:
                return await self._ask_for_token(self._authenticator)

    async def _log_in(self, name: str, password: str) -> Headers:
        """Begin a session. Source: CouchDB docs, api/server/authn, "Cookie authentication"."""
        body = orjson.dumps({"name": name, "password": password})
        answer = await self._transport.send("POST", f"{self._url}/_session", headers={}, body=body)
        if answer.status >= 300:
            error = error_of("POST", "_session", answer.status, answer.body)
            if isinstance(error, Forbidden):  # whoever may not log in has no session
                raise Unauthorized(str(error), 401)
            raise error if isinstance(error, Unauthorized | Unavailable) else Unavailable(str(error), answer.status)
        if "AuthSession" not in answer.cookies:
            raise Unavailable(f"POST /_session: {answer.status}, and no cookie: not an answer of CouchDB")
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
                raise Unauthorized(f"the server refused to give a token ({self.kind})", 401) from None
            raise Unavailable(f"no token to be had ({self.kind}): {type(error).__name__}") from None
        headers: Headers = request["headers"]
        return headers

    async def close(self) -> None:
        """Close the connections of its own way."""
        await self._transport.close()


def find_credentials(url: str, file: str | None = None, transport: Transport | None = None) -> tuple[str, Credentials]:
    """Return the URL without credentials, and those: of the URL, else of the file, else of the environment.

    Raises:
        ConfigurationError: the file cannot be read, or what it or the environment says is not complete.
    """
    bare, name, password = split_url(url)
    return bare, Credentials(source_of(name, password, file), bare, transport)


def _authenticator_of(login: Login) -> Authenticator | None:
    """Return the SDK's authenticator; None where none is needed: three kinds are a header, one is a cookie.

    Raises:
        ConfigurationError: something is missing, or there is no such kind.
    """
    needed = {"basic": "USERNAME", "couchdb_session": "USERNAME", "bearertoken": "BEARER_TOKEN"}.get(login.kind)
    if needed and not login.config.get(needed):
        raise ConfigurationError(f"credentials of kind {login.kind.upper()} need COUCHJOBS_{needed}")
    if login.kind == "basic" and ":" in login.config["USERNAME"]:
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
