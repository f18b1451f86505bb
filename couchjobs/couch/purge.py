"""Removing documents for good: purged where nothing can bring them back, else deleted.

CouchDB forgets a purged document; of a deleted one a tombstone stays, and a row of the feed, for ever. On a cluster a
node that is away while the others purge may bring a document back when it returns, so there documents are deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

from couchjobs.couch.client import CouchServer
from couchjobs.couch.codec import encode
from couchjobs.couch.database import Database
from couchjobs.errors import BadRequest, Conflict, CouchError, Forbidden, NotFound, Unauthorized, Unavailable

PURGED_TOGETHER = 100
"""Documents of one request: CouchDB purges 4,800 to 7,600 a second in requests of so many, two at a time, and has
refused more (`[purge] max_document_id_number`)."""


async def is_single_node(server: CouchServer) -> bool:
    """Return whether it is known that the server is one node that has `_purge`: administrators may ask."""
    try:
        membership = await server.request("GET", "_membership", has="cluster_nodes")
    except Unavailable:
        raise
    except CouchError:
        return False
    return len(membership["cluster_nodes"]) == 1


async def remove(database: Database, revs: Mapping[str, str]) -> None:
    """Remove documents at these revisions, for good where that can be; one that has changed meanwhile stays.

    Raises:
        CouchError: CouchDB does not take it now, or never from this user.
    """
    if not revs:
        return
    left = {**revs}
    with suppress(BadRequest, Forbidden, NotFound, Unauthorized):
        if await is_single_node(database.server):
            while left:
                some = dict(islice(left.items(), PURGED_TOGETHER))
                await purge(database, some)
                left = {doc_id: rev for doc_id, rev in left.items() if doc_id not in some}
    for doc_id, rev in left.items():
        with suppress(Conflict, NotFound):
            await database.delete(doc_id, rev)


async def purge(database: Database, revs: Mapping[str, str]) -> set[str]:
    """Purge documents at these revisions, their leaves; return the ids of those that are purged.

    Raises:
        NotFound: the database does not exist, or the server has no `_purge`.
        Forbidden: only an administrator of the database may.
        Unavailable: CouchDB does not say; they may be purged or not.
    """
    body = encode({doc_id: [rev] for doc_id, rev in revs.items()})
    answer = await database.server.request("POST", f"{database.path}/_purge", body=body, has="purged")
    purged = answer["purged"]
    return {doc_id for doc_id, gone in purged.items() if gone} if isinstance(purged, dict) else set()
