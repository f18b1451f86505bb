"""`pause` and `resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from couchjobs.cli.options import Domain, Prefix, Url, say, with_connection
from couchjobs.cluster.pauses import set_paused

Worker = Annotated[str, typer.Argument(help="The type of worker.")]


def pause(worker: Worker, url: Url = None, domain: Domain = None, prefix: Prefix = None) -> None:
    """Have no daemon claim jobs of this type, until `resume`: running ones go on, new ones wait."""
    _set(worker, url, domain, prefix, is_paused=True)


def resume(worker: Worker, url: Url = None, domain: Domain = None, prefix: Prefix = None) -> None:
    """Have daemons claim jobs of this type again."""
    _set(worker, url, domain, prefix, is_paused=False)


def _set(worker: str, url: str | None, domain: str | None, prefix: str | None, *, is_paused: bool) -> None:
    changed = with_connection(
        url,
        domain,
        prefix,
        lambda connection: set_paused(connection, connection.settings.tenant, worker, is_paused=is_paused),
    )
    state = "paused" if is_paused else "not paused"
    say(f"{worker} is {state}" if changed else f"{worker} was {state} already")
