"""`triggers add`, `ls`, `show`, `rm` and `fire`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from couchjobs.broker.couch import CouchBroker
from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, read_json, with_connection
from couchjobs.couch.connection import Connection
from couchjobs.errors import (
    BadDocumentError,
    ConfigurationError,
    Conflict,
    MalformedTriggerError,
    NotFound,
    UnknownTriggerError,
)
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import new_job
from couchjobs.scheduler.store import TriggerStore
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

app = typer.Typer(help="Add, look at, fire and remove triggers.", no_args_is_help=True)
TriggerId = Annotated[str, typer.Argument(help="The trigger's id.")]


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
    arguments: Annotated[str, typer.Argument(help="Such as orders:CREATED, 30s, 2026-12-24T18:00:00Z")],
    worker: Annotated[str, typer.Option("--worker", help="The type of worker.")],
    message: Annotated[str, typer.Option("--message", help="The message of its jobs, as JSON.")] = "null",
    trigger_id: Annotated[str | None, typer.Option("--id", help="Its id; a fresh one where absent.")] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="For @cron and the like, such as Europe/Paris.")
    ] = None,
    misfire: Annotated[
        str, typer.Option("--misfire", help="once: missed ticks make one late job; skip: none.")
    ] = "once",
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Store a trigger, and print its id."""
    document: dict[str, Any] = {
        "type": kind,
        "arguments": arguments,
        "worker": worker,
        "message": read_json("--message", message),
        "misfire": misfire,
    }
    optional = {"_id": trigger_id, "timezone": timezone}
    document |= {name: value for name, value in optional.items() if value is not None}

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
        print(infos.id)


@app.command()
def ls(url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """List the triggers; a bad one shows why it is."""

    async def work(connection: Connection) -> list[Document]:
        try:
            return [document async for page in _store(connection).database.all_docs() for document in page]
        except NotFound as error:
            raise ConfigurationError(f"{error}; run `couchjobs init` first") from error

    documents = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(
            [{**document, "bad": reason} if (reason := _reason(document)) else document for document in documents]
        )
        return
    table = Table("id", "type", "arguments", "worker", "note")
    for document in documents:
        note = _reason(document) or ("disabled" if document.get("disabled") else "")
        table.add_row(*(str(document.get(name, "")) for name in ("_id", "type", "arguments", "worker")), note)
    Console(width=None if Console().is_terminal else 200).print(table)


def _reason(document: Document) -> str:
    try:
        parse_trigger(TriggerInfos.from_document(document))
    except (BadDocumentError, MalformedTriggerError, UnknownTriggerError) as error:
        return f"bad: {error}"
    return ""


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
        Console().print_json(data=document)


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
        print(f"{trigger_id} deleted")


@app.command()
def fire(
    trigger_id: TriggerId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False
) -> None:
    """Store a job of a trigger now, and print the job's id."""

    async def work(connection: Connection) -> Job:
        infos = await _store(connection).get(trigger_id)
        job = new_job(connection.settings.tenant, infos.job_request(manual=True))
        await CouchBroker(connection).store_job(job)
        return job

    job = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(job.document())
    else:
        print(job.id)
