"""Tokens of the kinds that ibmcloudant's authenticators know: IAM and the rest of the IBM family.

Imported where somebody logs in so: the SDK takes 20 MB, and a good part of the time of a start. Source: IBM Cloud SDK
core, "Authentication".
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import ibmcloudant.couchdb_session_get_authenticator_patch as session_patch
from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import Authenticator
from ibm_cloud_sdk_core.token_managers.jwt_token_manager import JWTTokenManager
from requests import Response

from couchjobs.couch.login import Login
from couchjobs.couch.transport import Transport
from couchjobs.errors import ConfigurationError, CouchError, Unauthorized, Unavailable

_TOKEN_S = 60.0
"""For the identity service, which answers within a second or two, or not at all."""

Headers = dict[str, str]


class SdkTokens:
    """Those of one login.

    Raises:
        ConfigurationError: something is missing, or there is no such kind.
    """

    def __init__(self, login: Login, transport: Transport) -> None:
        self._kind = login.kind
        self._transport = transport
        try:
            authenticator = session_patch.new_construct_authenticator({**login.config})
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"credentials of kind {login.kind.upper()}: {error}") from None
        if not isinstance(authenticator, Authenticator):
            kinds = "BASIC, COUCHDB_SESSION, BEARERTOKEN, IAM"
            raise ConfigurationError(f"COUCHJOBS_AUTH_TYPE={login.kind.upper()} is no kind of credentials: {kinds}")
        self._authenticator: Any = authenticator

    async def headers(self) -> Headers:
        """Have the SDK get a token, in a thread; its own requests go the way of all others.

        Raises:
            Unauthorized: the server that gives tokens refuses.
            Unavailable: it does not answer.
        """
        manager = getattr(self._authenticator, "token_manager", None)
        if manager is not None:
            ask = _by(self._transport, asyncio.get_running_loop())
            parsed = isinstance(manager, JWTTokenManager)
            manager._request = (lambda **what: ask(**what).json()) if parsed else ask  # noqa: SLF001  its only way out
            manager.expire_time = manager.request_time = 0  # else it paces itself, for a minute
        request: dict[str, Any] = {"headers": {}}
        try:
            async with asyncio.timeout(_TOKEN_S):
                await asyncio.to_thread(self._authenticator.authenticate, request)
        except CouchError:
            raise
        except Exception as error:  # noqa: BLE001  the SDK has a family of errors
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            if status in (400, 401, 403):
                raise Unauthorized(f"the server refused to give a token ({self._kind})", 401) from None
            raise Unavailable(f"no token to be had ({self._kind}): {type(error).__name__}") from None
        headers: Headers = request["headers"]
        return headers


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
