"""One pooled HTTP client for one CouchDB server: time limits on every request, and what an answer proves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from multidict import CIMultiDictProxy
from yarl import URL

from couchjobs import errors
from couchjobs.couch.answers import error_of
from couchjobs.couch.codec import decode, encode
from couchjobs.couch.credentials import Credentials, find_credentials
from couchjobs.log import get_logger

_logger = get_logger(__name__)
_CONNECT_S = 10.0
_POOL = 64
_LARGE_BODY = 2**20
_INFO_PAGE = 100
"""Databases in one request of `_dbs_info`: CouchDB's limit by default."""
MAX_ANSWER = 64 * 1024 * 1024
"""The largest answer that is read, in bytes; a larger one is Unreadable, in bounded memory."""


class CouchServer:
    """A CouchDB server. Use as an async context manager, or call `close`; built without the network."""

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        credentials_file: str | None = None,
        request_timeout: float = 60.0,
    ) -> None:
        """Take the server at `url`, with the credentials given, else those of the URL, a file or the environment."""
        self.url, found = find_credentials(url, credentials_file)
        self._credentials = credentials or found
        self._request_timeout = request_timeout
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self.date: str | None = None
        """What the server's clock said with its last answer, as HTTP writes it."""

    def __repr__(self) -> str:
        return f"<CouchServer {self.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: bytes | None = None,
        silence_s: float | None = None,
        max_answer: int = MAX_ANSWER,
        has: str | type = "",
    ) -> Any:
        """Return the JSON that CouchDB answers.

        Args:
            method: the HTTP method.
            path: quoted, without a leading slash.
            params: the query; values are sent as JSON, text as it is where the name is one that CouchDB reads as text.
            body: JSON.
            silence_s: for a request that waits on purpose: no limit on the whole, but this one between two pieces.
            max_answer: bytes.
            has: a field that the answer has where it is CouchDB's, or the type that it is of.

        Raises:
            CouchError: of the class that says what the answer proves (see answers); Unavailable for no answer, for half
                of one, and for one that is not CouchDB's.
        """
        answer, status = await self._ask(method, path, params, body, silence_s, max_answer)
        try:
            found = decode(answer) if answer else None
        except ValueError as error:
            raise errors.Unavailable(f"{method} /{path}: half an answer or none of JSON: {error}") from error
        except RecursionError as error:
            raise errors.Unreadable(f"{method} /{path}: something in the answer is nested too deep") from error
        if not (
            isinstance(found, has) if isinstance(has, type) else not has or (isinstance(found, dict) and has in found)
        ):
            raise errors.Unavailable(f"{method} /{path}: {status}, and not an answer of CouchDB: {str(found)[:200]}")
        return found

    async def request_bytes(self, method: str, path: str, *, body: bytes | None = None) -> bytes:
        """Return what CouchDB answers, as it is, of whatever size up to MAX_ANSWER."""
        return (await self._ask(method, path, None, body, None, MAX_ANSWER))[0]

    async def _ask(
        self,
        method: str,
        path: str,
        params: dict[str, Any] | None,
        body: bytes | None,
        silence_s: float | None,
        max_answer: int,
    ) -> tuple[bytes, int]:
        """Return an answer that is no error, and its status."""
        answer, status, headers = await self._exchange(method, path, params, body, silence_s, max_answer)
        if status == 401 and self._credentials.renewable:
            self._credentials.forget()
            answer, status, headers = await self._exchange(method, path, params, body, silence_s, max_answer)
        if status >= 300:
            error = error_of(
                method,
                path,
                status,
                answer,
                location=headers.get("Location", ""),
                retry_after=headers.get("Retry-After", ""),
            )
            if status == 401:
                kind = self._credentials.kind
                error.args = (f"{error} (asked {self.url} with credentials of kind {kind}; see COUCHJOBS_URL)",)
            raise error
        return answer, status

    async def _exchange(
        self,
        method: str,
        path: str,
        params: dict[str, Any] | None,
        body: bytes | None,
        silence_s: float | None,
        max_answer: int,
    ) -> tuple[bytes, int, CIMultiDictProxy[str]]:
        url = URL(f"{self.url}/{path}{_query(params)}", encoded=True)
        headers = await self._credentials.headers()
        if silence_s is None:
            limit = aiohttp.ClientTimeout(total=self._request_timeout, sock_connect=_CONNECT_S)
        else:
            limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silence_s)
        try:
            async with self._open_session(waits=silence_s is not None).request(
                method, url, data=_as_payload(body), headers=headers, timeout=limit, allow_redirects=False
            ) as response:
                self.date = response.headers.get("Date")
                return await _read(response, max_answer), response.status, response.headers
        except TimeoutError as error:
            raise errors.Unavailable(f"{method} /{path}: no answer in time") from error
        except aiohttp.ClientConnectorError as error:
            raise errors.Unreachable(f"{method} /{path}: no connection to {self.url}: {error.os_error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.Unavailable(f"{method} /{path}: {type(error).__name__}: {error}") from error

    def _open_session(self, *, waits: bool) -> aiohttp.ClientSession:
        """Return the session of requests that wait on purpose, which no limit holds up, or that of the rest."""
        if waits not in self._sessions:
            self._sessions[waits] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0 if waits else _POOL, keepalive_timeout=30),
                headers={
                    "Accept": "application/json",
                    "Content-Type": "application/json",
                    "Accept-Encoding": "identity",
                },
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[waits]

    async def welcome(self) -> dict[str, Any]:
        """Return what the server says of itself: version, vendor, features."""
        found: dict[str, Any] = await self.request("GET", "", has="couchdb")
        return found

    async def all_databases(self) -> list[str]:
        """Return the names of all databases. Needs a server administrator."""
        found: list[str] = await self.request("GET", "_all_dbs", has=list)
        return found

    async def active_tasks(self) -> list[dict[str, Any]]:
        """Return what the server does by itself, such as compaction; nothing where it does not say.

        Raises:
            Unauthorized: only a server administrator may ask.
        """
        try:
            found: list[dict[str, Any]] = await self.request("GET", "_active_tasks", has=list)
        except errors.NotFound:
            return []
        return found

    async def create_database(self, name: str, shards: int | None = None) -> bool:
        """Create the database, of so many shards; return False where it is there already, by whomever, however many."""
        try:
            await self.request("PUT", quote(name, safe=""), params=None if shards is None else {"q": shards})
        except errors.BadRequest as error:
            if error.status != 412:
                raise
            return False
        return True

    async def delete_database(self, name: str) -> bool:
        """Delete the database with all its documents; return False where there is none."""
        try:
            await self.request("DELETE", quote(name, safe=""))
        except errors.NotFound:
            return False
        return True

    async def missing(self, names: Sequence[str]) -> set[str]:
        """Return which of these databases do not exist, from few requests.

        Raises:
            CouchError: the server does not say; most let only a server administrator ask.
        """
        found: set[str] = set()
        for start in range(0, len(names), _INFO_PAGE):
            body = encode({"keys": names[start : start + _INFO_PAGE]})
            for row in await self.request("POST", "_dbs_info", body=body, has=list):
                if isinstance(row, dict) and not row.get("info") and isinstance(row.get("key"), str):
                    found.add(row["key"])
        return found & set(names)

    async def roles(self) -> list[str]:
        """Return the roles of the user that the credentials name; `_admin` is that of a server administrator."""
        user = (await self.request("GET", "_session", has="userCtx"))["userCtx"]
        roles = user.get("roles") if isinstance(user, dict) else None
        return [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []

    async def wait_until_up(self, timeout: float) -> None:
        """Return as soon as the server answers.

        Raises:
            Unavailable: it does not, within `timeout` seconds.
            Redirected: it is somewhere else.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        told = False
        while True:
            try:
                await self.welcome()
            except errors.Redirected:
                raise
            except errors.Unavailable:
                if loop.time() > deadline:
                    raise
                if not told:
                    _logger.warning("waiting for CouchDB", url=self.url, seconds=timeout)
                    told = True
                await asyncio.sleep(0.1)
            else:
                return


_AS_TEXT = {"rev", "since", "feed", "filter", "style", "open_revs", "startkey_docid", "endkey_docid", "update"}


def _query(params: dict[str, Any] | None) -> str:
    if not params:
        return ""
    pairs = {name: str(value) if name in _AS_TEXT else orjson.dumps(value).decode() for name, value in params.items()}
    return "?" + urlencode(pairs, quote_via=quote)


def _as_payload(body: bytes | None) -> bytes | BytesIO | None:
    """Return a large body as a file, which aiohttp sends in pieces, leaving the event loop to others meanwhile."""
    return BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body


async def _read(response: aiohttp.ClientResponse, max_answer: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > max_answer:
            response.close()
            raise errors.Unreadable(
                f"the answer to {response.method} {response.url.raw_path} is larger than {max_answer:,} bytes"
            )
        pieces.append(piece)
    return b"".join(pieces)
