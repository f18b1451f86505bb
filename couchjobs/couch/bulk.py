"""Plain requests of many documents, with neither writer nor follower between: for measuring what a database can do."""

from __future__ import annotations

from typing import Any

import orjson

from couchjobs.couch.database import Database, Document


async def write_batch(database: Database, documents: list[Document]) -> None:
    """Write the documents, and set their `_rev`."""
    body = orjson.dumps({"docs": documents})
    rows = await database.server.request("POST", f"{database.path}/_bulk_docs", body=body, has=list)
    for document, row in zip(documents, rows, strict=True):
        document["_rev"] = row["rev"]


async def read_batch(database: Database, since: str, limit: int) -> tuple[list[Document], str]:
    """Return the documents of one page of the feed, and the position after them."""
    params: dict[str, Any] = {"since": since, "limit": limit, "include_docs": True}
    page = await database.server.request("GET", f"{database.path}/_changes", params=params, has="results")
    return [row["doc"] for row in page["results"]], str(page["last_seq"])


async def wait_for_batch(database: Database, since: str) -> tuple[list[Document], str]:
    """Wait for changes after a position; return their documents, and the position after them."""
    params: dict[str, Any] = {"since": since, "feed": "longpoll", "heartbeat": 1000, "include_docs": True}
    page = await database.server.request("GET", f"{database.path}/_changes", params=params, has="results")
    return [row["doc"] for row in page["results"]], str(page["last_seq"])


async def compact(database: Database) -> None:
    """Begin to compact the database: `info` says for how long that goes on."""
    await database.server.request("POST", f"{database.path}/_compact", body=b"{}")
