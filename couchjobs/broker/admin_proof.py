"""The proof that an administrator's request made a job.

Anybody who may write into the jobs database can write a job document for any worker. A worker that is `admin_only`
therefore runs a job only where the document carries a proof: a keyed digest of what the job is, by a secret that lies
in the control database. Whoever may read that database, which producers must not, is trusted. Jobs of triggers carry
no proof: a trigger document can be written by the same people.
"""

from __future__ import annotations

import hmac
import secrets

import orjson

from couchjobs.couch.connection import Connection
from couchjobs.errors import Conflict
from couchjobs.jobs.job import Job

_SECRET_ID = "secret:admin"  # noqa: S105  the id of a document
_COVERED = ("_id", "worker", "message", "payload", "event", "options", "trigger_id")


class AdminProof:
    """Makes and checks proofs. `load` before use; the secret is made where there is none yet."""

    def __init__(self, connection: Connection) -> None:
        self._control = connection.control
        self._secret = b""

    async def load(self) -> None:
        """Read the secret.

        Raises:
            NotFound: there is no control database; `couchjobs init` makes it.
        """
        while not self._secret:
            document = await self._control.find(_SECRET_ID)
            if document is None:
                document = {"_id": _SECRET_ID, "value": secrets.token_hex(32)}
                try:
                    await self._control.put(document)
                except Conflict:
                    continue
            self._secret = str(document["value"]).encode()

    def of(self, job: Job) -> str:
        """Return the proof for the job as it is now."""
        document = job.document()
        covered = orjson.dumps([document.get(name) for name in _COVERED], option=orjson.OPT_SORT_KEYS)
        return hmac.digest(self._secret, covered, "sha256").hex()

    def holds(self, job: Job) -> bool:
        """Return whether the document carries the proof of what it is."""
        return hmac.compare_digest(self.of(job).encode(), (job.admin_proof or "").encode("utf-8", "replace"))
