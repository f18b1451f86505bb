"""`triggers backfill`: firing a trigger for documents that are there already."""

from __future__ import annotations

from typing import Annotated

import typer

from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, say, with_connection
from couchjobs.couch.connection import Connection
from couchjobs.scheduler.backfill import Backfill, Backfilled
from couchjobs.scheduler.store import TriggerStore


def backfill(
    trigger_id: Annotated[str, typer.Argument(help="The id of an @event trigger.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the documents.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Fire for so many documents at most; again for the next ones.")
    ] = None,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Fire a trigger for the documents that are there already, each once.

    What has fired, and whose job is still there, does not fire again; so a backfill that was interrupted is run again.
    """

    async def work(connection: Connection) -> Backfilled:
        infos = await TriggerStore(connection, connection.settings.tenant).get(trigger_id)
        fill = Backfill(connection, infos)
        if dry_run:
            return await fill.count()
        if not as_json:
            say(_told(trigger_id, await fill.count()))
        return await fill.run(limit)

    done = with_connection(url, domain, prefix, work)
    if as_json:
        print_json({"matching": done.matching, "fired": done.fired, "there": done.there, "refused": done.refused})
    elif dry_run:
        say(_told(trigger_id, done))
    else:
        refused = f", {done.refused:,} that no daemon could run" if done.refused else ""
        say(f"{done.fired:,} jobs stored, {done.there:,} were there already{refused}")


def _told(trigger_id: str, done: Backfilled) -> str:
    return f"{trigger_id} fires for {done.matching - done.there:,} documents; {done.there:,} have a job of it already"
