"""Tokens of programs: `token:<id>` = `{hash, scopes, tenant, name, created_at}` in the control database.

A token is `cj_<id>_<secret>`; of the secret, which is 256 random bits, only a digest is stored. A token belongs to one
tenant. One that is revoked is refused within a second. `token:wanted` says that there was one once: from then on nobody
may ask without one, though the last is revoked; whoever removes that document opens the server to its machine again.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import NamedTuple

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import ConfigurationError, Conflict
from couchjobs.http.scopes import Scope, read_scopes
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

_PREFIX = "token:"
_WANTED = f"{_PREFIX}wanted"
_TOKEN = re.compile(r"^cj_([0-9a-f]{12})_([0-9a-f]{64})$")
_KEPT_S = 1.0
_MOST_KEPT = 1000


class Token(NamedTuple):
    """What is known of one."""

    id: str
    name: str
    scopes: tuple[Scope, ...]


async def create_token(connection: Connection, db: Prefixer, name: str, scopes: Sequence[str]) -> str:
    """Store a new token and return it: it is told once.

    Raises:
        ConfigurationError: a scope is no rule.
        Forbidden: the control database is not for this user.
    """
    read_scopes(scopes)
    token_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    await connection.control.put(
        {
            "_id": _PREFIX + token_id,
            "hash": _digest(secret),
            "scopes": [*scopes],
            "tenant": db.key,
            "name": name,
            "created_at": format_time(now()),
        }
    )
    await _want(connection)
    return f"cj_{token_id}_{secret}"


async def _want(connection: Connection) -> None:
    """Write that nobody may ask without a token any more."""
    if await connection.control.find(_WANTED) is None:
        with suppress(Conflict):  # somebody else has just done so
            await connection.control.put({"_id": _WANTED, "created_at": format_time(now())})


async def tokens(connection: Connection, db: Prefixer) -> list[Document]:
    """Return the documents of the tenant's tokens, without their digests."""
    found = [one for one in await connection.control.with_prefix(_PREFIX) if one.get("tenant") == db.key]
    return [{name: value for name, value in one.items() if name != "hash"} for one in found]


async def revoke_token(connection: Connection, db: Prefixer, token_id: str) -> None:
    """Remove a token.

    Raises:
        ConfigurationError: the tenant has none with that id.
    """
    present = await connection.control.find(_PREFIX + token_id)
    if present is None or present.get("tenant") != db.key:
        raise ConfigurationError(f"there is no token {token_id}: see `couchjobs tokens ls`")
    await _want(connection)  # it may be the last one, and made by an older version
    await connection.control.delete(present["_id"], present["_rev"])


async def has_tokens(connection: Connection) -> bool:
    """Return whether there are any, of whatever tenant, or were."""
    async for found in connection.control.revisions_with_prefix(_PREFIX):
        if found:
            return True
    return False


class TokenCheck:
    """Checks tokens of one tenant; what CouchDB has said is good for a second."""

    def __init__(self, connection: Connection, db: Prefixer) -> None:
        self._connection = connection
        self._db = db
        self._known: dict[str, tuple[float, Document | None]] = {}

    async def token(self, text: str) -> Token | None:
        """Return the token that is written so, None where it is none, or none of this tenant.

        Raises:
            CouchError: CouchDB does not say.
        """
        matched = _TOKEN.match(text)
        if matched is None:
            return None
        token_id, secret = matched.groups()
        document = await self._find(token_id)
        stored = str(document.get("hash")) if document else ""
        if not hmac.compare_digest(stored, _digest(secret)) or document is None:
            return None
        try:
            scopes = read_scopes(str(one) for one in document.get("scopes") or ())
        except ConfigurationError:
            return None
        return Token(token_id, str(document.get("name") or token_id), scopes)

    async def _find(self, token_id: str) -> Document | None:
        present = asyncio.get_running_loop().time()
        if token_id in self._known and self._known[token_id][0] > present:
            return self._known[token_id][1]
        document = await self._connection.control.find(_PREFIX + token_id)
        if document is not None and document.get("tenant") != self._db.key:
            document = None
        if len(self._known) >= _MOST_KEPT:
            self._known.clear()
        self._known[token_id] = present + _KEPT_S, document
        return document


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
