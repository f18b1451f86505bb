"""One pooled HTTP client for one CouchDB server: time limits on every request, and what an answer proves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import orjson

from couchjobs import errors
from couchjobs.couch.answers import NO_DATABASE, error_of, has_rows
from couchjobs.couch.codec import decode, encode
from couchjobs.couch.credentials import Credentials, find_credentials
from couchjobs.couch.live_feeds import LiveFeeds
from couchjobs.couch.login import split_urls
from couchjobs.couch.nodes import Nodes
from couchjobs.couch.transport import MAX_ANSWER, Answer, Transport
from couchjobs.errors import CouchError
from couchjobs.log import get_logger
from couchjobs.stats import Traffic

_logger = get_logger(__name__)
_INFO_PAGE = 100
"""Databases in one request of `_dbs_info`: CouchDB's limit by default."""
_MAX_DBS_OPEN = 500
"""What CouchDB has by default, for whom it does not let read its configuration."""
_LOOK_S = 0.1
"""Between two tries while CouchDB does not answer at the start."""
_LONGEST_LOCK_S = 330.0
"""How long a locked account is waited for at the start: CouchDB's five minutes, and a little."""


class CouchServer:
    """A CouchDB server. Use as an async context manager, or call `close`; built without the network."""

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        credentials_file: str | None = None,
        request_timeout: float = 60.0,
        proxy: str | None = None,
    ) -> None:
        """Take the server at `url`, with the credentials given, else those of the URL, a file or the environment.

        `url` may name several nodes of one cluster, with commas between: the first is asked where it answers.
        """
        self.nodes = Nodes(split_urls(url)[0])
        self._transport = Transport(request_timeout, proxy, self.nodes)
        self._path = urlsplit(self.nodes.first).path.rstrip("/")
        self.url, found = find_credentials(url, credentials_file, self._transport)
        self._credentials = credentials or found
        self.design_documents: dict[tuple[str, str], str] = {}
        """By database and id: under which id this process has a design document whose place a newer version took."""
        self.live_feeds: LiveFeeds | None = None
        """How many feeds wait at once; None: as many as are followed."""
        self.traffic = Traffic()
        """What has been asked, and how long answers took."""
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
        await self._credentials.close()
        await self._transport.close()

    def wait_for_credentials(self, patience_s: float) -> None:
        """Have requests wait so many seconds where CouchDB refuses the credentials, which somebody may change."""
        self._credentials.patience_s = patience_s

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
            silence_s: for a request that waits on purpose, or must not wait for others: it has a connection of its own,
                and no limit on the whole, but this one between two pieces.
            max_answer: bytes.
            has: a field that the answer has where it is CouchDB's, or the type that it is of.

        Raises:
            CouchError: of the class that says what the answer proves (see answers); Unavailable for no answer, for half
                of one, and for one that is not CouchDB's.
        """
        answer = await self._ask(method, path, params, body, silence_s, max_answer, {})
        try:
            found = decode(answer.body) if answer.body else None
        except ValueError as error:
            self._transport.note_answer(answer, is_couchdb=False)
            raise errors.NotCouchDB(f"{method} /{path}: half an answer or none of JSON: {error}") from error
        except RecursionError as error:
            raise errors.Unreadable(f"{method} /{path}: something in the answer is nested too deep") from error
        if not (
            isinstance(found, has) if isinstance(has, type) else not has or (isinstance(found, dict) and has in found)
        ):
            self._transport.note_answer(answer, is_couchdb=False)
            raise errors.NotCouchDB(
                f"{method} /{path}: {answer.status}, and not an answer of CouchDB: {str(found)[:200]}"
            )
        self._transport.note_answer(answer, is_couchdb=True)
        return found

    async def request_bytes(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: bytes | AsyncIterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """Return what CouchDB answers, as it is, of whatever size up to MAX_ANSWER; `headers` are beside the usual.

        A `body` in pieces is sent once, though the credentials are refused.
        """
        return (await self._ask(method, path, params, body, None, MAX_ANSWER, headers or {})).body

    async def download(self, path: str) -> AsyncIterator[bytes]:
        """Yield what CouchDB answers, as it is and of whatever size, in pieces.

        Raises: as `request`.
        """
        url = f"{self.url}/{path}"
        attempt = 0
        while True:
            attempt += 1
            headers = await self._credentials.headers()
            async with self._transport.download(url, headers={**headers, "Accept": "*/*"}) as coming:
                if coming.status < 300:
                    async for piece in coming.pieces:
                        yield piece
                    return
                body = b"".join([piece async for piece in coming.pieces])
            answer = Answer(body, coming.status, coming.headers, {})
            if answer.status not in (401, 403) or not await self._credentials.may_succeed(headers, answer, attempt):
                raise error_of("GET", path, answer.status, answer.body)

    async def _ask(
        self,
        method: str,
        path: str,
        params: dict[str, Any] | None,
        body: bytes | AsyncIterable[bytes] | None,
        silence_s: float | None,
        max_answer: int,
        more: dict[str, str],
    ) -> Answer:
        """Return an answer that is no error."""
        url = f"{self.url}/{path}{_query(params)}"
        attempt = 0
        while True:
            attempt += 1
            headers = await self._credentials.headers()
            sent = headers | more if more else headers
            answer = await self._sent(method, path, url, sent, body, silence_s, max_answer)
            once = not isinstance(body, bytes | None)
            if (
                answer.status not in (401, 403)
                or not await self._credentials.may_succeed(headers, answer, attempt)
                or once
            ):
                break
        self.date = answer.headers.get("Date")
        if answer.status >= 300 and not has_rows(path, answer.status, answer.body):
            error = error_of(
                method,
                path,
                answer.status,
                answer.body,
                location=answer.headers.get("Location", ""),
                retry_after=answer.headers.get("Retry-After", ""),
            )
            self._transport.note_answer(answer, is_couchdb=not isinstance(error, errors.NotCouchDB))
            if self.live_feeds is not None:
                self.live_feeds.note(error)
            if answer.status == 401:
                kind = self._credentials.kind
                error.args = (f"{error} (asked {self.url} with credentials of kind {kind}; see COUCHJOBS_URL)",)
            if self._path and NO_DATABASE in str(error):
                error.args = (f"{error} COUCHJOBS_URL has the path {self._path}: a server's, not a database's?",)
            raise error
        return answer

    async def _sent(
        self,
        method: str,
        path: str,
        url: str,
        headers: dict[str, str],
        body: bytes | AsyncIterable[bytes] | None,
        silence_s: float | None,
        max_answer: int,
    ) -> Answer:
        """Send a request once, and count it."""
        kind, began = f"{method} {_kind(path)}", time.perf_counter()
        try:
            answer = await self._transport.send(
                method, url, headers=headers, body=body, silence_s=silence_s, max_answer=max_answer
            )
        except CouchError:
            self.traffic.failed[kind] += 1
            raise
        if answer.status >= 400 and answer.status not in (404, 409):
            self.traffic.failed[kind] += 1
        elif silence_s is None:
            self.traffic.answered[kind].note(time.perf_counter() - began)
        return answer

    async def welcome(self) -> dict[str, Any]:
        """Return what the server says of itself: version, vendor, features."""
        found: dict[str, Any] = await self.request("GET", "", has="couchdb")
        return found

    async def clock_ahead_s(self) -> float | None:
        """Return how many seconds the clock of this host is ahead of the server's; None where that is not told."""
        await self.welcome()
        try:
            return time.time() - parsedate_to_datetime(self.date or "").timestamp()
        except ValueError:
            return None

    async def all_databases(self) -> list[str]:
        """Return the names of all databases. Needs a server administrator."""
        found: list[str] = await self.request("GET", "_all_dbs", has=list)
        return found

    async def databases_from(self, beginning: str) -> list[str]:
        """Return the names of the databases that begin so.

        Raises:
            Forbidden: only a server administrator may ask, by CouchDB's default.
        """
        params = {"startkey": beginning, "endkey": beginning + "\ufff0"}
        names = await self.request("GET", "_all_dbs", params=params, has=list)
        return [name for name in names if isinstance(name, str) and name.startswith(beginning)]

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

    async def sequences(self, names: Sequence[str]) -> dict[str, object]:
        """Return the update sequence of each of these databases that exists, from few requests where that is allowed.

        Where it takes one for each, those are left out that are not to be had now.

        Raises:
            CouchError: the server does not say.
        """
        found: dict[str, object] = {}
        for start in range(0, len(names), _INFO_PAGE):
            part = names[start : start + _INFO_PAGE]
            try:
                rows = await self.request("POST", "_dbs_info", body=encode({"keys": part}), has=list)
            except (errors.Forbidden, errors.NotFound, errors.Unauthorized):
                rows = [{"info": await self._info(name)} for name in part]
            for row in rows:
                info = row.get("info") if isinstance(row, dict) else None
                if isinstance(info, dict) and isinstance(info.get("db_name"), str):
                    found[info["db_name"]] = info.get("update_seq")
        return found

    async def _info(self, name: str) -> Any:
        try:
            return await self.request("GET", quote(name, safe=""), has="db_name")
        except errors.CouchError as error:
            if not error.status:  # an outage of all, and not of that one
                raise
            return None

    async def max_open_shards(self) -> int:
        """Return how many shards of databases the server opens at once; CouchDB's default where one may not know."""
        try:
            value = await self.request("GET", "_node/_local/_config/couchdb/max_dbs_open", has=str)
        except errors.CouchError:
            return _MAX_DBS_OPEN
        return int(value) if value.isdigit() else _MAX_DBS_OPEN

    async def roles(self) -> list[str]:
        """Return the roles of the user that the credentials name; `_admin` is that of a server administrator."""
        user = (await self.request("GET", "_session", has="userCtx"))["userCtx"]
        roles = user.get("roles") if isinstance(user, dict) else None
        return [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []

    async def user_of(self, headers: dict[str, str]) -> tuple[str, list[str]] | None:
        """Return the name and roles of the user whom these headers show to CouchDB; None where it knows none.

        Raises:
            Unavailable: it does not say.
        """
        answer = await self._transport.send("GET", f"{self.url}/_session", headers=headers)
        if answer.status in (400, 401, 403):
            return None
        try:
            found = decode(answer.body)["userCtx"]
            name, roles = found["name"], found["roles"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.Unavailable(f"GET /_session: {answer.status}, and not an answer of CouchDB") from error
        return (name, [str(role) for role in roles]) if isinstance(name, str) and isinstance(roles, list) else None

    async def knows_users_elsewhere(self) -> bool:
        """Return whether somebody may be a user of the server without a document in `_users`: by proxy, token, ..."""
        try:
            handlers = await self.request("GET", "_node/_local/_config/chttpd/authentication_handlers", has=str)
        except errors.CouchError:
            return False
        return any(word in handlers for word in ("proxy", "jwt"))

    async def wait_until_up(self, timeout: float) -> None:
        """Return as soon as the server answers.

        Raises:
            Unavailable: it does not, within `timeout` seconds, or, where it has locked the account, some minutes.
            Redirected: it is somewhere else.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + timeout
        told = False
        while True:
            try:
                await self.welcome()
            except errors.Redirected:
                raise
            except errors.Unavailable as error:
                if isinstance(error, errors.Locked):
                    deadline = max(deadline, began + _LONGEST_LOCK_S)
                if loop.time() > deadline:
                    raise
                if not told:
                    _logger.warning("waiting for CouchDB", url=self.url, seconds=deadline - began, reason=str(error))
                    told = True
                await asyncio.sleep(_LOOK_S)
            else:
                return


_AS_TEXT = {"rev", "since", "feed", "filter", "style", "open_revs", "startkey_docid", "endkey_docid", "update"}


def _kind(path: str) -> str:
    """Return what a request is about: an endpoint of CouchDB, a database, or a document."""
    parts = path.split("/")
    if "_view" in parts:
        return "_view"
    return next((part for part in parts if part.startswith("_")), "database" if len(parts) < 2 else "document")


def _query(params: dict[str, Any] | None) -> str:
    if not params:
        return ""
    pairs = {name: str(value) if name in _AS_TEXT else orjson.dumps(value).decode() for name, value in params.items()}
    return "?" + urlencode(pairs, quote_via=quote)
