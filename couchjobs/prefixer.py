"""Which tenant, hence which databases."""

from __future__ import annotations

import re
from dataclasses import dataclass

from couchjobs.errors import ConfigurationError

_LEGAL = re.compile(r"^[a-z][a-z0-9_$()+/-]*$")
_MAX_LENGTH = 238
"""CouchDB's own limit for the name of a database."""
USERS = "_users"
"""The database of users, which is the server's, whatever the tenant."""


@dataclass(frozen=True, slots=True)
class Prefixer:
    """One tenant: its domain, and the prefix of its databases (None: no prefix)."""

    domain: str = ""
    prefix: str | None = None

    @property
    def domain_name(self) -> str:
        """Return the domain."""
        return self.domain

    @property
    def db_prefix(self) -> str:
        """Return the prefix of the databases, empty where there is none."""
        return self.prefix or ""

    @property
    def key(self) -> str:
        """Return what tells this tenant from others: what the names of its databases begin with."""
        return escape(self.db_prefix)

    def database(self, doctype: str) -> str:
        """Return the name of this tenant's database for `doctype`.

        Raises:
            ConfigurationError: CouchDB allows no such name.
        """
        if doctype == USERS:
            return USERS
        name = escape(f"{self.prefix}/{doctype}" if self.prefix else doctype)
        if not _LEGAL.match(name) or len(name) > _MAX_LENGTH:
            raise ConfigurationError(
                f"{name!r} is no name for a database: it must begin with a letter and hold only a-z 0-9 _ $ ( ) + - /, "
                f"at most {_MAX_LENGTH} characters (prefix {self.prefix!r}, doctype {doctype!r})"
            )
        return name

    def followed_as(self, doctype: str) -> str:
        """Return by which name is kept how far this tenant has followed the database for `doctype`: it is its own.

        Raises:
            ConfigurationError: CouchDB allows no such name.
        """
        return f"{self.key}/{USERS}" if doctype == USERS and self.key else self.database(doctype)


def escape(name: str) -> str:
    """Return `name` as a database name: lower case, `.` and `:` as `-`."""
    return name.lower().replace(".", "-").replace(":", "-")
