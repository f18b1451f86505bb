"""`secrets`: those that services sign their webhooks with."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from couchjobs.cli.options import Domain, Prefix, Url, check_set_up, say, with_connection
from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError
from couchjobs.scheduler.secrets import write_secret

app = typer.Typer(help="Store the secrets that services sign their webhooks with.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The name that triggers give it, in `verify`.")]


@app.command("set")
def set_(name: Name, url: Url = None, domain: Domain = None, prefix: Prefix = None) -> None:
    """Store a secret, which is asked for, or read from standard input: never an argument."""
    asked = sys.stdin.isatty()
    value = typer.prompt("secret", hide_input=True) if asked else sys.stdin.readline().rstrip("\n")
    if not value:
        raise ConfigurationError("the secret is empty")

    async def work(connection: Connection) -> None:
        await check_set_up(connection)
        await write_secret(connection, connection.settings.tenant, name, value)

    with_connection(url, domain, prefix, work)
    say(f"{name} is stored")


@app.command("rm")
def rm(name: Name, url: Url = None, domain: Domain = None, prefix: Prefix = None) -> None:
    """Remove a secret: what is signed with it is refused from then on."""
    with_connection(
        url, domain, prefix, lambda connection: write_secret(connection, connection.settings.tenant, name, None)
    )
    say(f"{name} is removed")
