"""`pause` and `resume`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from couchjobs.cli.options import Domain, Prefix, Url, check_set_up, say, with_connection
from couchjobs.cluster.pauses import set_paused
from couchjobs.couch.connection import Connection
from couchjobs.log import plain
from couchjobs.overview import who_takes
from couchjobs.remarks import nobody_has

Worker = Annotated[str, typer.Argument(help="The type of worker.")]


def pause(worker: Worker, url: Url = None, domain: Domain = None, prefix: Prefix = None) -> None:
    """Have no daemon claim jobs of this type, until `resume`: running ones go on, new ones wait."""
    _set(worker, url, domain, prefix, is_paused=True)


def resume(worker: Worker, url: Url = None, domain: Domain = None, prefix: Prefix = None) -> None:
    """Have daemons claim jobs of this type again."""
    _set(worker, url, domain, prefix, is_paused=False)


def _set(worker: str, url: str | None, domain: str | None, prefix: str | None, *, is_paused: bool) -> None:
    async def work(connection: Connection) -> tuple[bool, set[str] | None]:
        await check_set_up(connection)
        changed = await set_paused(connection, connection.settings.tenant, worker, is_paused=is_paused)
        return changed, await who_takes(connection, connection.settings.tenant)

    changed, taken = with_connection(url, domain, prefix, work)
    state = "paused" if is_paused else "not paused"
    say(f"{worker} is {state}" if changed else f"{worker} was {state} already")
    if taken is not None and worker not in taken:
        print(plain(f"couchjobs: {nobody_has(worker, taken)}"), file=sys.stderr)
