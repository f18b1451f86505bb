"""`couchjobs retention`: how long finished jobs are kept; and `couchjobs purge`, which removes them at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from couchjobs.cli.options import (
    Domain,
    Json,
    Prefix,
    Url,
    check_set_up,
    print_json,
    read_json,
    say,
    with_connection,
)
from couchjobs.couch.connection import Connection
from couchjobs.durations import read_age
from couchjobs.errors import ConfigurationError
from couchjobs.jobs.lanes import stores
from couchjobs.jobs.removal import Remover
from couchjobs.jobs.retention import Retention, Rule, read_rules, store_rules, stored_rules
from couchjobs.overview import who_takes
from couchjobs.remarks import nobody_has
from couchjobs.timestamps import now

_MOST_COUNTED = 10_000
"""Jobs that are to be removed beyond which they are not counted: each is read for that."""
app = typer.Typer(help="How long finished jobs are kept; without rules, for ever.", no_args_is_help=True)


@app.command("show")
def show(url: Url = None, domain: Domain = None, prefix: Prefix = None) -> None:
    """Print the rules, as JSON."""

    async def work(connection: Connection) -> Retention:
        return await stored_rules(connection, connection.settings.tenant)

    found = with_connection(url, domain, prefix, work)
    print_json([rule.as_json() for rule in found.rules])


@app.command("set")
def set_(
    rules: Annotated[
        str,
        typer.Argument(help='As JSON: [{"worker": "*", "state": "done", "keep": "2w"}, {"worker": "w", "at_most": 9}]'),
    ],
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Write the rules, in the place of those that there are: daemons remove what they keep no longer, bit by bit."""
    wanted = read_json("RULES", rules)
    understood = read_rules(wanted)

    async def work(connection: Connection) -> tuple[int, set[str] | None]:
        await check_set_up(connection)
        await store_rules(connection, connection.settings.tenant, wanted)
        return await _count(connection, understood), await who_takes(connection, connection.settings.tenant)

    now_removed, taken = with_connection(url, domain, prefix, work)
    if as_json:
        print_json({"rules": len(understood.rules), "jobs": now_removed})
        return
    for rule in understood.rules:
        nobody = taken is not None and rule.worker not in {"*", *taken}
        say(f"{rule}" + (f"; {nobody_has(rule.worker, taken or ())}" if nobody else ""))
    many = f"{now_removed:,}" if now_removed < _MOST_COUNTED else f"{_MOST_COUNTED:,} or more"
    say(
        f"{many} jobs are kept no longer, and removed bit by bit"
        if now_removed
        else "there is no job to be removed now"
    )


async def _count(connection: Connection, rules: Retention) -> int:
    """Return how many jobs the rules keep no longer, up to a limit."""
    count = 0
    for store in stores(connection, connection.settings.tenant):
        async for some in Remover(store).steps(rules, now(), dry=True):
            count += some
            if count >= _MOST_COUNTED:
                return _MOST_COUNTED
    return count


@app.command("rm")
def rm(url: Url = None, domain: Domain = None, prefix: Prefix = None, as_json: Json = False) -> None:
    """Remove all rules: finished jobs are kept for ever."""

    async def work(connection: Connection) -> None:
        await store_rules(connection, connection.settings.tenant, None)

    with_connection(url, domain, prefix, work)
    print_json({"rules": 0}) if as_json else say("there are no rules now")


def purge(
    older_than: Annotated[str, typer.Option("--older-than", help="Since their end, such as 2w or 36h.")],
    worker: Annotated[str, typer.Option("--worker", help="Of this type alone.")] = "*",
    state: Annotated[str, typer.Option("--state", help="done or errored alone.")] = "*",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and remove nothing.")] = False,
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    as_json: Json = False,
) -> None:
    """Remove finished jobs at once: purged where CouchDB is one node and one may, else deleted."""
    try:
        read_age(older_than)
    except ValueError as error:
        raise ConfigurationError(f"--older-than: {error}") from None
    rule: dict[str, Any] = {"worker": worker, "state": state, "keep": older_than}
    (wanted,) = read_rules([rule]).rules

    async def work(connection: Connection) -> int:
        return await _purge(connection, wanted, dry_run=dry_run)

    removed = with_connection(url, domain, prefix, work)
    if as_json:
        print_json({"jobs": removed, "removed": 0 if dry_run else removed})
    else:
        say(f"{removed:,} jobs" + (": nothing is removed in a dry run" if dry_run else " removed"))


async def _purge(connection: Connection, rule: Rule, *, dry_run: bool) -> int:
    console, removed = Console(stderr=True), 0
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("removed", total=None)
        for store in stores(connection, connection.settings.tenant):
            remover = Remover(store)
            async for count in remover.steps(Retention([rule]), now(), dry=dry_run):
                removed += count
                bar.advance(task, count)
            remover.check_all()
    return removed
