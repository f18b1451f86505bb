"""Who may read and write: the security object of a database, and users with roles.

Source: CouchDB docs, api/database/security and intro/security.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from couchjobs.couch.client import CouchServer
from couchjobs.couch.database import Database, Document
from couchjobs.prefixer import USERS

_USER = "org.couchdb.user:"
_MOST_USERS = 2000
"""Accounts that are read to say who may see a database; of more, nothing is said."""

_KEPT_S = 10.0
"""Seconds after which they are read again all the same: a copy of a cluster may have been behind the last time."""


class KnownUsers:
    """All users of a server, which are read again only where one of them may have changed."""

    def __init__(self, server: CouchServer) -> None:
        self._server = server
        self._as_of: tuple[object, object] | None = None
        self._until = 0.0
        self._users: list[Document] | None = None

    async def all(self) -> list[Document] | None:
        """Return them; None where there are more than 2,000.

        Raises:
            CouchError: the server does not say.
        """
        info = await Database(self._server, USERS).info()
        as_of = info.get("instance_start_time"), info.get("update_seq")
        if as_of != self._as_of or time.monotonic() > self._until:
            params = {"include_docs": True, "limit": _MOST_USERS + 1, "startkey": _USER}
            rows = (await self._server.request("GET", f"{USERS}/_all_docs", params=params, has="rows"))["rows"]
            found = [row["doc"] for row in rows if isinstance(row.get("doc"), dict)]
            self._users = None if len(rows) > _MOST_USERS else found
            self._as_of, self._until = as_of, time.monotonic() + _KEPT_S
        return self._users


async def admit(database: Database, roles: Collection[str]) -> bool:
    """Make the database one that only these roles, and whoever is named already, may use; return whether it was not.

    Raises:
        Forbidden: only an administrator may.
    """
    security = await database.security()
    members, admins = dict(security.get("members") or {}), dict(security.get("admins") or {})
    present = members.get("roles") or []
    missing = [role for role in roles if role not in present]
    has_admins = bool(admins.get("names") or admins.get("roles"))
    if not missing and has_admins:
        return False
    members["roles"] = [*present, *missing]
    if not has_admins:
        admins["roles"] = ["_admin"]
    await database.set_security({**security, "members": members, "admins": admins})
    return True


async def is_open(database: Database) -> bool:
    """Return whether anybody who can reach the server may read and write the database."""
    members = (await database.security()).get("members") or {}
    return not (members.get("names") or members.get("roles"))


async def give_role(server: CouchServer, name: str, role: str, password: str) -> str:
    """Make sure that there is such a user, with that role; return what was done, in words; nothing where he has it.

    A user who is created, which the words begin with, has that password.

    Raises:
        Forbidden: only an administrator may.
        Unauthorized: CouchDB wants other credentials.
    """
    users = Database(server, "_users")
    user = await users.find(_USER + name)
    if user is None:
        await users.put({"_id": _USER + name, "name": name, "type": "user", "roles": [role], "password": password})
        return f"created user {name} with the role {role}"
    roles = user.get("roles", [])
    if role in roles:
        return ""
    await users.put({**user, "roles": [*roles, role]})
    return f"gave user {name} the role {role}" + (f", beside {', '.join(map(str, roles))}" if roles else "")
