"""`jobs ls`, `show`, `watch`, `retry` and `cancel`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from couchjobs.cli.options import Domain, Json, Prefix, Url, cell, print_document, print_json, say, with_connection
from couchjobs.couch.changes import ChangesFollower, current_sequence
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document
from couchjobs.durations import read_seconds
from couchjobs.errors import ConfigurationError, Conflict, Forbidden, NotFound, Unauthorized
from couchjobs.jobs.job import ENDED, Job, State
from couchjobs.jobs.lanes import find_job, stores
from couchjobs.jobs.store import JobStore, RecentRevisions
from couchjobs.recovery.peers import PREFIX as DAEMON
from couchjobs.recovery.peers import taken_types
from couchjobs.timestamps import format_time, now

app = typer.Typer(help="Look at jobs, try them again, cancel them.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(help="The job's id.")]
_NOBODY = "no daemon has this worker"


async def _find(connection: Connection, job_id: str) -> tuple[JobStore, Job]:
    return await find_job(connection, connection.settings.tenant, job_id)


@app.command()
def ls(
    worker: Annotated[str | None, typer.Option("--worker", help="Only this type of worker.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only this state.")] = None,
    trigger: Annotated[str | None, typer.Option("--trigger", help="Only jobs of this trigger.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Queued longer ago than this, such as 1h30m.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")] = 50,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first; a queued one that no daemon can take says so."""
    newest = format_time(now() - timedelta(seconds=_seconds("--older-than", older_than))) if older_than else None

    async def work(connection: Connection) -> tuple[list[Document], set[str] | None]:
        found: list[Document] = []
        for store in stores(connection, connection.settings.tenant):
            try:
                of_lane = [one async for one in _newest(store.database, worker, trigger, newest, state, limit)]
            except NotFound as error:
                raise ConfigurationError(f"{error}; run `couchjobs init` first") from error
            found += of_lane
        found.sort(key=lambda document: str(document.get("queued_at") or "~"), reverse=True)
        return found[:limit], await who_takes(connection)

    documents, taken = with_connection(url, domain, prefix, work)
    notes = [_note(document, taken) for document in documents]
    if as_json:
        print_json(
            [{**document, "note": note} if note else document for document, note in zip(documents, notes, strict=True)]
        )
        return
    table = Table("id", "worker", "state", "queued at", "tries", "daemon", "note")
    for document, note in zip(documents, notes, strict=True):
        job = Job.read(document)
        queued = format_time(job.queued_at) if job.queued_at else ""
        daemon = job.claim.daemon if job.claim else ""
        table.add_row(*map(cell, (job.id, job.worker, job.state, queued, job.exec_count, daemon, note)))
    Console(width=None if Console().is_terminal else 200).print(table)


def _seconds(option: str, text: str) -> float:
    try:
        return read_seconds(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from None


async def who_takes(connection: Connection) -> set[str] | None:
    """Return the worker types whose jobs somebody takes; None for who may not know, as producers may not."""
    try:
        return taken_types(await connection.control.with_prefix(DAEMON), connection.settings.tenant)
    except (Forbidden, NotFound, Unauthorized):
        return None


def _note(document: Document, taken: set[str] | None) -> str:
    if document.get("state") == State.QUEUED and taken is not None and document.get("worker") not in taken:
        return _NOBODY
    job = Job.read(document)
    if job.state is State.QUEUED and job.errors:
        when = format_time(job.scheduled_at) if job.scheduled_at else "once it can be"
        return f"tried again {when}: {job.errors[-1].error}"
    return str(document.get("error") or "")


async def _newest(
    database: Database, worker: str | None, trigger: str | None, newest: str | None, state: State | None, limit: int
) -> AsyncIterator[Document]:
    left = limit
    high: Any = newest or {}
    keys: tuple[str, Any, Any] = ("jobs/by_queued_at", high, None)
    if trigger is not None:
        keys = ("jobs/by_trigger", [trigger, high], [trigger])
    elif worker is not None and newest is None:
        keys = ("jobs/by_state", [worker, {}], [worker])
    async for rows in database.view_pages(*keys, descending=True):
        documents = await database.get_many(row["id"] for row in rows)
        for document in (documents[row["id"]] for row in rows if row["id"] in documents):
            if state in (None, document.get("state")) and worker in (None, document.get("worker")):
                yield document
                left -= 1
                if not left:
                    return


@app.command()
def show(job_id: JobId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """Print the document of a job."""
    document = with_connection(url, domain, prefix, lambda connection: _find(connection, job_id))[1].document()
    if as_json:
        print_json(document)
    else:
        print_document(document)


@app.command()
def watch(
    job_id: Annotated[
        str | None, typer.Argument(help="Watch this job until it has ended; without it, all jobs until Ctrl-C.")
    ] = None,
    since: Annotated[str, typer.Option("--since", help="`now`, or `0` for all that the feed still knows.")] = "now",
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Follow the changes feed and print each state of a job as it is reached."""
    tell = print_json if as_json else _print_state

    async def work(connection: Connection) -> None:
        if job_id is None:
            lanes = stores(connection, connection.settings.tenant)
        else:
            lanes = [(await _find(connection, job_id))[0]]
        starts = [await current_sequence(lane.database) if since == "now" else since for lane in lanes]
        if job_id is not None:
            job = await lanes[0].get(job_id)
            tell(job.document())
            if job.state in ENDED:
                return
        followed = zip(lanes, starts, strict=True)
        await asyncio.gather(*(_watch(connection, lane.database, start, job_id, tell) for lane, start in followed))

    with_connection(url, domain, prefix, work)


async def _watch(
    connection: Connection, database: Database, start: str, job_id: str | None, tell: Callable[[Document], None]
) -> None:
    told = RecentRevisions()
    follower = ChangesFollower(database, start, heartbeat_s=connection.settings.feed_heartbeat)
    while True:
        page = await follower.next_page()
        ids = [
            change.doc_id
            for change in page.changes
            if not change.doc_id.startswith("_") and job_id in (None, change.doc_id)
        ]
        documents = await database.get_many(ids)
        for document in (documents[one] for one in ids if one in documents):
            revision = f"{document['_id']} {document['_rev']}"
            if revision in told:
                continue
            told.add(revision)
            tell(document)
            if job_id is not None and document.get("state") in ENDED:
                return
        follower.done(page)


def _print_state(document: Document) -> None:
    job = Job.read(document)
    time = job.finished_at or (job.claim.at if job.claim else None) or job.queued_at
    parts = [format_time(time) if time else "-", job.id, job.worker, job.state]
    if job.claim:
        parts.append(f"by {job.claim.daemon}")
    if job.error or (job.errors and job.state is State.QUEUED):
        parts.append(f"({job.error or job.errors[-1].error})")
    say(" ".join(parts))


@app.command()
def retry(job_id: JobId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """Put a job that has ended back in the queue, with all its tries."""

    async def work(connection: Connection) -> Job:
        store, job = await _find(connection, job_id)
        if job.state not in ENDED:
            raise ConfigurationError(f"job {job_id} is {job.state}: only one that has ended can be tried again")
        await store.requeue(job)
        return job

    _report(with_connection(url, domain, prefix, work), "queued again", as_json)


@app.command()
def cancel(job_id: JobId, url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """Ask for a job to be cancelled: a queued one is not run, a running one is stopped."""

    async def work(connection: Connection) -> Job:
        while True:
            store, job = await _find(connection, job_id)
            if job.state in ENDED:
                raise ConfigurationError(f"job {job_id} has ended already: it is {job.state}")
            try:
                await store.update(job, cancel_requested=True)
            except Conflict:
                continue
            return job

    _report(with_connection(url, domain, prefix, work), "cancellation requested", as_json)


def _report(job: Job, what: str, as_json: bool) -> None:
    if as_json:
        print_json(job.document())
    else:
        say(f"{job.id} {what}")
