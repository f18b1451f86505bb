"""`couchjobs triggers ls`: what each trigger is about to do, what became of it, and what is odd about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from rich.console import Console
from rich.table import Table

from couchjobs.cli.options import (
    Domain,
    Json,
    Prefix,
    Url,
    cell,
    print_json,
    with_connection,
)
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import (
    BadDocumentError,
    Forbidden,
    MalformedTriggerError,
    Unauthorized,
    UnknownTriggerError,
)
from couchjobs.jobs.names import near_misses
from couchjobs.jobs.trigger_state import get_trigger_state
from couchjobs.remarks import Remarks
from couchjobs.scheduler.states import state_id, state_of
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos, is_disabled
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.prospects import coming_times, life_of, notes_on

_AT_A_TIME = 10


def _store(connection: Connection) -> TriggerStore:
    return TriggerStore(connection, connection.settings.tenant)


def ls(url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """List the triggers with their next time and what became of their last jobs; a bad one shows why it is."""

    async def work(connection: Connection) -> list[dict[str, Any]]:
        documents = [document async for page in _all_documents(connection) for document in page]
        limit = asyncio.Semaphore(_AT_A_TIME)
        store = _store(connection)
        understood = {infos.id: infos for document in documents if (infos := _understood(store, document))}
        remarks = await Remarks.of(connection, connection.settings.tenant, understood.values())

        async def describe(document: Document) -> dict[str, Any]:
            async with limit:
                try:
                    found = await _describe(connection, document)
                except Exception as error:  # noqa: BLE001  no document may hide the others
                    return {**document, "bad": f"bad: {type(error).__name__}: {error}"}
            infos = understood.get(document["_id"])
            if infos is None:
                return {**found, "notes": near_misses(document, TriggerInfos)}
            bad = {"bad": trouble} if (trouble := remarks.trouble(infos)) else {}
            lost = {"lost": loss} if (loss := remarks.loss(infos)) else {}
            return {**found, **bad, **lost, "notes": [*found.get("notes", []), *remarks.notes(infos, document)]}

        return await asyncio.gather(*(describe(document) for document in documents))

    found = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(found)
        return
    table = Table("id", "type", "arguments", "worker", "next", "last", "note")
    for one in found:
        state = one.get("current_state", {})
        notes = ["it is disabled"] if is_disabled(one) and not one.get("notes") else []
        notes = [*notes, *one.get("notes", [])]
        bad = "; ".join([one["bad"], *notes]) if one.get("bad") else ""
        note = bad or one.get("lost") or "; ".join(notes) or state.get("last_error") or ""
        last = state.get("status", "") if state.get("last_executed_job_id") else ""
        told = " ".join(str(one[name]) for name in ("arguments", "timezone") if one.get(name))
        texts = [one.get("_id", ""), one.get("type", ""), told, one.get("worker", ""), one.get("next", "")]
        table.add_row(*map(cell, (*texts, last, note)))
    Console(width=None if Console().is_terminal else 240).print(table)


async def _all_documents(connection: Connection) -> AsyncIterator[list[Document]]:
    """Yield all triggers; one that cannot be read stands there with its id alone."""
    async for page in _store(connection).database.all_found():
        yield [one.document or {"_id": one.doc_id, "unreadable": one.reason} for one in page if not one.absent]


def _understood(store: TriggerStore, document: Document) -> TriggerInfos | None:
    try:
        return store.read(document)
    except Exception:  # noqa: BLE001  whatever it holds: it is shown as a bad one
        return None


async def _describe(connection: Connection, document: Document) -> dict[str, Any]:
    """Return the document with `bad`, or with `next` where there is one and `current_state`."""
    if "unreadable" in document and "type" not in document:
        return {**document, "bad": f"bad: {document['unreadable']}"}
    try:
        infos = _store(connection).read(document)
        parsed = parse_trigger(infos)
    except (BadDocumentError, MalformedTriggerError, UnknownTriggerError) as error:
        return {**document, "bad": f"bad: {error}"}
    state = await get_trigger_state(connection.settings.tenant, infos.id)
    found = {**document, "current_state": state.model_dump(mode="json", exclude_none=True)}
    if not isinstance(parsed, EventRules | OnDemand):
        try:
            stored = state_of(await connection.control.find(state_id(_store(connection).database.name, infos.id)))
        except (Forbidden, Unauthorized):
            return {**found, "notes": ["its next time is not known: this user may not read the control database"]}
        life, present = life_of(parsed, infos, stored, now()), now()
        if notes := notes_on(life, present, is_stored=stored is not None):
            found["notes"] = notes
        if not infos.disabled and (times := coming_times(life, present, 1)):
            found["next"] = format_time(times[0])
    return found
