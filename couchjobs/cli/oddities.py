"""What is odd about a trigger that is stored all the same: its worker that nobody has, databases that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from couchjobs.cli.jobs import who_takes
from couchjobs.couch.connection import Connection
from couchjobs.errors import (
    BadDocumentError,
    ConfigurationError,
    CouchError,
    MalformedTriggerError,
    UnknownTriggerError,
)
from couchjobs.scheduler.patterns import Patterns
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger

_ALIKE = 0.6


class Oddities:
    """Those of triggers of one tenant, from few requests; what may not be asked is not told."""

    def __init__(self, taken: set[str] | None, missing: set[str], empty: set[str], connection: Connection) -> None:
        self._taken = taken
        self._missing = missing
        self._empty = empty
        self._connection = connection

    @classmethod
    async def of(cls, connection: Connection, triggers: Iterable[TriggerInfos]) -> Oddities:
        """Ask what is needed to tell of these triggers."""
        triggers = [*triggers]
        names = {_database(connection, doctype) for infos in triggers for doctype in doctypes_of(infos)} - {""}
        try:
            missing = await connection.server.missing([*names]) if names else set()
        except CouchError:
            missing = set()
        patterns = {pattern for infos in triggers for pattern in _patterns_of(infos)}
        try:
            found = await Patterns(connection, connection.settings.tenant).doctypes(patterns)
        except CouchError:
            found = {}
        empty = {pattern for pattern, doctypes in found.items() if not doctypes}
        return cls(await who_takes(connection), missing, empty, connection)

    def notes(self, infos: TriggerInfos) -> list[str]:
        """Return a sentence for each oddity of the trigger."""
        notes = []
        if self._taken is not None and infos.worker not in self._taken:
            notes.append(nobody_has(infos.worker, self._taken))
        if infos.timezone and infos.type in ("@event", "@webhook", "@client"):
            notes.append(f"its timezone, {infos.timezone}, is not used: {infos.type} fires by no clock")
        names = sorted({_database(self._connection, doctype) for doctype in doctypes_of(infos)} & self._missing)
        empty = sorted(self._empty.intersection(_patterns_of(infos)))
        notes += [f"there is no database {name}" for name in names]
        rules = _rules_of(infos)
        return [
            *notes,
            *(f"no database matches {pattern} yet" for pattern in empty),
            *(rules.notes if rules is not None else ()),
        ]


def nobody_has(worker: str, taken: Iterable[str]) -> str:
    """Return that no daemon has that worker, and the one of these that may be meant."""
    alike = difflib.get_close_matches(worker, [*taken], 1, _ALIKE)
    return f"no daemon has a worker {worker!r} now" + (f": did you mean {alike[0]}?" if alike else "")


def doctypes_of(infos: TriggerInfos) -> frozenset[str]:
    """Return the doctypes that an @event trigger names; none for any other, and for one that cannot be understood."""
    rules = _rules_of(infos)
    return frozenset() if rules is None else rules.doctypes


def _patterns_of(infos: TriggerInfos) -> Iterable[str]:
    rules = _rules_of(infos)
    return () if rules is None else rules.patterns


def _rules_of(infos: TriggerInfos) -> EventRules | None:
    try:
        rules = parse_trigger(infos)
    except (BadDocumentError, MalformedTriggerError, UnknownTriggerError):
        return None
    return rules if isinstance(rules, EventRules) else None


def _database(connection: Connection, doctype: str) -> str:
    """Return the name of a database of the tenant; empty where there can be none."""
    try:
        return connection.settings.tenant.database(doctype)
    except ConfigurationError:
        return ""
