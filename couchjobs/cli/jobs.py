"""`jobs ls`, `show` and `watch`."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from couchjobs.cli.many import Failed, OfState, OfTrigger, Since, Until, Worker, cancel, filter_of, retry, rm
from couchjobs.cli.options import (
    Domain,
    Json,
    Prefix,
    Url,
    cell,
    print_document,
    print_json,
    say,
    with_connection,
)
from couchjobs.cluster.pauses import paused
from couchjobs.couch.changes import ChangesFollower
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document
from couchjobs.couch.positions import current_sequence
from couchjobs.errors import ConfigurationError, Forbidden, NotFound, PositionRefused, Unauthorized
from couchjobs.jobs.job import ENDED, Job, State
from couchjobs.jobs.lanes import find_job, stores
from couchjobs.jobs.names import near_misses
from couchjobs.jobs.own_claims import RecentRevisions
from couchjobs.jobs.queries import newest
from couchjobs.jobs.store import JobStore
from couchjobs.jobs.transitions import why_without_result
from couchjobs.overview import who_takes
from couchjobs.remarks import nobody_has
from couchjobs.timestamps import format_time

app = typer.Typer(help="Look at jobs, try them again, cancel them.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(help="The job's id.")]
_SEQUENCE = re.compile(r"\d+(-|$)", re.ASCII)
_NOBODY = "no daemon has this worker"


async def _find(connection: Connection, job_id: str) -> tuple[JobStore, Job]:
    return await find_job(connection, connection.settings.tenant, job_id)


@app.command()
def ls(
    worker: Worker = None,
    state: OfState = None,
    failed: Failed = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="Only jobs that were cancelled.")] = False,
    trigger: OfTrigger = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.")] = 50,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first; a queued one that no daemon can take says so."""
    wanted = filter_of(worker, state, trigger, since, until, failed=failed, cancelled=cancelled)

    async def work(connection: Connection) -> tuple[list[Document], set[str] | None, Collection[str]]:
        tenant, stopped = connection.settings.tenant, set[str]()
        found = await newest(connection, tenant, wanted, limit)
        with suppress(Forbidden, NotFound, Unauthorized):
            stopped = {*await paused(connection, tenant)}
        return found, await who_takes(connection, tenant), stopped

    documents, taken, stopped = with_connection(url, domain, prefix, work)
    if worker and not documents and taken is not None and worker not in taken:
        print(f"couchjobs: {nobody_has(worker, taken)}", file=sys.stderr)
    notes = [_note(document, taken, stopped) for document in documents]
    if as_json:
        print_json(
            [{**document, "note": note} if note else document for document, note in zip(documents, notes, strict=True)]
        )
        return
    table = Table(Column("id", no_wrap=True), "worker", "state", "queued at", "took", "tries", "daemon", "note")
    for document, note in zip(documents, notes, strict=True):
        job = Job.read(document)
        queued = format_time(job.queued_at) if job.queued_at else ""
        daemon = job.claim.daemon if job.claim else ""
        took = "" if job.seconds is None else f"{job.seconds:.3g} s"
        state_told = "cancelled" if job.cancelled else job.state
        table.add_row(*map(cell, (job.id, job.worker, state_told, queued, took, job.exec_count, daemon, note)))
    Console(width=None if Console().is_terminal else 200).print(table)


def _note(document: Document, taken: set[str] | None, stopped: Collection[str]) -> str:
    if document.get("state") == State.QUEUED and taken is not None and document.get("worker") not in taken:
        return f"{_NOBODY}; it is to be cancelled" if document.get("cancel_requested") is True else _NOBODY
    if document.get("state") == State.QUEUED and document.get("worker") in stopped:
        return "its worker is paused"
    job = Job.read(document)
    if job.state is State.QUEUED and job.errors:
        when = format_time(job.scheduled_at) if job.scheduled_at else "once it can be"
        return f"tried again {when}: {job.errors[-1].error}"
    due = f"not before {format_time(job.scheduled_at)}" if job.state is State.QUEUED and job.scheduled_at else ""
    return (
        str(document.get("error") or "")
        or why_without_result(job)
        or "; ".join(filter(None, [due, *near_misses(document, Job)]))
    )


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
    if since not in ("now", "0") and not _SEQUENCE.match(since):
        raise ConfigurationError(f"--since {since}: now, 0, or a position of the feed")

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
        try:
            page = await follower.next_page()
        except PositionRefused as error:
            print(f"couchjobs: some states may be left out: {error}", file=sys.stderr)
            follower = ChangesFollower(database, await current_sequence(database))
            continue
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
    if isinstance(job.progress, dict) and job.state is State.RUNNING:
        done, text = job.progress.get("done"), job.progress.get("text")
        parts.append(f"{done:.0%}" if isinstance(done, int | float) else "")
        parts.append(str(text or ""))
    if job.error or (job.errors and job.state is State.QUEUED):
        parts.append(f"({job.error or job.errors[-1].error})")
    say(" ".join(parts))


app.command()(retry)
app.command()(cancel)
app.command()(rm)
