"""What the doctor has found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from couchjobs.couch.connection import Connection
from couchjobs.jobs.store import JobStore
from couchjobs.prefixer import Prefixer


@dataclass(slots=True)
class Finding:
    """One trouble.

    Args:
        kind: a word for programs, such as `conflict`.
        where: the document, database or daemon.
        what: one line for people, with what they can do about it.
        mend: does something about it and says what; None where only people can.
        done: what was done about it; None for nothing yet.
    """

    kind: str
    where: str
    what: str
    mend: Callable[[], Awaitable[str]] | None = None
    done: str | None = None


class Patient:
    """The tenant that is looked over, and one of its databases of jobs."""

    def __init__(self, connection: Connection, db: Prefixer, lane: str | None = None) -> None:
        self.connection = connection
        self.db = db
        self.store = JobStore(connection, db, lane)
        self.control = connection.control

    @property
    def tenant(self) -> tuple[str, str]:
        """Return what daemon documents and checkpoints say of whose they are."""
        return self.db.domain, self.db.db_prefix


Check = Callable[[Patient], AsyncIterator[Finding]]
