"""Databases of a cluster have three copies: a write is answered once two have it, and views answer from any."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from couchjobs.couch.codec import encode
from couchjobs.couch.database import Database


async def put_on_all(database: Database, document: dict[str, Any]) -> str:
    """Write a document, wait until all copies have it, and return its revision."""
    path = f"{database.path}/{quote(document['_id'], safe='')}"
    answer = await database.server.request("PUT", path, params={"w": "3"}, body=encode(document))
    return str(answer["rev"])
