"""What people are told of a trigger that is stored: why it does not fire, and what is odd about it all the same.

That its worker is nobody's, that a database does not exist, that a secret is missing, that a field is misspelt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import (
    BadDocumentError,
    ConfigurationError,
    CouchError,
    Forbidden,
    MalformedTriggerError,
    NotFound,
    Unauthorized,
    UnknownTriggerError,
)
from couchjobs.jobs.names import near_misses
from couchjobs.overview import who_takes
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.patterns import Patterns
from couchjobs.scheduler.positions import loops_of, loss_of, read_positions
from couchjobs.scheduler.secrets import without_secret
from couchjobs.scheduler.sources import read_sources
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.waits import Turns

_ALIKE = 0.6
_MAY_NOT_BE_ASKED = (Forbidden, Unauthorized, NotFound)


class Remarks:
    """Those on triggers of one tenant, from few requests; what may not be asked is not told."""

    def __init__(self, db: Prefixer) -> None:
        self._db = db
        self._rules: dict[str, EventRules] = {}
        """By trigger, of those that documents fire."""
        self._taken: set[str] | None = None
        self._missing: set[str] = set()
        self._empty: set[str] = set()
        self._unsigned: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._lost: dict[str, str] = {}
        self._loops: dict[str, str] = {}

    @classmethod
    async def of(
        cls, connection: Connection, db: Prefixer, triggers: Iterable[TriggerInfos], *, surely: bool = False
    ) -> Self:
        """Ask what is needed to tell of these triggers: of all that there are, for there are limits on all together.

        `surely`: whether it is an error where CouchDB does not answer.
        """
        untold = _MAY_NOT_BE_ASKED if surely else (CouchError,)
        found, firing, turns = cls(db), [], Turns()
        for infos in triggers:
            await turns.turn()
            if (rules := _rules_of(infos)) is not None:
                found._rules[infos.id] = rules
            if not infos.disabled:
                firing.append(infos)
        found._taken = await who_takes(connection, db)
        for ask in (
            found._ask_databases,
            found._ask_patterns,
            found._ask_secrets,
            found._ask_sources,
            found._ask_feeds,
        ):
            with suppress(*untold):
                await ask(connection, firing)
        return found

    async def _ask_databases(self, connection: Connection, triggers: list[TriggerInfos]) -> None:
        if names := {self._database(doctype) for infos in triggers for doctype in self._doctypes_of(infos)} - {""}:
            self._missing = await connection.server.missing([*names])

    async def _ask_patterns(self, connection: Connection, triggers: list[TriggerInfos]) -> None:
        patterns = {pattern for infos in triggers for pattern in self._patterns_of(infos)}
        found = await Patterns(connection, self._db).doctypes(patterns)
        self._empty = {pattern for pattern, doctypes in found.items() if not doctypes}

    async def _ask_secrets(self, connection: Connection, triggers: list[TriggerInfos]) -> None:
        self._unsigned = await without_secret(connection, self._db, triggers)

    async def _ask_sources(self, connection: Connection, triggers: list[TriggerInfos]) -> None:
        rules = self._rules
        events = [EventTrigger(self._db, infos, rules[infos.id]) for infos in triggers if infos.id in rules]
        if events:
            existing = await Patterns(connection, self._db).named_by(events)
            self._refused = (await (await read_sources(connection, self._db)).admitted(events, existing))[1]

    async def _ask_feeds(self, connection: Connection, triggers: list[TriggerInfos]) -> None:
        if any(infos.id in self._rules for infos in triggers):
            positions = await read_positions(connection, self._db)
            self._lost = {doctype: loss for doctype, position in positions.items() if (loss := loss_of(position))}
            for position in positions.values():
                self._loops.update(loops_of(position))

    def trouble(self, infos: TriggerInfos) -> str:
        """Return why the trigger does not fire; empty where nothing is known of that."""
        reason = self._refused.get(infos.id)
        return f"does not fire: {reason}" if reason else ""

    def loss(self, infos: TriggerInfos) -> str:
        """Return what events it may have missed, and why; empty for none."""
        return "; ".join(self._lost[doctype] for doctype in sorted(self._doctypes_of(infos)) if doctype in self._lost)

    def notes(self, infos: TriggerInfos, document: Document) -> list[str]:
        """Return a sentence for each oddity of the trigger that the document is."""
        notes = near_misses(document, TriggerInfos)
        if infos.disabled:
            return notes
        if self._taken is not None and infos.worker not in self._taken:
            notes.append(nobody_has(infos.worker, self._taken))
        if infos.timezone and infos.type in ("@event", "@webhook", "@client"):
            notes.append(f"its timezone, {infos.timezone}, is not used: {infos.type} fires by no clock")
        if infos.debounce and infos.headers:
            notes.append("its headers are not kept: it is debounced, and a job of many deliveries has none of them")
        notes += filter(None, [self._unsigned.get(infos.id)])
        names = sorted({self._database(doctype) for doctype in self._doctypes_of(infos)} & self._missing)
        empty = sorted(self._empty.intersection(self._patterns_of(infos)))
        notes += [f"there is no database {name}" for name in names]
        rules = self._rules.get(infos.id)
        return [
            *notes,
            *(f"no database matches {pattern} yet" for pattern in empty),
            *(rules.notes if rules is not None else ()),
            *filter(None, [self._loops.get(infos.id)]),
        ]

    def _doctypes_of(self, infos: TriggerInfos) -> frozenset[str]:
        """Return the doctypes that an @event trigger names; none for any other, and for one that is bad."""
        rules = self._rules.get(infos.id)
        return frozenset() if rules is None else rules.doctypes

    def _patterns_of(self, infos: TriggerInfos) -> frozenset[str]:
        rules = self._rules.get(infos.id)
        return frozenset() if rules is None else rules.patterns

    def _database(self, doctype: str) -> str:
        """Return the name of a database of the tenant; empty where there can be none."""
        try:
            return self._db.database(doctype)
        except ConfigurationError:
            return ""


def nobody_has(worker: str, taken: Iterable[str]) -> str:
    """Return that no daemon has that worker, and the one of these that may be meant."""
    return f"no daemon has a worker {worker!r} now{may_mean(worker, taken)}"


def may_mean(worker: str, taken: Iterable[str]) -> str:
    """Return a question after that one of these which is like the worker's name; nothing where none is."""
    alike = difflib.get_close_matches(worker, [*taken], 1, _ALIKE)
    return f": did you mean {alike[0]}?" if alike else ""


def _rules_of(infos: TriggerInfos) -> EventRules | None:
    try:
        rules = parse_trigger(infos)
    except (BadDocumentError, MalformedTriggerError, UnknownTriggerError):
        return None
    return rules if isinstance(rules, EventRules) else None
