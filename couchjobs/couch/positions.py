"""Positions in the changes feed of a database: the present one, one before the last rows, what comes after one.

Source: CouchDB docs, api/database/changes.
"""

from __future__ import annotations

from couchjobs.couch.database import Database


async def position_before(database: Database, rows: int) -> str:
    """Return a position after which the feed shows about so many rows by now: 20,000 take CouchDB 0.2 s.

    Raises:
        NotFound: the database does not exist.
    """
    params = {"descending": True, "limit": rows, "seq_interval": rows}
    answer = await database.server.request("GET", f"{database.path}/_changes", params=params, has="last_seq")
    return str(answer["last_seq"])


async def newest_ids(database: Database, rows: int) -> set[str]:
    """Return which documents have changed last, at most so many, by the copy that answers."""
    params = {"descending": True, "limit": rows}
    answer = await database.server.request("GET", f"{database.path}/_changes", params=params, has="results")
    return {row["id"] for row in answer["results"] if isinstance(row, dict) and isinstance(row.get("id"), str)}


async def current_sequence(database: Database) -> str:
    """Return the sequence of the database's present state: a feed from there shows what comes later.

    Raises:
        NotFound: the database does not exist.
    """
    answer = await database.server.request(
        "GET", f"{database.path}/_changes", params={"since": "now", "limit": 1}, has="last_seq"
    )
    return str(answer["last_seq"])


async def changes_after(database: Database, since: str) -> int:
    """Return how many changes come after a position, and after the first of them.

    Raises:
        NotFound: the database does not exist.
        BadRequest: the server cannot use the position.
    """
    params = {"since": since, "limit": 1}
    answer = await database.server.request("GET", f"{database.path}/_changes", params=params, has="results")
    return int(answer.get("pending", 0))
