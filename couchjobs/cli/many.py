"""`jobs retry`, `cancel` and `rm`: of jobs by their ids, or of all that filters name."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, say, with_connection
from couchjobs.client import Couchjobs, present
from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, Conflict, JobNotFoundError
from couchjobs.jobs.job import Job, State
from couchjobs.jobs.queries import JobFilter, each, past

JobIds = Annotated[list[str] | None, typer.Argument(help="Ids of jobs; or filters, with --yes.")]
Worker = Annotated[str | None, typer.Option("--worker", help="Only this type of worker.")]


class ShownState(StrEnum):
    """The states of jobs as `jobs ls` shows them."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    ERRORED = "errored"
    CANCELLED = "cancelled"


OfState = Annotated[ShownState | None, typer.Option("--state", help="Only this state.")]
Failed = Annotated[bool, typer.Option("--failed", help="Only jobs that have failed: errored, and not cancelled.")]
OfTrigger = Annotated[str | None, typer.Option("--trigger", help="Only jobs of this trigger.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        help="Queued since then: a time, or a duration back from now, such as 1h. What says no time is new.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", "--older-than", help="Queued before then: a time, or a duration back from now."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it, and not only count.")]
Again = Annotated[bool, typer.Option("--again", help="Also jobs that are done.")]
_TOGETHER = 500


def filter_of(
    worker: str | None,
    state: ShownState | None,
    trigger: str | None,
    since: str | None,
    until: str | None,
    *,
    failed: bool = False,
    cancelled: bool = False,
) -> JobFilter:
    """Return what the options ask for.

    Raises:
        ConfigurationError: one cannot be used.
    """
    if state is ShownState.CANCELLED:
        state, cancelled = None, True
    if failed and cancelled:
        raise ConfigurationError("--failed and --cancelled exclude each other")
    if (failed or cancelled) and state not in (None, ShownState.ERRORED):
        raise ConfigurationError(f"--{'failed' if failed else 'cancelled'} and --state {state} exclude each other")
    if failed or cancelled:
        state = ShownState.ERRORED
    return JobFilter(
        worker=worker,
        state=None if state is None else State(state),
        trigger=trigger,
        since=_time("--since", since),
        until=_time("--until, --older-than", until),
        cancelled=cancelled if failed or cancelled else None,
    )


def _time(option: str, text: str | None) -> datetime | None:
    try:
        return past(text)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{option} {text!r}: a time such as 2026-11-24T08:00:00Z, a date, or so long ago, such as 2h or 3d"
        ) from None


def retry(
    job_ids: JobIds = None,
    *,
    worker: Worker = None,
    state: OfState = None,
    failed: Failed = False,
    trigger: OfTrigger = None,
    since: Since = None,
    until: Until = None,
    again: Again = False,
    yes: Yes = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Put jobs that have failed back in the queue, with all their tries; --again: also those that are done."""
    wanted = filter_of(worker, state, trigger, since, until, failed=failed)
    if state is ShownState.DONE and not again:
        raise ConfigurationError("jobs that are done run again only where you say so: --again")
    states = (State.ERRORED, State.DONE) if again else (State.ERRORED,)
    work = _Work("queued again", states, lambda one, job_id: one.retry(job_id, again=again))
    _do(work, job_ids, wanted, yes, (url, domain, prefix), as_json=as_json)


def cancel(
    job_ids: JobIds = None,
    *,
    worker: Worker = None,
    state: OfState = None,
    trigger: OfTrigger = None,
    since: Since = None,
    until: Until = None,
    yes: Yes = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Ask for jobs to be cancelled: a queued one is not run, a running one is stopped."""
    wanted = filter_of(worker, state, trigger, since, until)
    work = _Work("asked to be cancelled", (State.QUEUED, State.RUNNING), lambda one, job_id: one.cancel(job_id))
    _do(work, job_ids, wanted, yes, (url, domain, prefix), as_json=as_json)


def rm(
    job_ids: JobIds = None,
    *,
    worker: Worker = None,
    state: OfState = None,
    failed: Failed = False,
    trigger: OfTrigger = None,
    since: Since = None,
    until: Until = None,
    yes: Yes = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Delete jobs that do not run."""
    wanted = filter_of(worker, state, trigger, since, until, failed=failed)
    states = (State.QUEUED, State.DONE, State.ERRORED)
    _do(
        _Work("deleted", states, lambda one, job_id: one.delete(job_id)),
        job_ids,
        wanted,
        yes,
        (url, domain, prefix),
        as_json=as_json,
    )


class _Work:
    """What is done to each job, in which states, and how that is told."""

    def __init__(
        self, told: str, states: tuple[State, ...], change: Callable[[Couchjobs, str], Awaitable[Job]]
    ) -> None:
        self.told = told
        self.states = states
        self.change = change


def _do(
    work: _Work,
    job_ids: list[str] | None,
    wanted: JobFilter,
    yes: bool,
    where: tuple[str | None, str | None, str | None],
    *,
    as_json: bool,
) -> None:
    """Do it to the jobs with these ids; without ids, to those that the filter names, once that is asked for."""
    if job_ids and wanted != JobFilter():
        raise ConfigurationError("give ids of jobs, or filters, not both")
    if not job_ids and wanted == JobFilter():
        raise ConfigurationError("give ids of jobs, or filters such as --worker W --since 1d")
    if job_ids:
        jobs, refused = with_connection(*where, lambda _: _each_of(work, job_ids))
        for job in jobs:
            print_json(job.document()) if as_json else say(f"{job.id} {work.told}")
        if refused:
            raise ConfigurationError("; ".join(refused))
        return
    ids = with_connection(*where, lambda connection: _ids_of(connection, work, wanted))
    if not yes:
        told = {"jobs": len(ids), "done": 0}
        print_json(told) if as_json else say(f"{len(ids):,} jobs: nothing is done without --yes")
        return
    done, refused = with_connection(*where, lambda _: _all_of(work, ids))
    if as_json:
        print_json({"jobs": len(ids), "done": done, "refused": refused[:100]})
    else:
        say(f"{done:,} jobs {work.told}")
        for reason in refused[:10]:
            print(f"couchjobs: {reason}", file=sys.stderr)


async def _each_of(work: _Work, job_ids: list[str]) -> tuple[list[Job], list[str]]:
    """Return the jobs that it was done to, and why it was not to the others."""
    done: list[Job] = []
    refused: list[str] = []
    async with present() as couchjobs:
        for job_id in job_ids:
            try:
                done.append(await work.change(couchjobs, job_id))
            except (Conflict, JobNotFoundError) as error:
                refused.append(str(error))
    return done, refused


async def _ids_of(connection: Connection, work: _Work, wanted: JobFilter) -> list[str]:
    documents = each(connection, connection.settings.tenant, wanted)
    return [document["_id"] async for document in documents if document.get("state") in work.states]


async def _all_of(work: _Work, ids: list[str]) -> tuple[int, list[str]]:
    """Return how many it was done to, and why it was not to the others."""
    refused: list[str] = []
    console = Console(stderr=True)
    async with present() as couchjobs:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(work.told, total=len(ids))
            for start in range(0, len(ids), _TOGETHER):
                some = ids[start : start + _TOGETHER]
                answers = await asyncio.gather(
                    *(work.change(couchjobs, job_id) for job_id in some), return_exceptions=True
                )
                for answer in answers:
                    if isinstance(answer, Conflict | JobNotFoundError):
                        refused.append(str(answer))
                    elif isinstance(answer, BaseException):
                        raise answer
                bar.advance(task, len(some))
    return len(ids) - len(refused), refused
