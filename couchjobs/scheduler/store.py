"""The trigger documents of one tenant."""

from __future__ import annotations

from collections.abc import Callable

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document, is_id
from couchjobs.errors import (
    BadDocumentError,
    Conflict,
    Forbidden,
    MalformedTriggerError,
    TriggerNotFoundError,
    Unauthorized,
)
from couchjobs.jobs.checking import JobCheck
from couchjobs.jobs.ids import new_id
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.sources import read_sources, refusal_of_own
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import ParsedTrigger, parse_new_trigger, parse_trigger
from couchjobs.waits import Turns

_logger = get_logger(__name__)


Check = Callable[[TriggerInfos], object]


class TriggerStore:
    """The triggers of one tenant. The constructor does not touch the network."""

    def __init__(self, connection: Connection, db: Prefixer) -> None:
        self.db = db
        self.database = connection.database(db.database(connection.settings.triggers_doctype))
        self._connection = connection
        self._go_durations = connection.settings.go_durations
        self._checks = JobCheck(db, connection.settings)

    def read(self, document: Document) -> TriggerInfos:
        """Return the trigger that the document holds.

        Raises:
            BadDocumentError: it is none, or no daemon could run its jobs; the message says why.
        """
        infos = TriggerInfos.from_document(document, go_durations=self._go_durations)
        self._checks.check_message(infos.message)
        return infos

    async def add(self, infos: TriggerInfos) -> TriggerInfos:
        """Store a trigger and return it as it was stored.

        Raises:
            BadDocumentError: no document can have its id.
            UnknownTriggerError: its type is not known.
            MalformedTriggerError: its arguments cannot be parsed, or name a database that events may not come from.
            Conflict: there is a trigger with that id.
        """
        if infos.id.startswith("_"):
            raise BadDocumentError(f"the id {infos.id[:80]!r} is no trigger's: CouchDB keeps those with _ for itself")
        self._checks.check_message(infos.message)
        await self._check(infos)
        document = {"_id": new_id(), "domain": self.db.domain, **infos.document()}
        if self._go_durations and infos.options is not None:
            document["options"] = infos.options.stored(go_durations=True)
        if self.db.prefix:
            document.setdefault("prefix", self.db.prefix)
        document["_rev"] = await self.database.put(document)
        return self.read(document)

    async def replace(self, trigger_id: str, changes: Document, check: Check | None = None) -> TriggerInfos:
        """Change fields of a trigger, None removing one, and return it as it was stored.

        `check`: is given the trigger as it is before; what it raises is raised, and nothing changes.

        Raises:
            TriggerNotFoundError: there is none with that id.
            BadDocumentError: it would be none.
            UnknownTriggerError: its type is not known.
            MalformedTriggerError: its arguments cannot be parsed, or name a database that events may not come from.
            Conflict: somebody else has changed it meanwhile.
        """
        document = await self._find(trigger_id)
        if check is not None:
            check(self.read(document))
        kept = {name: value for name, value in {**document, **changes}.items() if changes.get(name, "") is not None}
        if "message" in changes:
            kept["message"] = changes["message"]
        infos = self.read(kept)
        await self._check(infos)
        return self.read({**kept, "_rev": await self.database.put(kept)})

    async def _check(self, infos: TriggerInfos) -> None:
        parsed = parse_new_trigger(infos)
        if isinstance(parsed, EventRules):
            await self._check_sources(parsed)

    async def _find(self, trigger_id: str) -> Document:
        document = await self.database.find(trigger_id) if is_id(trigger_id) else None
        if document is None:
            raise TriggerNotFoundError(f"no trigger {trigger_id!r} in database {self.database.name}")
        return document

    async def _check_sources(self, rules: EventRules) -> None:
        """Raise MalformedTriggerError where events may not come from one of the databases, as far as one may know."""
        settings = self._connection.settings
        try:
            sources = await read_sources(self._connection, self.db)
        except (Forbidden, Unauthorized):  # a producer may not read the list; daemons do, and refuse
            sources = None
        for doctype in sorted(rules.doctypes):
            if sources is None:
                reason = refusal_of_own(settings, self.db, doctype, jobs=True)
            else:
                reason = await sources.refusal(doctype)
            if reason:
                raise MalformedTriggerError(reason)
        if sources is not None and (reason := sources.pattern_refusal(rules.patterns)):
            raise MalformedTriggerError(reason)

    async def get(self, trigger_id: str) -> TriggerInfos:
        """Return the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
            BadDocumentError: the document is none.
        """
        return self.read(await self._find(trigger_id))

    async def delete(self, trigger_id: str, check: Check | None = None) -> None:
        """Delete the trigger, whatever it has become; `check`: as for `replace`.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """
        while True:
            document = await self._find(trigger_id)
            if check is not None:
                check(self.read(document))
            if await self.delete_revision(trigger_id, document["_rev"]):
                return

    async def delete_revision(self, trigger_id: str, rev: str) -> bool:
        """Delete the trigger at that revision; return False where it has changed or is gone."""
        try:
            await self.database.delete(trigger_id, rev)
        except Conflict:
            return False
        return True

    async def parsed(self) -> list[tuple[TriggerInfos, ParsedTrigger]]:
        """Return all triggers that can be understood, with what makes them fire, ordered by id."""
        found: list[tuple[TriggerInfos, ParsedTrigger]] = []
        turns = Turns()
        for infos in await self.all():
            await turns.turn()
            try:
                found.append((infos, parse_trigger(infos)))
            except Exception as error:  # noqa: BLE001  no document may stop the others
                _logger.warning("bad trigger", trigger=infos.id, reason=str(error))
        return found

    async def all(self) -> list[TriggerInfos]:
        """Return all triggers that can be read, ordered by id; a bad one is logged."""
        found: list[TriggerInfos] = []
        turns = Turns()
        async for documents in self.database.all_docs():
            for document in documents:
                await turns.turn()
                try:
                    found.append(self.read(document))
                except Exception as error:  # noqa: BLE001  no document may stop the others
                    _logger.warning("bad trigger", trigger=document["_id"], reason=str(error))
        return found
