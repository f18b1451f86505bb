"""Who may read and write: the security object of a database, and users with roles.

Source: CouchDB docs, api/database/security and intro/security.
"""

from __future__ import annotations

from collections.abc import Collection

from couchjobs.couch.client import CouchServer
from couchjobs.couch.database import Database, Document

_USER = "org.couchdb.user:"


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


async def users(server: CouchServer, most: int) -> list[Document | None]:
    """Return users of this server, at most so many; None for one that may not be read.

    Raises:
        CouchError: it does not say.
    """
    params = {"include_docs": True, "limit": most, "startkey": _USER}
    rows = (await server.request("GET", "_users/_all_docs", params=params, has="rows"))["rows"]
    return [row["doc"] if isinstance(row.get("doc"), dict) else None for row in rows]
