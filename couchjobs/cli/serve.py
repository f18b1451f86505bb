"""`serve` and `tokens`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from couchjobs import process
from couchjobs.cli.options import (
    Domain,
    Json,
    LogLevel,
    Prefix,
    Tenants,
    Url,
    cell,
    check_set_up,
    check_tenants,
    print_json,
    say,
    settings_of,
    with_connection,
)
from couchjobs.couch.connection import Connection, connect
from couchjobs.http.address import Address, read_address
from couchjobs.http.tokens import create_token, revoke_token
from couchjobs.http.tokens import tokens as tokens_of
from couchjobs.log import configure_logging
from couchjobs.pid_one import leave_pid_one
from couchjobs.settings import Settings

app = typer.Typer(help="Make, list and revoke the tokens of programs that use HTTP.", no_args_is_help=True)


def serve(
    http: Annotated[str, typer.Option("--http", metavar="HOST:PORT", help="Where to listen.")] = "127.0.0.1:8090",
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    tenants: Tenants = None,
    log_level: LogLevel = "info",
) -> None:
    """Serve jobs and triggers over HTTP, without running any job, until SIGTERM or Ctrl-C."""
    leave_pid_one()
    settings, address = settings_of(url, domain, prefix), read_address(http)
    configure_logging(log_level)
    check_tenants(settings, tenants)
    process.run(_serve(settings, address, tenants))


async def _serve(settings: Settings, address: Address, tenants: str | None) -> None:
    from couchjobs.http.server import HttpServer  # noqa: PLC0415  no other command needs it

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with connect(settings) as connection:
        server = HttpServer(connection, address, tenants)
        starting = asyncio.ensure_future(_start(connection, server.start))
        waiting = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                say(f"couchjobs serves HTTP at {server.url}")
                await waiting
        finally:
            for task in (starting, waiting):
                task.cancel()
            await server.stop()


async def _start(connection: Connection, start: Callable[[], Awaitable[None]]) -> None:
    await connection.server.wait_until_up(connection.settings.request_timeout)
    await start()


@app.command("create")
def create(
    scopes: Annotated[list[str], typer.Argument(help="Rules, such as jobs:POST:sendmail:worker or triggers:GET.")],
    name: Annotated[str, typer.Option("--name", help="Whose it is, for you to know it by.")] = "",
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
) -> None:
    """Make a token, and print it: it is shown once, and nobody can read it again."""

    async def work(connection: Connection) -> str:
        await check_set_up(connection)
        return await create_token(connection, connection.settings.tenant, name, scopes)

    say(with_connection(url, domain, prefix, work))


@app.command("ls")
def ls(url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """List the tenant's tokens; their secrets are stored nowhere."""
    found = with_connection(url, domain, prefix, lambda connection: tokens_of(connection, connection.settings.tenant))
    if as_json:
        print_json(found)
        return
    table = Table("id", "name", "scopes", "created at")
    for one in found:
        scopes = " ".join(map(str, one.get("scopes") or ()))
        token_id = str(one["_id"]).partition(":")[2]
        table.add_row(*map(cell, (token_id, one.get("name") or "", scopes, one.get("created_at") or "")))
    Console(width=None if Console().is_terminal else 200).print(table)


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(help="The id, as `tokens ls` shows it.")],
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
) -> None:
    """Refuse a token from now on."""
    with_connection(
        url, domain, prefix, lambda connection: revoke_token(connection, connection.settings.tenant, token_id)
    )
    say(f"{token_id} is revoked")
