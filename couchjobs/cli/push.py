"""`push`."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, read_json, say, with_connection
from couchjobs.cluster.pauses import paused
from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, CouchjobsError, Forbidden, NotFound, Unauthorized
from couchjobs.jobs.job import MAX_NAME, Job, JobOptions, State
from couchjobs.jobs.queries import get_job
from couchjobs.jobs.request import JobRequest, as_stored, moment_of
from couchjobs.jobs.transitions import why_without_result
from couchjobs.jobs.waiting import wait as wait_for
from couchjobs.overview import who_takes
from couchjobs.reasons import reasons
from couchjobs.remarks import nobody_has
from couchjobs.timestamps import now, parse_time
from couchjobs.workers.pushing import Pusher

_PATIENCE_S = 5.0
"""Seconds after which whoever waits is told that nobody has taken the job."""
_NOT_ENDED = 3
"""The exit code where a job that was waited for has not ended in time."""


def push(
    worker: Annotated[str, typer.Argument(help="The type of worker.")],
    message: Annotated[str, typer.Argument(help="The message, as JSON.")] = "null",
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait until the job has ended; exit code 1 where it failed, 3 after --timeout."),
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="The longest --wait, in seconds; else for ever.")
    ] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="Higher first.")] = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="The job's id: where there is one with it, nothing is stored.")
    ] = None,
    delay: Annotated[str | None, typer.Option("--delay", help="How long it waits at least, such as 10m.")] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="When it may run at the earliest, as an RFC 3339 time.")
    ] = None,
    options: Annotated[
        str | None, typer.Option("--options", help='Less than its worker allows, as JSON, such as {"timeout": "5s"}.')
    ] = None,
    *,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Store a job, and print its id. It is pushed by hand, and has priority 1 where nothing else is said."""
    _check_timeout(timeout, wait=wait)
    value = read_json("MESSAGE", message)
    if not worker or len(worker) > MAX_NAME:
        raise ConfigurationError(f"WORKER must be the name of a worker, of at most {MAX_NAME} characters")

    try:
        not_before = moment_of(delay, parse_time(at) if at is not None else None)
    except ValueError as error:
        raise ConfigurationError(f"--at: {error}") from None

    request = JobRequest(
        worker_type=worker,
        message=value,
        options=None if options is None else _options_of(read_json("--options", options)),
        priority=priority,
        manual=True,
        id=job_id,
        scheduled_at=not_before,
    )

    async def work(connection: Connection) -> Job:
        job = await _store(connection, request)
        if not wait:
            return job
        telling = asyncio.create_task(_tell_if_untaken(connection, job))
        try:
            return await wait_for(connection.settings.tenant, job.id, timeout)
        except TimeoutError as error:
            print(f"couchjobs: {error}; `couchjobs jobs show {job.id}` tells more", file=sys.stderr)
            raise typer.Exit(_NOT_ENDED) from None
        finally:
            telling.cancel()

    job = with_connection(url, domain, prefix, work)
    if as_json:
        print_json(job.document())
    elif wait:
        told = job.error or why_without_result(job) or (json.dumps(job.result) if job.result is not None else "")
        say(f"{job.id} {job.state}{': ' + told if told else ''}")
    else:
        say(job.id)
    if wait and job.state is State.ERRORED:
        raise typer.Exit(1)


def _check_timeout(timeout: float | None, *, wait: bool) -> None:
    if timeout is not None and not wait:
        raise ConfigurationError('--timeout is for --wait; a job\'s own time is --options \'{"timeout": "5s"}\'')
    if timeout is not None and not timeout >= 0:
        raise ConfigurationError(f"--timeout is a number of seconds, and not {timeout:g}")


def _options_of(value: Any) -> JobOptions:
    """Return the options of a job.

    Raises:
        ConfigurationError: they are none.
    """
    try:
        return JobOptions.model_validate(value)
    except ValidationError as error:
        raise ConfigurationError(f"--options: {reasons(error)}") from None


async def _tell_if_untaken(connection: Connection, job: Job) -> None:
    """Say after a while that nobody has taken the job, and why, as far as this user may know."""
    await asyncio.sleep(_PATIENCE_S)
    with suppress(CouchjobsError):
        present = await get_job(connection.settings.tenant, job.id)
        due = present.scheduled_at is None or present.scheduled_at <= now()
        if present.state is not State.QUEUED or not due:
            return
        why = "whether a daemon has its worker is not for this user to know"
        with suppress(Forbidden, NotFound, Unauthorized):
            is_paused = job.worker in await paused(connection, connection.settings.tenant)
            why = f"worker {job.worker!r} is paused" if is_paused else "`couchjobs queues` tells who takes what"
        print(f"couchjobs: job {job.id} is still queued: {why}", file=sys.stderr, flush=True)


async def _store(connection: Connection, request: JobRequest) -> Job:
    """Store the job, and say what is odd about it."""
    result = await Pusher(connection).push(request)
    if result is None:
        raise ConfigurationError("the worker does not want this job")
    job = result.job
    if not result.created:
        other = ", and its message is another" if job.message != as_stored(request.message, "message") else ""
        print(f"couchjobs: there was a job {job.id} already: it is {job.state}{other}", file=sys.stderr)
    with suppress(Forbidden, NotFound, Unauthorized):
        if job.worker in await paused(connection, connection.settings.tenant):
            print(f"couchjobs: job {job.id} is queued; worker {job.worker!r} is paused", file=sys.stderr)
    taken = await who_takes(connection, connection.settings.tenant)
    if taken is not None and job.worker not in taken:
        print(f"couchjobs: job {job.id} is queued; {nobody_has(job.worker, taken)}", file=sys.stderr)
    return job
