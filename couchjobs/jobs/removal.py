"""Removing finished jobs, a small step at a time: those that the rules of retention keep no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from couchjobs.couch.database import Document
from couchjobs.couch.purge import is_single_node, purge
from couchjobs.errors import Forbidden, NotFound, Unauthorized
from couchjobs.jobs.job import Job
from couchjobs.jobs.retention import Retention, Rule
from couchjobs.jobs.store import JobStore
from couchjobs.timestamps import format_time

STEP = 100
"""Jobs removed together: CouchDB purges 4,800 to 7,600 a second in requests of so many, two at a time."""


@dataclass(slots=True)
class _Group:
    worker: str
    state: str
    count: int
    rule: Rule


class Remover:
    """Removes jobs of one database."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._purges: bool | None = None

    async def steps(self, retention: Retention, now: datetime, *, dry: bool = False) -> AsyncIterator[int]:
        """Remove what is kept no longer; yield after each step how many jobs that were. `dry`: remove nothing.

        Raises:
            NotFound: the database, or its views, do not exist.
            CouchError: CouchDB does not answer; what is left is found the next time.
        """
        for group in await self._groups(retention):
            async for documents in self._removable(group, now):
                yield len(documents) if dry else await self._remove(documents)

    async def _groups(self, retention: Retention) -> list[_Group]:
        rows = await self._store.database.reduced("jobs/by_state", [""], [{}], group_level=2)
        groups = []
        for row in rows:
            worker, state = row["key"]
            rule = retention.of(worker, state) if isinstance(worker, str) and isinstance(state, str) else None
            if rule is not None and (rule.keep is not None or rule.at_most is not None):
                groups.append(_Group(worker, state, int(row["value"]), rule))
        return groups

    async def _removable(self, group: _Group, now: datetime) -> AsyncIterator[list[Document]]:
        """Yield the jobs of a group that are kept no longer, the oldest first."""
        rule = group.rule
        too_many = max(0, group.count - rule.at_most) if rule.at_most is not None else 0
        if rule.keep is None and not too_many:
            return
        ended_before = now - timedelta(seconds=rule.keep) if rule.keep is not None else datetime.min.replace(tzinfo=UTC)
        last = format_time(ended_before) if not too_many else {}
        pages = self._store.database.view_pages(
            "jobs/by_state", [group.worker, group.state], [group.worker, group.state, last], page=STEP
        )
        async for rows in pages:
            documents: list[Document] = []
            for one in await self._store.database.read(row["id"] for row in rows):
                document = one.document
                if document is None or document.get("state") != group.state:
                    continue
                if too_many > 0 or _ended_at(document) < ended_before:
                    documents.append(document)
                    too_many -= 1
            if documents:
                yield documents
            elif too_many <= 0 and rule.keep is None:
                return

    async def _remove(self, documents: list[Document]) -> int:
        if self._purges is None:
            self._purges = await is_single_node(self._store.database.server)
        if self._purges:
            try:
                return len(await purge(self._store.database, {one["_id"]: one["_rev"] for one in documents}))
            except (Forbidden, NotFound, Unauthorized):
                self._purges = False
        deletions = [{"_id": one["_id"], "_rev": one["_rev"], "_deleted": True} for one in documents]
        answers = await asyncio.gather(*(self._store.writer.write(deletion) for deletion in deletions))
        return sum(answer.stored for answer in answers)


def _ended_at(document: Document) -> datetime:
    """Return when a job ended; now, as it were, where nobody can say."""
    return Job.read(document).finished_at or datetime.max.replace(tzinfo=UTC)
