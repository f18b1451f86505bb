"""Databases that rules name by a pattern, such as `userdb-*`: which there are, and of which all documents are new.

What a trigger fires for is newer than the trigger. Of a database that was there when its pattern was first looked at,
that is what comes from then on; of one that was made later, it is everything, whether or not a daemon saw it come. So
the names that there were then are kept: `pattern:<database of triggers>:<pattern>` = `{domain, prefix, known}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from couchjobs.couch.connection import Connection
from couchjobs.errors import Conflict, Forbidden, Unauthorized, Unavailable
from couchjobs.prefixer import Prefixer, escape
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.triggers.event import name_pattern

_PREFIX = "pattern:"


class Patterns:
    """Those of one tenant."""

    def __init__(self, connection: Connection, db: Prefixer) -> None:
        self._connection = connection
        self._db = db
        self._prefix = f"{_PREFIX}{db.database(connection.settings.triggers_doctype)}:"
        self._known: dict[str, frozenset[str]] = {}
        """By pattern, which doctypes there were at the first look."""

    async def doctypes(self, patterns: Iterable[str]) -> dict[str, set[str]]:
        """Return, by pattern, the doctypes whose databases exist.

        Raises:
            Forbidden: only an administrator may list the databases of this server.
        """
        found: dict[str, set[str]] = {}
        for pattern in patterns:
            beginning = self._beginning + escape(pattern.partition("*")[0])
            found[pattern] = self._matching(pattern, await self._connection.server.databases_from(beginning))
        return found

    @property
    def _beginning(self) -> str:
        return f"{self._db.key}/" if self._db.key else ""

    def _matching(self, pattern: str, names: Iterable[str]) -> set[str]:
        """Return the doctypes of these databases that are the tenant's and match."""
        matches = name_pattern(pattern)
        own = (name.removeprefix(self._beginning) for name in names if name.startswith(self._beginning))
        return {doctype for doctype in own if matches(doctype)}

    async def named_by(self, triggers: Iterable[EventTrigger]) -> dict[str, set[str]]:
        """Return the same for all patterns of these triggers; nothing where one may not know."""
        patterns = {pattern for trigger in triggers for pattern in trigger.rules.patterns}
        try:
            return await self.doctypes(patterns)
        except (Forbidden, Unauthorized):
            return {}

    async def note(self, found: dict[str, set[str]]) -> None:
        """Keep what was found of patterns that are looked at for the first time."""
        control = self._connection.control
        self._known.clear()
        if not found:
            return
        stored = {document["_id"]: document for document in await control.with_prefix(self._prefix)}
        for pattern, doctypes in found.items():
            doc_id = self._prefix + pattern
            if doc_id not in stored:
                whose = {"domain": self._db.domain, "prefix": self._db.db_prefix}
                known_now = doctypes | await self._surely_matching(pattern)
                stored[doc_id] = {"_id": doc_id, **whose, "known": sorted(known_now)}
                with suppress(Conflict):  # another daemon was faster
                    await control.put(stored[doc_id])
                stored[doc_id] = await control.get(doc_id)
            known = stored[doc_id].get("known")
            self._known[pattern] = frozenset(known if isinstance(known, list) else ())

    async def _surely_matching(self, pattern: str) -> set[str]:
        """Return the doctypes that match, of a list that is CouchDB's: it holds a database that is there for certain.

        What is left out of the first look would be new at the next one, and all of it would fire.

        Raises:
            Unavailable: the list is not to be had now.
        """
        names = await self._connection.server.all_databases()
        if self._connection.control.name not in names:
            raise Unavailable("GET /_all_dbs: a list of databases without that of couchjobs itself")
        return self._matching(pattern, names)

    async def drop(self, named: Iterable[str]) -> None:
        """Forget the patterns that no trigger names: one that names them later begins anew."""
        kept = {self._prefix + pattern for pattern in named}
        for document in await self._connection.control.with_prefix(self._prefix):
            if document["_id"] not in kept:
                with suppress(Conflict):
                    await self._connection.control.delete(document["_id"], document["_rev"])

    def is_new(self, doctype: str) -> bool:
        """Return whether a database has been made since some pattern that it matches was first looked at."""
        return any(doctype not in known and name_pattern(pattern)(doctype) for pattern, known in self._known.items())
