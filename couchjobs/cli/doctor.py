"""`doctor`: what is wrong, and what was done about it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from couchjobs.cli.options import (
    Domain,
    Json,
    Prefix,
    Tenants,
    Url,
    print_json,
    say,
    tenants_of,
    with_connection,
)
from couchjobs.couch.connection import Connection
from couchjobs.doctor.examine import examine
from couchjobs.doctor.finding import Finding
from couchjobs.errors import NotFound


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, and say what was done.")] = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    tenants: Tenants = None,
    as_json: Json = False,
) -> None:
    """Look for conflicts, jobs without a living daemon, bad documents, missing views and security, wrong clocks.

    Exit code 1 where something is left. A daemon that is still is watched for COUCHJOBS_DEAD_AFTER.
    """
    found = with_connection(
        url,
        domain,
        prefix,
        lambda connection: _examine(connection, tenants, repair=repair),
        log_level="error",  # what is bad is a finding
    )
    if as_json:
        print_json([_as_json(one, tenant if tenants else None) for tenant, one in found])
    elif not found:
        print("all is well")
    else:
        for tenant, one in found:
            whose = f"{tenant}: " if tenants else ""
            say(f"{whose}{one.kind}: {one.where}: {one.what}" + (f" -> {one.done}" if one.done else ""))
    if any(one.done is None for _, one in found):
        raise typer.Exit(1)


async def _examine(connection: Connection, tenants: str | None, *, repair: bool) -> list[tuple[str, Finding]]:
    """Return the findings of all tenants, each with its prefix."""
    found: list[tuple[str, Finding]] = []
    of_all = True
    for db in await tenants_of(connection, tenants):
        try:
            some = await examine(connection, db, repair=repair, of_all=of_all)
            of_all = False
        except NotFound as error:
            if tenants is None:
                raise
            some = [Finding("tenant", db.key, f"has no databases: couchjobs init makes them ({error})")]
        found += [(db.key, one) for one in some]
    return found


def _as_json(one: Finding, tenant: str | None) -> dict[str, Any]:
    whose = {} if tenant is None else {"tenant": tenant}
    return {**whose, "kind": one.kind, "where": one.where, "what": one.what, "done": one.done}
