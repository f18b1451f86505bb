"""The users of a server, as a daemon knows them."""

from __future__ import annotations

from typing import Any

import pytest

from couchjobs.couch import access
from couchjobs.couch.access import KnownUsers


class Users:
    """A server with some users."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seq = 1
        self.reads = 0

    async def request(self, _method: str, path: str, **given: Any) -> dict[str, Any]:
        """Answer for the database, or for all documents of it."""
        if path == "_users":
            return {"db_name": "_users", "update_seq": f"{self.seq}-abc", "instance_start_time": "1"}
        self.reads += 1
        docs = [{"_id": f"org.couchdb.user:{number}", "name": str(number), "roles": []} for number in range(self.count)]
        return {"rows": [{"id": doc["_id"], "doc": doc} for doc in docs][: given["params"]["limit"]]}


async def test_users_when_nothing_has_changed_then_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tenant that is woken asks, and there may be thousands of users; a copy may have been behind, though."""
    server: Any = Users(3)
    known = KnownUsers(server)
    for _ in range(5):
        assert [user["name"] for user in await known.all() or ()] == ["0", "1", "2"]
    assert server.reads == 1
    server.seq, server.count = 2, 4
    assert len(await known.all() or ()) == 4
    server.seq, server.count = 3, 3000
    assert await known.all() is None
    assert await known.all() is None
    assert server.reads == 3
    monkeypatch.setattr(access, "_KEPT_S", -1.0)
    server.seq = 4
    for _ in range(3):
        assert await known.all() is None
    assert server.reads == 6
