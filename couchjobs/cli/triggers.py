"""`triggers add`, `ls`, `show`, `rm` and `fire`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from couchjobs.broker.couch import CouchBroker
from couchjobs.cli.options import (
    Domain,
    Json,
    Prefix,
    Url,
    cell,
    print_document,
    print_json,
    read_json,
    say,
    with_connection,
)
from couchjobs.cli.trigger_edit import (
    Anchor,
    Debounce,
    Ends,
    Grace,
    Misfire,
    Starts,
    Timezone,
    TriggerId,
    tell_of,
)
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import (
    BadDocumentError,
    ConfigurationError,
    Conflict,
    Forbidden,
    MalformedTriggerError,
    NotFound,
    Unauthorized,
    UnknownTriggerError,
)
from couchjobs.jobs.job import Job
from couchjobs.jobs.names import near_misses
from couchjobs.jobs.request import new_job
from couchjobs.jobs.trigger_state import get_trigger_state
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.positions import lost_positions
from couchjobs.scheduler.sources import read_sources
from couchjobs.scheduler.states import state_id, state_of
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.trigger import EventTrigger, new_trigger
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.prospects import coming_times, life_of, notes_on

app = typer.Typer(help="Add, look at, fire and remove triggers.", no_args_is_help=True)
_AT_A_TIME = 10


def _store(connection: Connection) -> TriggerStore:
    return TriggerStore(connection, connection.settings.tenant)


@app.command()
def add(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="TYPE",
            help="@event, @cron, @every, @at, @in, @hourly, @daily, @weekly, @monthly, @webhook, @client",
        ),
    ],
    arguments: Annotated[str, typer.Argument(help="Such as orders:CREATED, 30s, 2026-12-24T18:00:00Z")] = "",
    *,
    worker: Annotated[str, typer.Option("--worker", help="The type of worker.")],
    message: Annotated[str, typer.Option("--message", help="The message of its jobs, as JSON.")] = "null",
    trigger_id: Annotated[str | None, typer.Option("--id", help="Its id; a fresh one where absent.")] = None,
    rules: Annotated[str | None, typer.Option("--rules", help="For @event: structured rules, as JSON.")] = None,
    timezone: Timezone = None,
    debounce: Debounce = None,
    misfire: Misfire = None,
    grace: Grace = None,
    starts: Starts = None,
    ends: Ends = None,
    anchor: Anchor = None,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Store a trigger, and print its id; and, for people to see, its next times."""
    document: dict[str, Any] = {
        "type": kind,
        "arguments": arguments,
        "worker": worker,
        "message": read_json("--message", message),
        "misfire": misfire or "once",
    }
    optional = {
        "_id": trigger_id,
        "timezone": timezone,
        "debounce": debounce,
        "grace": grace,
        "starts": starts,
        "ends": ends,
        "anchor": anchor,
    }
    document |= {name: value for name, value in optional.items() if value is not None}
    if rules is not None:
        document["rules"] = read_json("--rules", rules)

    async def work(connection: Connection) -> TriggerInfos:
        try:
            return await _store(connection).add(TriggerInfos.from_document(document))
        except NotFound as error:
            raise ConfigurationError(f"{error}; run `couchjobs init` first") from error
        except Conflict as error:
            raise ConfigurationError(
                f"there is a trigger {trigger_id!r} already; choose another --id, or remove it"
            ) from error

    infos = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(infos.document())
    else:
        say(infos.id)
        parsed = parse_trigger(infos)
        if not isinstance(parsed, EventRules | OnDemand):
            tell_of(life_of(parsed, infos, None, now()))


@app.command()
def ls(url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """List the triggers with their next time and what became of their last jobs; a bad one shows why it is."""

    async def work(connection: Connection) -> list[dict[str, Any]]:
        try:
            documents = [document async for page in _all_documents(connection) for document in page]
        except NotFound as error:
            raise ConfigurationError(f"{error}; run `couchjobs init` first") from error
        limit = asyncio.Semaphore(_AT_A_TIME)
        refused = await _refused(connection, documents)
        lost = await lost_positions(connection, connection.settings.tenant)

        async def describe(document: Document) -> dict[str, Any]:
            async with limit:
                try:
                    found = await _describe(connection, document)
                except Exception as error:  # noqa: BLE001  no document may hide the others
                    return {**document, "bad": f"bad: {type(error).__name__}: {error}"}
            if reason := refused.get(document["_id"]):
                return {**found, "bad": f"does not fire: {reason}"}
            return {**found, **_lost_of(document, lost)}

        return await asyncio.gather(*(describe(document) for document in documents))

    found = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(found)
        return
    table = Table("id", "type", "arguments", "worker", "next", "last", "note")
    for one in found:
        state = one.get("current_state", {})
        notes = one.get("notes") or (["it is disabled"] if one.get("disabled") else [])
        notes = [*notes, *near_misses(one, TriggerInfos)]
        note = one.get("bad") or one.get("lost") or "; ".join(notes) or state.get("last_error") or ""
        last = state.get("status", "") if state.get("last_executed_job_id") else ""
        texts = [one.get(name, "") for name in ("_id", "type", "arguments", "worker", "next")]
        table.add_row(*map(cell, (*texts, last, note)))
    Console(width=None if Console().is_terminal else 240).print(table)


async def _all_documents(connection: Connection) -> AsyncIterator[list[Document]]:
    """Yield all triggers; one that cannot be read stands there with its id alone."""
    async for page in _store(connection).database.all_found():
        yield [one.document or {"_id": one.doc_id, "unreadable": one.reason} for one in page if not one.absent]


async def _refused(connection: Connection, documents: list[Document]) -> dict[str, str]:
    """Return why @event triggers may not fire, by id; nothing where one may not know."""
    db, events = connection.settings.tenant, []
    for document in documents:
        try:
            trigger = new_trigger(db, TriggerInfos.from_document(document))
        except Exception:  # noqa: BLE001, S112  it is shown as a bad one
            continue
        if isinstance(trigger, EventTrigger) and not trigger.infos.disabled:
            events.append(trigger)
    try:
        return (await (await read_sources(connection, db)).admitted(events))[1] if events else {}
    except (Forbidden, Unauthorized):
        return {}


def _lost_of(document: Document, lost: dict[str, str]) -> dict[str, str]:
    """Return the note of a trigger of whose databases one has lost its position; nothing where none has."""
    try:
        rules = parse_trigger(TriggerInfos.from_document(document))
    except (BadDocumentError, MalformedTriggerError, UnknownTriggerError):
        return {}
    doctypes = rules.doctypes if isinstance(rules, EventRules) else ()
    notes = [lost[doctype] for doctype in sorted(doctypes) if doctype in lost]
    return {"lost": "; ".join(notes)} if notes else {}


async def _describe(connection: Connection, document: Document) -> dict[str, Any]:
    """Return the document with `bad`, or with `next` where there is one and `current_state`."""
    if "unreadable" in document and "type" not in document:
        return {**document, "bad": f"bad: {document['unreadable']}"}
    try:
        infos = TriggerInfos.from_document(document)
        parsed = parse_trigger(infos)
    except (BadDocumentError, MalformedTriggerError, UnknownTriggerError) as error:
        return {**document, "bad": f"bad: {error}"}
    state = await get_trigger_state(connection.settings.tenant, infos.id)
    found = {**document, "current_state": state.model_dump(mode="json", exclude_none=True)}
    if not isinstance(parsed, EventRules | OnDemand):
        stored = state_of(await connection.control.find(state_id(_store(connection).database.name, infos.id)))
        life, present = life_of(parsed, infos, stored, now()), now()
        if notes := notes_on(life, present, is_stored=stored is not None):
            found["notes"] = notes
        if not infos.disabled and (times := coming_times(life, present, 1)):
            found["next"] = format_time(times[0])
    return found


@app.command()
def show(
    trigger_id: TriggerId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False
) -> None:
    """Print the document of a trigger."""

    async def work(connection: Connection) -> TriggerInfos:
        return await _store(connection).get(trigger_id)

    document = with_connection(url, domain, prefix, work).document()
    if as_json:
        print_json(document)
    else:
        print_document(document)


@app.command()
def rm(
    trigger_id: TriggerId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False
) -> None:
    """Delete a trigger; its jobs stay."""

    async def work(connection: Connection) -> None:
        await _store(connection).delete(trigger_id)

    with_connection(url, domain, prefix, work)
    if as_json:
        print_json({"id": trigger_id, "deleted": True})
    else:
        say(f"{trigger_id} deleted")


@app.command()
def fire(
    trigger_id: TriggerId,
    payload: Annotated[str | None, typer.Argument(help="Of a @webhook: the payload, as JSON.")] = None,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Store a job of a trigger now, and print the job's id."""
    value = read_json("PAYLOAD", payload) if payload is not None else None

    async def work(connection: Connection) -> Job:
        infos = await _store(connection).get(trigger_id)
        if infos.type == "@webhook":
            return await CouchScheduler(connection).fire_webhook(trigger_id, value, manual=True)
        if payload is not None:
            raise ConfigurationError(f"trigger {trigger_id} is {infos.type}: only a @webhook has a payload")
        job = new_job(connection.settings.tenant, infos.job_request(manual=True))
        await CouchBroker(connection).store_job(job)
        return job

    job = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(job.document())
    else:
        say(job.id)
