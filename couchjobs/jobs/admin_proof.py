"""The proof that an administrator's request made a job.

Anybody who may write into the jobs database can write a job document for any worker. A worker that is `admin_only`
therefore runs a job only where the document carries a proof: a keyed digest of what the job is, by a secret that lies
in the control database. Whoever may read that database, which producers must not, is trusted. Jobs of triggers carry
no proof: a trigger document can be written by the same people.

The digest is of the document as it is stored, and of whose it is, in a form that no server changes: 5.0 and 5 are the
same number. (The embedded server gives floats from 2**53 on back as whole numbers: a proof of what holds one does not
hold there.) The secret may be made anew while a process runs (its database was removed): those that it has known stay
good, and where no proof holds it is read again.
"""

from __future__ import annotations

import hmac
import secrets
from contextlib import suppress
from typing import Any

import orjson

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import Conflict
from couchjobs.prefixer import Prefixer

_SECRET_ID = "secret:admin"  # noqa: S105  the id of a document
_COVERED = ("_id", "worker", "message", "payload", "event", "options", "trigger_id")
_EXACT = 2**53
"""From here on a double does not hold each whole number."""


class AdminProof:
    """Makes and checks proofs. `load` before use; the secret is made where there is none yet."""

    def __init__(self, connection: Connection, db: Prefixer) -> None:
        self._control = connection.control
        self._tenant = f"{db.domain}\n{db.db_prefix}"
        self._secrets: list[bytes] = []

    async def load(self) -> None:
        """Read the secret, unless it is known.

        Raises:
            NotFound: there is no control database; `couchjobs init` makes it.
        """
        if not self._secrets:
            await self._read()

    async def _read(self) -> None:
        document = await self._control.find(_SECRET_ID)
        while document is None:
            value = self._secrets[-1].decode() if self._secrets else secrets.token_hex(32)
            with suppress(Conflict):  # somebody else was quicker
                await self._control.put({"_id": _SECRET_ID, "value": value})
            document = await self._control.find(_SECRET_ID)  # on a cluster two may have been stored: one wins
        secret = str(document.get("value")).encode()
        if secret not in self._secrets:
            self._secrets.append(secret)

    def of(self, document: Document) -> str:
        """Return the proof for a document as it will be stored."""
        return self._digest(self._secrets[-1], document)

    async def holds(self, document: Document) -> bool:
        """Return whether the document carries the proof of what it is.

        Raises:
            CouchError: the secret cannot be read again, which would tell.
        """
        if self._is_proved(document):
            return True
        await self._read()
        return self._is_proved(document)

    def _is_proved(self, document: Document) -> bool:
        proof = document.get("admin_proof")
        if not isinstance(proof, str):
            return False
        given = proof.encode("utf-8", "replace")
        return any(hmac.compare_digest(self._digest(secret, document).encode(), given) for secret in self._secrets)

    def _digest(self, secret: bytes, document: Document) -> str:
        covered = [self._tenant, *(_canonical(document.get(name)) for name in _COVERED)]
        return hmac.digest(secret, orjson.dumps(covered, option=orjson.OPT_SORT_KEYS), "sha256").hex()

    async def other_id(self, job_id: str, number: int) -> str:
        """Return another id for a job whose own is taken: the same for all daemons, and nobody else can tell it.

        Raises:
            CouchError: the secret cannot be read.
        """
        await self.load()
        digest = hmac.digest(self._secrets[0], f"{self._tenant}\n{job_id}\n{number}".encode(), "sha256").hex()
        return f"{job_id}~{digest[:16]}"


def _canonical(value: Any) -> Any:
    """Return the value with its numbers as every server understands them."""
    if isinstance(value, dict):
        return {name: _canonical(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_canonical(part) for part in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, float) and abs(value) < _EXACT and int(value) == value:
        return int(value)
    return {"a number": str(value)} if abs(value) >= _EXACT else value
