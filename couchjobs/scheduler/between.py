"""Changes of documents that a feed leaves out: it shows the last one alone, however many there were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from couchjobs.couch.database import Database, Document
from couchjobs.scheduler.event_jobs import CREATED, UPDATED

Change = tuple[tuple[str, ...], Document, Document | None]
"""What may be said of a change, the document, and the one before."""


async def changes_between(database: Database, chains: Mapping[str, Sequence[str]]) -> dict[str, list[Change]]:
    """Return these changes by the document's id, the oldest first, as far as compaction has left them.

    `chains`: of each document the revisions that are asked for, the newest first, and the one before them, "" for none.

    Raises:
        Unavailable: CouchDB does not say.
    """
    wanted: list[tuple[str, str | None]] = [(doc_id, rev) for doc_id, revs in chains.items() for rev in revs if rev]
    found: dict[tuple[str, str], Document] = {}
    async for answers in database.revisions(wanted):
        for one in answers:
            if (document := one.known(database.name)) is not None:
                found[one.doc_id, document["_rev"]] = document
    return {doc_id: _changes_of(doc_id, revs, found) for doc_id, revs in chains.items()}


def _changes_of(doc_id: str, revs: Sequence[str], found: Mapping[tuple[str, str], Document]) -> list[Change]:
    changes: list[Change] = []
    for rev, earlier in reversed([*pairwise(revs)]):
        present, before = found.get((doc_id, rev)), found.get((doc_id, earlier))
        if present is None or present.get("_deleted"):
            continue
        is_first = not earlier or (before is not None and before.get("_deleted"))
        changes.append(((CREATED,), present, None) if is_first else ((UPDATED,), present, before))
    return changes
