"""What a document was, revision by revision, as far as compaction has left it."""

from __future__ import annotations

from couchjobs.couch.database import Database, Document, generation


async def documents_since(database: Database, doc_id: str, rev: str) -> list[Document] | None:
    """Return the document at the revisions that came after `rev`, the present one included, in no order.

    Those that are compacted are left out. None: the present document does not come from that revision.

    Raises:
        Unavailable: CouchDB does not answer.
    """
    present: Document | None = None
    async for answers in database.revisions([(doc_id, None)], revs=True):
        present = answers[0].known(database.name)
    revisions = (present or {}).get("_revisions")
    if not isinstance(revisions, dict):
        return None
    known = [f"{revisions['start'] - number}-{one}" for number, one in enumerate(revisions["ids"])]
    if rev not in known:
        return None
    wanted = [(doc_id, one) for one in known[: known.index(rev)] if generation(one) > generation(rev)]
    found: list[Document] = []
    async for answers in database.revisions(wanted):
        found += [document for one in answers if (document := one.known(database.name)) is not None]
    return found
