"""Worker types of which nobody claims jobs for now: the document `paused:<tenant>` = `{workers: {<type>: {at}}}`.

It is in the control database. All daemons of the tenant obey within a second; jobs that run go on, and new ones wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document, generation
from couchjobs.errors import ConfigurationError, Conflict
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now

PREFIX = "paused:"


class Pauses:
    """What a daemon knows of them."""

    def __init__(self) -> None:
        self._paused: dict[str, frozenset[str]] = {}
        self._seen: dict[str, int] = {}
        """By id, the generation of what was seen last: a copy of a cluster may be behind."""
        self.listeners: list[Callable[[], None]] = []
        """Called when something has changed."""

    def of(self, tenant: str) -> frozenset[str]:
        """Return the paused worker types of a tenant."""
        return self._paused.get(tenant, frozenset())

    @property
    def ids(self) -> set[str]:
        """Return the ids of the documents that are known."""
        return {PREFIX + tenant for tenant in self._paused}

    def replace(self, documents: Iterable[Document]) -> None:
        """Take note that these documents are all that there are."""
        self._paused.clear()
        self._seen.clear()
        self.note(documents)

    def note(self, documents: Iterable[Document], gone: Iterable[str] = ()) -> None:
        """Take note of what such documents say, and of the ids of those that are no longer there."""
        for document in documents:
            doc_id, present = document["_id"], generation(document.get("_rev", ""))
            if present >= self._seen.get(doc_id, 0):
                self._seen[doc_id] = present
                self._paused[doc_id.removeprefix(PREFIX)] = paused_in(document)
        for doc_id in gone:
            self._paused.pop(doc_id.removeprefix(PREFIX), None)
            self._seen.pop(doc_id, None)
        for listener in self.listeners:
            listener()


def paused_in(document: Document | None) -> frozenset[str]:
    """Return the worker types that a document names; none where it makes no sense."""
    workers = None if document is None else document.get("workers")
    return frozenset(workers) if isinstance(workers, dict) else frozenset()


async def paused(connection: Connection, db: Prefixer) -> frozenset[str]:
    """Return the paused worker types of a tenant.

    Raises:
        Forbidden: the control database is not for this user.
    """
    return paused_in(await connection.control.find(PREFIX + db.key))


async def set_paused(connection: Connection, db: Prefixer, worker: str, *, is_paused: bool) -> bool:
    """Have jobs of that type be claimed no longer, or again; return whether that is a change.

    Raises:
        ConfigurationError: that is no type of worker.
        Forbidden: the control database is not for this user.
    """
    if not worker:
        raise ConfigurationError("a type of worker is wanted")
    while True:
        present = await connection.control.find(PREFIX + db.key)
        if (worker in paused_in(present)) is is_paused:
            return False
        workers = dict(present["workers"]) if present is not None and paused_in(present) else {}
        if is_paused:
            workers[worker] = {"at": format_time(now())}
        else:
            del workers[worker]
        document: Document = {**(present or {}), "_id": PREFIX + db.key, "workers": workers}
        try:
            await connection.control.put(document)
        except Conflict:  # somebody else has changed it: his change stays
            continue
        return True
