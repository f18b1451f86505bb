"""`push`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from couchjobs.broker.couch import CouchBroker
from couchjobs.cli.jobs import who_takes
from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, read_json, say, with_connection
from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, NotFound
from couchjobs.jobs.job import MAX_NAME, Job, State
from couchjobs.jobs.queries import wait as wait_for
from couchjobs.jobs.request import JobRequest


def push(
    worker: Annotated[str, typer.Argument(help="The type of worker.")],
    message: Annotated[str, typer.Argument(help="The message, as JSON.")] = "null",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the job has ended; exit code 1 where it failed.")
    ] = False,
    timeout: Annotated[float | None, typer.Option("--timeout", help="The longest wait, in seconds.")] = None,
    priority: Annotated[int | None, typer.Option("--priority", help="Higher first.")] = None,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Store a job, and print its id."""
    value = read_json("MESSAGE", message)
    if not worker or len(worker) > MAX_NAME:
        raise ConfigurationError(f"WORKER must be the name of a worker, of at most {MAX_NAME} characters")

    async def work(connection: Connection) -> Job:
        tenant = connection.settings.tenant
        request = JobRequest(worker_type=worker, message=value, priority=priority, manual=True)
        try:
            job = await CouchBroker(connection).push_job(tenant, request)
        except NotFound as error:
            raise ConfigurationError(f"{error}; run `couchjobs init` first") from error
        if job is None:
            raise ConfigurationError("the worker does not want this job")
        taken = await who_takes(connection)
        if taken is not None and worker not in taken:
            print(f"couchjobs: job {job.id} is queued; no daemon has a worker {worker!r} now", file=sys.stderr)
        return await wait_for(tenant, job.id, timeout) if wait else job

    try:
        job = with_connection(url, domain, prefix, work)
    except TimeoutError:
        raise ConfigurationError(f"the job has not ended within {timeout:g} s; `couchjobs jobs ls` shows it") from None
    if as_json:
        print_json(job.document())
    elif wait:
        told = job.error or (json.dumps(job.result) if job.result is not None else "")
        say(f"{job.id} {job.state}{': ' + told if told else ''}")
    else:
        say(job.id)
    if wait and job.state is State.ERRORED:
        raise typer.Exit(1)
