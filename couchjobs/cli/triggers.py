"""`triggers add`, `ls`, `show`, `rm` and `fire`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from couchjobs.cli.options import (
    Domain,
    Json,
    Prefix,
    Url,
    print_document,
    print_json,
    read_json,
    say,
    with_connection,
)
from couchjobs.cli.trigger_edit import (
    Accept,
    Anchor,
    Debounce,
    Ends,
    Grace,
    Headers,
    Misfire,
    Starts,
    Timezone,
    TriggerId,
    UniqueBy,
    Verify,
    tell_of,
    webhook_fields,
)
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import (
    ConfigurationError,
    Conflict,
    TriggerNotFoundError,
)
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import new_job
from couchjobs.log import plain
from couchjobs.remarks import Remarks
from couchjobs.scheduler.couch import CouchScheduler
from couchjobs.scheduler.declared import MARK
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import now
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.prospects import life_of
from couchjobs.workers.pushing import Pusher

app = typer.Typer(help="Add, look at, fire and remove triggers.", no_args_is_help=True)


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
    once: Annotated[bool, typer.Option("--once", help="For @event: one job for each document.")] = False,
    options: Annotated[str | None, typer.Option("--options", help="The options of its jobs, as JSON.")] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Do not fire until it is enabled.")] = False,
    timezone: Timezone = None,
    debounce: Debounce = None,
    misfire: Misfire = None,
    grace: Grace = None,
    starts: Starts = None,
    ends: Ends = None,
    anchor: Anchor = None,
    verify: Verify = None,
    headers: Headers = None,
    unique_by: UniqueBy = None,
    accept: Accept = None,
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
    document |= webhook_fields(verify, headers, unique_by, accept)
    for name, text in (("rules", rules), ("options", options)):
        if text is not None:
            document[name] = read_json(f"--{name}", text)
    document |= {name: True for name, wanted in (("once", once), ("disabled", disabled)) if wanted}

    async def work(connection: Connection) -> tuple[TriggerInfos, list[str]]:
        try:
            stored = await _store(connection).add(TriggerInfos.from_document(document))
            remarks = await Remarks.of(connection, connection.settings.tenant, [stored])
            return stored, remarks.notes(stored, document)
        except Conflict as error:
            raise ConfigurationError(
                f"there is a trigger {trigger_id!r} already; choose another --id, or remove it"
            ) from error

    infos, odd = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(infos.document())
    else:
        say(infos.id)
        for note in odd:
            print(plain(f"note: {note}"), file=sys.stderr)
        parsed = parse_trigger(infos)
        if not isinstance(parsed, EventRules | OnDemand):
            tell_of(life_of(parsed, infos, None, now()))


@app.command()
def show(
    trigger_id: TriggerId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False
) -> None:
    """Print the document of a trigger."""

    async def work(connection: Connection) -> Document:
        document = await _store(connection).database.find(trigger_id)
        if document is None:
            raise TriggerNotFoundError(f"no trigger {trigger_id!r}")
        return document

    document = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(document)
    else:
        print_document(document)


@app.command()
def rm(
    trigger_ids: Annotated[list[str], typer.Argument(help="Ids of triggers.")],
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Delete triggers; their jobs stay. One that is not there is named, and keeps no other."""
    deleted, missing = with_connection(url, domain, prefix, lambda connection: _delete(connection, trigger_ids))
    if any(deleted.values()):
        print("couchjobs: what is declared in code, daemons that declare it write again: disable it", file=sys.stderr)
    for trigger_id in deleted:
        if as_json:
            print_json({"id": trigger_id, "deleted": True})
        else:
            say(f"{trigger_id} deleted")
    for error in missing:
        print(plain(f"couchjobs: {error}"), file=sys.stderr)
    if missing:
        raise typer.Exit(2)


async def _delete(connection: Connection, trigger_ids: list[str]) -> tuple[dict[str, bool], list[TriggerNotFoundError]]:
    """Delete triggers; return which, and whether they are declared in code, and what is said of the others."""
    store = _store(connection)
    deleted, missing = {}, []
    for trigger_id in trigger_ids:
        document = await store.database.find(trigger_id)
        try:
            await store.delete(trigger_id)
        except TriggerNotFoundError as error:
            missing.append(error)
        else:
            deleted[trigger_id] = document is not None and document.get(MARK) is True
    return deleted, missing


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
            job = await CouchScheduler(connection).fire_webhook(trigger_id, value, manual=True)
        elif payload is not None:
            raise ConfigurationError(f"trigger {trigger_id} is {infos.type}: only a @webhook has a payload")
        else:
            stored = await Pusher(connection).store(new_job(connection.settings.tenant, infos.job_request(manual=True)))
            job = None if stored is None else stored.job
        if job is None:
            raise ConfigurationError("a before_hook does not want this job")
        return job

    job = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(job.document())
    else:
        say(job.id)
