"""Credentials: shown to CouchDB while it takes them, renewed, and never shown to anybody else.

Where they come from is said by `login`, and what they are made of by `authentication`. One renewal at a time, for all
requests that wait for it. Passwords are changed while daemons run, and CouchDB locks an account for five minutes after
five wrong ones from one address: so what it has refused is shown to it again after a minute, then after four, then
every five, by one question of its own; until then requests fail here, or wait here, and the source is looked at four
times a second. Source: CouchDB docs, config/auth, "Authentication lockout".
"""

from __future__ import annotations

import asyncio
from typing import Any

from couchjobs.couch.answers import Shown, error_of, of_credentials
from couchjobs.couch.authentication import Authentication, Headers
from couchjobs.couch.codec import decode
from couchjobs.couch.login import Login, Source, source_of, split_urls
from couchjobs.couch.transport import Answer, Transport
from couchjobs.errors import ConfigurationError, CouchError, Locked, Unauthorized
from couchjobs.log import get_logger

_logger = get_logger(__name__)
_SESSION_S = 8 * 60.0
"""CouchDB ends a session after 10 minutes and does not say so in the cookie."""
_PLAIN_S = 60.0
"""Seconds until a server is asked again for sessions that gave none, or none that it takes."""
_ASK_AGAIN_S = (60.0, 240.0, 300.0)
"""Seconds until credentials that were refused are shown again, at the first refusal, the second, each further one."""
_LOCKED_S = 5.0
"""Seconds until an account that is locked is asked for again, which does not lock it for longer."""
_LOOK_S = 0.25
"""Between two looks at where credentials come from, and two tries: a password may be changed just now."""
_LONGEST_READ_S = 10.0
"""For where they come from to answer: a keyring may be locked, a file lie on a disk that hangs."""
_ATTEMPTS = 4
"""With a session that has ended, with a new one that is not taken either, with the password, with another password."""


class Credentials:
    """What makes a request one of ours. Its repr shows the kind alone.

    Args:
        source: where they come from.
        url: of the server, without credentials.
        transport: how a server is asked for sessions and tokens; None: in a way of its own, which `close` ends.

    Raises:
        ConfigurationError: what the source says is not complete.
    """

    def __init__(self, source: Source, url: str, transport: Transport | None = None) -> None:
        self.patience_s = 0.0
        """Seconds that a request waits here for credentials that CouchDB takes, before it fails."""
        self._source = source
        self._url = url
        self._transport = transport or Transport()
        self._authentication = Authentication(source(), url, self._transport)
        self._headers: Headers | None = None
        self._until = 0.0
        self._plain_until = 0.0
        self._renewal: asyncio.Task[Headers] | None = None
        self._closed_by: CouchError | None = None
        self._refusals = 0
        self._ask_again_at = 0.0
        self._read_again_at = 0.0
        self._unreadable = ""
        self._reading: asyncio.Task[Login] | None = None

    def __repr__(self) -> str:
        return f"<Credentials {self.kind}>"

    @property
    def kind(self) -> str:
        """Return the kind: noauth, password, basic, bearertoken, couchdb_session, iam, ..."""
        return self._authentication.login.kind

    async def headers(self) -> Headers:
        """Return the headers that make a request ours; may ask a server for them.

        Raises:
            Unauthorized: the credentials were refused, and are still the same, or the server gives no token for them.
            Locked: the server takes no password for a while.
            Unavailable: the server that gives tokens does not answer.
        """
        if self._headers is not None and asyncio.get_running_loop().time() <= self._until:
            return self._headers
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew(), name="credentials")
            self._renewal.add_done_callback(_look_at)
        return await asyncio.shield(self._renewal)

    async def may_succeed(self, shown: Headers, answer: Answer, attempt: int) -> bool:
        """Return whether a request is to be sent again that was answered 401 or 403 when these headers were shown.

        `attempt`: how often it has been sent.
        """
        error = error_of("GET", "_session", answer.status, answer.body)
        locked = isinstance(error, Locked)
        if attempt == _ATTEMPTS or self.kind == "noauth" or not (answer.status == 401 or locked):
            return False
        said = of_credentials(answer.body)
        if said is Shown.TAKEN and (attempt > 1 or not await self._have_ended(shown)):
            return False
        if self._headers is not shown:
            return True
        if locked:
            self._close(error)
            return self.patience_s > 0
        if self._authentication.is_renewable(shown):
            if attempt == 1:
                self._headers = None
                return True
            if self.kind == "password":
                self._go_plain()
                return True
        if said is Shown.REFUSED or await self._refusal_of(shown) is not None:
            if self._headers is shown:
                self._close(error)
            return True
        return False

    async def close(self) -> None:
        """Close the connections of its own way; nobody waits for credentials any more."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        await self._transport.close()

    async def _renew(self) -> Headers:
        """Make headers, as soon as what the server has refused is something else, or may be shown again.

        Raises:
            Unauthorized: that takes longer than the patience.
            Locked: likewise.
            Unavailable: a server does not answer.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            if self._until or self._closed_by is not None:
                await self._read_again()
            if self._closed_by is None or loop.time() >= self._ask_again_at:
                try:
                    return await self._make()
                except (Unauthorized, Locked) as error:
                    self._close(error)
            if loop.time() - began >= self.patience_s:
                raise self._as_told(loop.time())
            await asyncio.sleep(_LOOK_S)

    async def _make(self) -> Headers:
        loop = asyncio.get_running_loop()
        plain = loop.time() < self._plain_until
        headers = await self._authentication.make(plain=plain)
        is_session = self._authentication.is_renewable(headers)
        if self.kind == "password" and not is_session and not plain:
            self._go_plain()
        if (self._closed_by or plain) and (error := await self._refusal_of(headers)) is not None:
            raise error
        if self._closed_by is not None:
            _logger.info("CouchDB takes the credentials", kind=self.kind)
        self._closed_by, self._refusals = None, 0
        if is_session:
            self._until = loop.time() + _SESSION_S
        else:
            self._until = self._plain_until if self.kind == "password" else float("inf")
        self._headers = headers
        return headers

    def _go_plain(self) -> None:
        """Show the password with each request, for a while: the server gives no sessions, or takes none."""
        if not self._plain_until:
            _logger.info("no sessions on this server: the password goes with each request", url=self._url)
        self._plain_until = asyncio.get_running_loop().time() + _PLAIN_S
        self._headers = None

    def _close(self, error: CouchError) -> None:
        """Take note that the server refuses these credentials: they are not shown to it again for a while."""
        wait = _LOCKED_S
        if not isinstance(error, Locked):
            wait = _ASK_AGAIN_S[min(self._refusals, len(_ASK_AGAIN_S) - 1)]
            self._refusals += 1
            _logger.error("CouchDB refuses the credentials", kind=self.kind, the_same_again_in_s=wait)
        self._closed_by, self._headers = error, None
        self._ask_again_at = asyncio.get_running_loop().time() + wait

    def _as_told(self, present: float) -> CouchError:
        """Return why a request fails that was not sent."""
        wait = max(0.0, self._ask_again_at - present)
        if isinstance(self._closed_by, Locked):
            return Locked(f"{self._closed_by} (asked again in {wait:.0f} s)", 403)
        return Unauthorized(
            f"{self._url} refuses the credentials of kind {self.kind} ({self._closed_by}); the same are shown to it "
            f"again in {wait:.0f} s, others at once: see COUCHJOBS_URL, COUCHJOBS_CREDENTIALS_FILE",
            401,
        )

    async def _refusal_of(self, headers: Headers) -> CouchError | None:
        """Ask the server for nothing else; return why it refuses these headers, None where it does not say so."""
        try:
            answer = await self._transport.send("GET", f"{self._url}/_session", headers=headers)
        except CouchError:
            return None
        if answer.status < 300:
            return None
        error = error_of("GET", "_session", answer.status, answer.body)
        return error if isinstance(error, Unauthorized | Locked) else None

    async def _have_ended(self, headers: Headers) -> bool:
        """Return whether these headers are a session that is over: CouchDB takes it for nobody's, who is no admin."""
        if not self._authentication.is_renewable(headers):
            return False
        try:
            answer = await self._transport.send("GET", f"{self._url}/_session", headers=headers)
            return answer.status == 401 or decode(answer.body)["userCtx"]["name"] is None
        except (CouchError, ValueError, KeyError, TypeError, RecursionError):
            return False

    async def _read_source(self) -> Login:
        """Return what the source says now.

        Raises:
            ConfigurationError: it cannot be read, or not within some seconds: a file or keyring may not answer at all.
        """
        if self._reading is None or self._reading.done():  # what was answered late may be old by now
            self._reading = asyncio.create_task(asyncio.to_thread(self._source), name="read credentials")
            self._reading.add_done_callback(_look_at)
        if not (await asyncio.wait([self._reading], timeout=_LONGEST_READ_S))[0]:
            raise ConfigurationError("where the credentials are does not answer, and the known ones are used")
        reading, self._reading = self._reading, None
        return await reading

    async def _read_again(self) -> None:
        """Ask the source again; take the credentials if they have changed, and forget what was said of the others."""
        present = asyncio.get_running_loop().time()
        if present < self._read_again_at:
            return
        self._read_again_at = present + _LOOK_S
        try:
            login = await self._read_source()
            if login == self._authentication.login:
                return
            self._authentication = Authentication(login, self._url, self._transport)
        except ConfigurationError as error:
            log = _logger.debug if str(error) == self._unreadable else _logger.warning
            log("credentials cannot be read again", reason=str(error))
            self._unreadable = str(error)
            return
        _logger.info("credentials have changed", kind=login.kind)
        self._headers, self._closed_by, self._refusals, self._plain_until = None, None, 0, 0.0


def find_credentials(url: str, file: str | None = None, transport: Transport | None = None) -> tuple[str, Credentials]:
    """Return the URL without credentials, and those: of the URL, else of the file, else of the environment.

    `url`: that of the first node, where it names several.

    Raises:
        ConfigurationError: the file cannot be read, or what it or the environment says is not complete.
    """
    [bare, *_], name, password = split_urls(url)
    return bare, Credentials(source_of(name, password, file), bare, transport)


def _look_at(renewal: asyncio.Task[Any]) -> None:
    """Have the error of a renewal count as seen: whoever waited for it may be gone."""
    if not renewal.cancelled():
        renewal.exception()
