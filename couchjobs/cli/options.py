"""The options that commands share, and the settings and JSON that they give."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.text import Text

from couchjobs.couch.codec import decode, encode
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.login import split_urls
from couchjobs.errors import ConfigurationError, NotFound, Unreachable
from couchjobs.log import configure_logging, plain
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings, load_settings
from couchjobs.tenants.named import named_by

T = TypeVar("T")
_MOST_DIGITS = 309

Url = Annotated[
    str | None,
    typer.Option("--url", help="The CouchDB server, without credentials; also COUCHJOBS_URL, which may hold them."),
]
Domain = Annotated[str | None, typer.Option("--domain", help="The tenant's domain; also COUCHJOBS_DOMAIN.")]
Prefix = Annotated[str | None, typer.Option("--prefix", help="The tenant's database prefix; also COUCHJOBS_PREFIX.")]
Tenants = Annotated[
    str | None,
    typer.Option(
        "--tenants", metavar="all|documents|FILE", help="Of many tenants, named as by `run`; not with --prefix."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LogLevel = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]


def settings_of(url: str | None, domain: str | None, prefix: str | None) -> Settings:
    """Return the settings of the environment, overruled by the options.

    Raises:
        ConfigurationError: one cannot be used.
    """
    if url is not None and split_urls(url)[1] is not None:
        print(
            "couchjobs: credentials in --url can be seen by other users of this machine; use COUCHJOBS_URL",
            file=sys.stderr,
        )
    return load_settings(url=url, domain=domain, prefix=prefix)


def check_tenants(settings: Settings, tenants: str | None) -> None:
    """Check that not both one tenant and many are named.

    Raises:
        ConfigurationError: they are.
    """
    if tenants is not None and (settings.prefix or settings.domain):
        raise ConfigurationError("--tenants and a prefix or domain exclude each other")


def with_connection(
    url: str | None,
    domain: str | None,
    prefix: str | None,
    work: Callable[[Connection], Awaitable[T]],
    log_level: str = "warning",
) -> T:
    """Run `work` with a connection and return what it returns."""
    settings = settings_of(url, domain, prefix)
    configure_logging(log_level)

    async def run() -> T:
        async with connect(settings) as connection:
            return await work(connection)

    try:
        return asyncio.run(run())
    except (Unreachable, NotFound) as error:
        if settings.url != Settings.model_fields["url"].default:
            raise
        if isinstance(error, NotFound):  # perhaps it is there, on another server
            raise NotFound(
                f"{error} (asked {settings.url}: --url or COUCHJOBS_URL name another server)", 404
            ) from error
        raise Unreachable(f"{error}; where is CouchDB? say so by --url or COUCHJOBS_URL") from error


async def check_set_up(connection: Connection) -> None:
    """Check that the tenant is there, before something is written that would be of nobody.

    Raises:
        NotFound: it has no database of jobs.
    """
    settings = connection.settings
    await connection.database(settings.tenant.database(settings.jobs_doctype)).info()


async def tenants_of(connection: Connection, wanted: str | None) -> list[Prefixer]:
    """Return the tenants that `--tenants` names; that of the settings where it names none.

    Raises:
        ConfigurationError: what names them cannot be read.
    """
    if wanted is None:
        return [connection.settings.tenant]
    return sorted(await named_by(connection, wanted).tenants(), key=lambda db: db.key)


def read_json(what: str, text: str) -> Any:
    """Return the JSON that the user typed.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        json.loads(text, parse_int=_check_length)
        return decode(text.encode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{what} is not JSON: {error}; write text in quotes of its own, as in '\"text\"'"
        ) from None


def _check_length(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, which CouchDB does not take")
    return 0


def say(text: str) -> None:
    """Print a line in which something stands that was read from a document: nothing in it steers the terminal."""
    print(plain(text), flush=True)


def cell(value: object) -> Text:
    """Return what a cell of a table shows, as it is: no markup, no escape sequence."""
    return Text(plain(str(value)))


def print_document(document: Any) -> None:
    """Print JSON for people to read."""
    text = plain(json.dumps(document, indent=2, ensure_ascii=False, default=str))
    Console(soft_wrap=True).print(JSONHighlighter()(text))


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    print(plain(encode(value).decode()), flush=True)
