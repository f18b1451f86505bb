"""`doctor`: what is wrong, and what was done about it."""

from __future__ import annotations

from typing import Annotated

import typer

from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, say, with_connection
from couchjobs.doctor.examine import examine
from couchjobs.errors import ConfigurationError, NotFound


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, and say what was done.")] = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Look for conflicts, jobs without a living daemon, bad documents, missing views and security, wrong clocks.

    Exit code 1 where something is left. A daemon that is still is watched for COUCHJOBS_DEAD_AFTER.
    """
    try:
        findings = with_connection(
            url, domain, prefix, lambda connection: examine(connection, connection.settings.tenant, repair=repair)
        )
    except NotFound as error:
        raise ConfigurationError(f"{error}; run `couchjobs init` first") from error
    if as_json:
        print_json([{"kind": one.kind, "where": one.where, "what": one.what, "done": one.done} for one in findings])
    elif not findings:
        print("all is well")
    else:
        for one in findings:
            say(f"{one.kind}: {one.where}: {one.what}" + (f" -> {one.done}" if one.done else ""))
    if any(one.done is None for one in findings):
        raise typer.Exit(1)
