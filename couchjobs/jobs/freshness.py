"""How fresh the views of jobs are read by who looks again and again: indexing a job costs a third of running it.

Few changes are indexed at once. While many come, the views are read as they are, until there is calm, or until they are
two minutes old: indexing would take the cores from the jobs that it is about. Where the server does not say how many
there are, the next update comes the later, the longer the last one has taken.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol, TypeVar

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Update
from couchjobs.couch.design import unindexed
from couchjobs.errors import CouchError
from couchjobs.jobs.lanes import stores
from couchjobs.prefixer import Prefixer

T_co = TypeVar("T_co", covariant=True)
_R = TypeVar("_R")
_DESIGN = "_design/jobs"
_FEW = 500
"""Changes that are indexed in some 0.1 s."""
_MANY_A_SECOND = 300
"""Changes a second, those of a hundred jobs, from which on indexing would take more than some percent of a core."""
_LONGEST_S = 120.0
"""Seconds that the views may be old while many changes come."""
_QUICK_S = 0.1
"""Seconds up to which an update was next to nothing."""
_TIMES_AS_LONG = 3
"""Times as long as an update took until the next one, where the server does not say what is pending."""


class _Asks(Protocol[T_co]):
    async def __call__(self, *, update: Update) -> T_co:
        """Ask the views."""


class Freshness:
    """That of the views of one tenant.

    Args:
        connection: to CouchDB.
        tenant: whose jobs.
    """

    def __init__(self, connection: Connection, tenant: Prefixer) -> None:
        self._databases = [store.database for store in stores(connection, tenant)]
        self._pending = 0
        self._looked_at = self._updated_at = float("-inf")
        self._update_at = 0.0

    async def read(self, ask: _Asks[_R], patience_s: float) -> tuple[_R, bool]:
        """Return what `ask` finds, and whether that may be older.

        `patience_s`: seconds that the views may take to be brought up to date; then they are read as they are.

        Raises:
            NotFound: the databases, or their views, do not exist.
        """
        pending = await self._unindexed(patience_s)
        if self._is_worth_an_update(pending):
            began = self._updated_at = monotonic()
            self._pending = 0
            try:
                async with asyncio.timeout(patience_s):
                    return await ask(update="true"), False
            except TimeoutError:
                pass
            finally:
                took_s = monotonic() - began
                self._update_at = monotonic() + (_TIMES_AS_LONG * took_s if took_s > _QUICK_S else 0.0)
        return await ask(update="false"), pending != 0

    async def _unindexed(self, patience_s: float) -> int | None:
        """Return how many changes are not indexed yet; None where the server does not say: the views say the rest."""
        try:
            async with asyncio.timeout(patience_s):
                found = [await unindexed(database, _DESIGN) for database in self._databases]
        except (CouchError, TimeoutError):
            return None
        return None if None in found else sum(one or 0 for one in found)

    def _is_worth_an_update(self, pending: int | None) -> bool:
        present = monotonic()
        if pending is None:
            return present >= self._update_at
        came, since = pending - self._pending, present - self._looked_at
        self._pending, self._looked_at = pending, present
        return pending <= _FEW or came < _MANY_A_SECOND * since or present - self._updated_at > _LONGEST_S
