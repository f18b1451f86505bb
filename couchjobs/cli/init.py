"""`init`: databases, views, who may use them."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Annotated

import typer

from couchjobs.cli.options import Domain, Json, Prefix, Url, print_json, with_connection
from couchjobs.couch.access import admit, give_role, is_open
from couchjobs.couch.connection import Connection
from couchjobs.doctor.documents import check_triggers
from couchjobs.doctor.finding import Patient
from couchjobs.errors import ConfigurationError
from couchjobs.installation import PRODUCER_ROLE, WORKER_ROLE, guard, install, producer_role, secure
from couchjobs.log import plain
from couchjobs.prefixer import USERS
from couchjobs.scheduler.sources import read_list, write_list

_PASSWORD = "COUCHJOBS_NEW_PASSWORD"  # noqa: S105  the name of a variable


def init(
    guarded: Annotated[
        bool, typer.Option("--guard", help="Have CouchDB check every write: for databases that browsers write into.")
    ] = False,
    worker_user: Annotated[
        str | None, typer.Option("--worker-user", help="Create a user for daemons, or give an existing one the role.")
    ] = None,
    producer_user: Annotated[
        str | None,
        typer.Option(
            "--producer-user",
            help="Create a user for programs that only write jobs: of this --prefix alone, without one of all tenants.",
        ),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            "--watch",
            help="Doctypes, parted by commas: the only ones from whose databases events may come.",
        ),
    ] = None,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Create the databases and design documents that are not there yet, and say who may use them.

    The password of a user that is created is COUCHJOBS_NEW_PASSWORD, or one that is generated and printed once.
    """

    async def work(connection: Connection) -> tuple[list[str], dict[str, str]]:
        tenant = connection.settings.tenant
        changed = await install(connection, tenant)
        changed += await secure(connection, tenant, own_producers=producer_user is not None)
        if guarded:
            changed += await guard(connection, tenant)
        if watch is not None:
            changed += await _watch(connection, [one.strip() for one in watch.split(",") if one.strip()])
        passwords: dict[str, str] = {}
        for name, role in ((worker_user, WORKER_ROLE), (producer_user, producer_role(tenant))):
            if name is not None:
                changed += await _give_role(connection, name, role, passwords)
        if (worker_user, producer_user, watch) != (None, None, None):
            await _tell_of_triggers(connection)
        return changed, passwords

    changed, passwords = with_connection(url, domain, prefix, work)
    if as_json:
        print_json({"changed": changed, "passwords": passwords})
        return
    print("\n".join(changed) or "everything is there already")
    for name, password in passwords.items():
        print(f"password of {name}: {password}")


async def _give_role(connection: Connection, name: str, role: str, passwords: dict[str, str]) -> list[str]:
    """See to it that there is that user with that role; return what was changed. `passwords` takes one that is made."""
    if not name.strip():
        raise ConfigurationError("a user has a name: --worker-user NAME, --producer-user NAME")
    given = os.environ.get(_PASSWORD)
    password = given or secrets.token_urlsafe(18)
    done = await give_role(connection.server, name, role, password)
    if done.startswith("created") and given is None:
        passwords[name] = password
    if role == PRODUCER_ROLE:
        print(f"couchjobs: {name} may push jobs of all tenants; with --prefix, of one", file=sys.stderr)
    return [done] if done else []


async def _tell_of_triggers(connection: Connection) -> None:
    """Say which triggers do not fire as things are now."""
    async for finding in check_triggers(Patient(connection, connection.settings.tenant)):
        if finding.what.startswith("does not fire"):
            print(plain(f"couchjobs: trigger {finding.where} {finding.what}"), file=sys.stderr)


async def _watch(connection: Connection, doctypes: list[str]) -> list[str]:
    """Say which databases events may come from, and let daemons read them; return what was changed."""
    tenant = connection.settings.tenant
    changed: list[str] = []
    gone = sorted({*await read_list(connection, tenant)} - {*doctypes})
    if await write_list(connection, tenant, doctypes):
        no_longer = f", and no longer from {', '.join(gone)}" if gone else ""
        changed.append(f"events may come from {', '.join(doctypes) or 'nowhere'}{no_longer}")
    for doctype in doctypes:
        database = None if "*" in doctype else connection.database(tenant.database(doctype))
        if database is None:
            continue
        if doctype == USERS:
            print("couchjobs: only a daemon with an administrator's rights may follow the users", file=sys.stderr)
            continue
        if not await database.exists():
            print(f"couchjobs: there is no database {database.name} yet", file=sys.stderr)
        elif not await is_open(database) and await admit(database, (WORKER_ROLE,)):
            changed.append(f"database {database.name} is for the role {WORKER_ROLE} too")
    return changed
