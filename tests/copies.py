"""Databases of a cluster have three copies: a write is answered once two have it, and views answer from any.

What is deleted may be there for a moment on some of them.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from waiting import eventually

from couchjobs.couch.codec import encode
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database
from couchjobs.errors import Conflict, CouchError, NotFound


def quoted(doc_id: str) -> str:
    """An id as a path has it: design documents are the ones with a slash of their own."""
    return quote(doc_id, safe="/" if doc_id.startswith("_design/") else "")


async def put_on_all(database: Database, document: dict[str, Any]) -> str:
    """Write a document, wait until all copies have it, and return its revision."""
    path = f"{database.path}/{quoted(document['_id'])}"
    answer = await database.server.request("PUT", path, params={"w": 3}, body=encode(document))
    return str(answer["rev"])


async def is_on_all(database: Database, doc_id: str) -> bool:
    """Have three copies, or as many as there are, compared, and give it to those that lack the document; is it there?

    What CouchDB mends by itself it mends beside its answer.
    """
    path = f"{database.path}/{quoted(doc_id)}"
    try:
        found = await database.server.request("GET", path, params={"r": 3, "revs": True})
    except NotFound:
        return False
    if "_attachments" not in found:
        body = encode({"docs": [found], "new_edits": False})
        await database.server.request("POST", f"{database.path}/_bulk_docs", params={"w": 3}, body=body)
    return True


async def delete_surely(database: Database, doc_id: str) -> None:
    """Delete a document as all copies have it: of an older revision, it would be a branch that loses."""

    async def deleted() -> bool:
        try:
            if await is_on_all(database, doc_id):
                await database.delete(doc_id, (await database.get(doc_id))["_rev"])
        except (Conflict, NotFound):
            return False
        return not await is_on_all(database, doc_id)

    await eventually(deleted, 20)


async def remake(connection: Connection, name: str) -> None:
    """Delete a database and make it again, as soon as the server does so; a daemon may be first."""
    await connection.server.delete_database(name)

    async def made() -> bool:
        try:
            return await connection.server.create_database(name) or await connection.database(name).exists()
        except CouchError:
            return False

    await eventually(made)
