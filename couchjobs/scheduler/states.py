"""The stored state of schedules: `schedule:<triggers database>:<trigger>` in the control database.

Beside what `life.State` says, it holds `type`, `arguments` and `timezone` as its trigger has them, for daemons of a
version that knows no more of a schedule than its text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from couchjobs.couch.answers import WriteAnswer, Written, as_error
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.couch.surely import INSIST_ON_OWN_S, Refusals, write_or_raise, write_shortly
from couchjobs.errors import CouchjobsError, MalformedTriggerError, NotFound, Unavailable
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import format_time, now, parse_time
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.life import Life, State
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.prospects import life_of
from couchjobs.triggers.schedule import Schedule
from couchjobs.waits import Turns

_logger = get_logger(__name__)
_SCHEDULE = "schedule:"
_TIMES = ("anchor", "passed", "last", "fired", "firing", "missed_at")
_DROPPED_TIMES = 5
"""Tries for a state that others write at the same time."""
_TEXTS = ("slot", "former", "seed", "note", "rev")


def state_id(triggers_database: str, trigger_id: str) -> str:
    """Return the id of the document that holds the schedule state of a trigger."""
    return f"{_SCHEDULE}{triggers_database}:{trigger_id}"


def state_of(document: Document | None) -> State | None:
    """Return the state that a document holds; None where it holds none that can be understood."""
    if document is None:
        return None
    try:
        times = {name: parse_time(document[name]) for name in _TIMES if document.get(name)}
        texts = {name: document[name] for name in _TEXTS if isinstance(document.get(name), str)}
        anchor = times.pop("anchor")
        if anchor is None or not _is_seed(texts.get("seed", "")):
            return None
        meaning, family = document.get("schedule"), document.get("family")
        if not isinstance(meaning, str) or not meaning.split() or not isinstance(family, str) or _text_moved(document):
            meaning, family = _meaning_of_text(document)
        passed = times.pop("passed", None) or times.get("last") or anchor
        if "schedule" not in document:
            times["fired"] = times.get("last")
        missed = document.get("missed", 0)
        missed = missed if type(missed) is int and missed > 0 else 0
        given: dict[str, Any] = {**times, **texts, "paused": document.get("paused") is True}
        return State(meaning, family, anchor, passed, missed=missed, **given)
    except (KeyError, TypeError, ValueError, CouchjobsError):
        return None


def _is_seed(text: str) -> bool:
    return not text or (len(text) == 64 and all(one in "0123456789abcdef" for one in text))


def _text_moved(document: Document) -> bool:
    """Return whether another version has written another text beside what the state means."""
    return document.get("of") != _text_of(document)


def _text_of(document: Document) -> list[object]:
    return [document.get("type"), document.get("arguments"), document.get("timezone")]


def _meaning_of_text(document: Document) -> tuple[str, str]:
    kind, arguments, timezone = _text_of(document)
    given = {"_id": "state", "type": kind, "arguments": arguments, "timezone": timezone, "worker": "w", "message": None}
    parsed = parse_trigger(TriggerInfos.from_document(given))
    if isinstance(parsed, EventRules | OnDemand):
        raise TypeError(f"{kind} is no schedule")
    return parsed.meaning, parsed.family


def document_of(state: State, infos: TriggerInfos) -> Document:
    """Return what is stored of a state, without `_id` and `_rev`."""
    document: Document = {
        "type": infos.type,
        "arguments": infos.arguments,
        "timezone": infos.timezone,
        "schedule": state.meaning,
        "family": state.family,
    }
    document["of"] = _text_of(document)
    for name in _TIMES:
        if (time := getattr(state, name)) is not None:
            document[name] = format_time(time)
    for name in (*_TEXTS, "paused", "missed"):
        if value := getattr(state, name):
            document[name] = value
    return document


class States:
    """The schedule states of one tenant's triggers."""

    def __init__(self, connection: Connection, triggers_database: str) -> None:
        self.control = connection.control
        self._writer = connection.writer(connection.control.name)
        self._database = triggers_database
        self._revs: dict[str, str] = {}
        self._refusals = Refusals(INSIST_ON_OWN_S)

    def id_of(self, trigger_id: str) -> str:
        """Return the id of the document of that trigger's state."""
        return state_id(self._database, trigger_id)

    async def read(self, trigger_ids: Iterable[str]) -> dict[str, State | None]:
        """Return the states of these triggers; None where there is none that can be understood.

        Those are left out of which CouchDB does not say now whether they have one.
        """
        ids = {self.id_of(trigger_id): trigger_id for trigger_id in trigger_ids}
        return {
            ids[one.doc_id]: self._taken(ids[one.doc_id], one.document)
            for one in await self.control.read(ids)
            if one.document is not None or one.absent or one.unreadable
        }

    async def all(self) -> AsyncIterator[str]:
        """Yield the ids of all triggers that have a state."""
        async for revisions in self.control.revisions_with_prefix(self.id_of("")):
            for doc_id, rev in revisions.items():
                trigger_id = doc_id.removeprefix(self.id_of(""))
                self._revs[trigger_id] = rev
                yield trigger_id

    def _taken(self, trigger_id: str, document: Document | None) -> State | None:
        self._revs.pop(trigger_id, None)
        if document is not None:
            self._revs[trigger_id] = document["_rev"]
        return state_of(document)

    async def write(self, infos: TriggerInfos, state: State) -> bool:
        """Store the state; return False where somebody else has written it since it was read."""
        document = {"_id": self.id_of(infos.id), **document_of(state, infos)}
        if infos.id in self._revs:
            document["_rev"] = self._revs[infos.id]
        answer = await write_or_raise(self._writer, document)
        if answer.stored:
            self._revs[infos.id] = answer.rev
        return answer.stored

    def has(self, trigger_id: str) -> bool:
        """Return whether that trigger has a state, as far as is known here."""
        return trigger_id in self._revs

    async def drop(self, trigger_id: str, is_gone: Callable[[], bool] = lambda: True) -> None:
        """Delete the state of a trigger that is gone, whoever has written it since it was read.

        `is_gone`: whether that is still so.

        Raises:
            CouchError: it may be there still.
        """
        doc_id = self.id_of(trigger_id)
        for _ in range(_DROPPED_TIMES + 1):
            if trigger_id not in self._revs or not is_gone():
                return
            tombstone = {"_id": doc_id, "_rev": self._revs[trigger_id], "_deleted": True}
            try:
                answer = await write_shortly(self._writer, tombstone, self._refusals)
            except NotFound:
                _logger.info("schedule state is gone with its database", trigger=trigger_id)
                answer = WriteAnswer(Written.OK)
            if answer.written is Written.REFUSED:
                _logger.error("a schedule state cannot be deleted", trigger=trigger_id, reason=answer.reason)
            if answer.stored or answer.written is Written.REFUSED:
                self._revs.pop(trigger_id, None)
                return
            if answer.written is Written.UNKNOWN:
                raise as_error(answer, f"{doc_id} in database {self.control.name}")
            self._taken(trigger_id, await self.control.find(doc_id))
        raise Unavailable(f"{doc_id} changes all the time, or a copy of it is behind")


async def lives_in(connection: Connection, db: Prefixer, triggers: Iterable[TriggerInfos]) -> dict[str, Life | str]:
    """Return the schedules of stored triggers as they live, by id, or what is wrong with one; others are left out."""
    name = connection.database(db.database(connection.settings.triggers_doctype)).name
    parsed: dict[str, tuple[TriggerInfos, Schedule]] = {}
    lives: dict[str, Life | str] = {}
    turns = Turns()
    for written in triggers:
        await turns.turn()
        infos = written.model_copy(update={"prefix": db.prefix})  # what a document says of its tenant is not asked
        try:
            schedule = parse_trigger(infos)
        except (CouchjobsError, ValueError) as error:
            lives[infos.id] = str(error)
            continue
        if not isinstance(schedule, EventRules | OnDemand):
            parsed[infos.id] = infos, schedule
    documents = await connection.control.get_many(state_id(name, trigger_id) for trigger_id in parsed)
    for trigger_id, (infos, schedule) in parsed.items():
        await turns.turn()
        lives[trigger_id] = life_of(schedule, infos, state_of(documents.get(state_id(name, trigger_id))), now())
    return lives


async def life_in(connection: Connection, db: Prefixer, infos: TriggerInfos) -> Life | None:
    """Return the schedule of a stored trigger as it lives; None where it does not fire by the clock.

    Raises:
        MalformedTriggerError: it is none.
    """
    found = (await lives_in(connection, db, [infos])).get(infos.id)
    if isinstance(found, str):
        raise MalformedTriggerError(found)
    return found
