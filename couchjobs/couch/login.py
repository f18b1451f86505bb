"""What a process is told of its credentials, and where: the URL, the environment, a file, the keyring of the system.

A file holds lines as environment files do: `COUCHJOBS_PASSWORD=...`, in quotes or not, after `export` or not. It and
the keyring may change while a process runs; they are read again by whoever holds the source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from dotenv.parser import parse_stream

from couchjobs.errors import ConfigurationError

_PREFIX = "COUCHJOBS_"
_BETWEEN = re.compile(r"\s*,\s*(?=https?://)")
"""A comma between two URLs: one in a password is followed by something else."""


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials of one kind, as they were given. Equal ones are the same; the repr shows the kind alone."""

    kind: str
    """password, basic, couchdb_session, bearertoken, iam, ..., noauth"""
    config: dict[str, str] = field(repr=False)
    """By the names of the IBM SDK: USERNAME, PASSWORD, BEARER_TOKEN, APIKEY, ..."""


Source = Callable[[], Login]
"""Reads the credentials, as they are now. Raises ConfigurationError."""


def source_of(name: str | None, password: str | None, file: str | None) -> Source:
    """Return where credentials come from: the name and password of a URL, else a file, else the environment."""

    def read() -> Login:
        given = _read_file(file) if file else dict(os.environ)
        config = {key.removeprefix(_PREFIX): value for key, value in given.items() if key.startswith(_PREFIX)}
        if name is not None:
            config |= {"USERNAME": name} | ({"PASSWORD": password} if password else {})
        kind = config.setdefault("AUTH_TYPE", _kind_of(config)).lower()
        if "KEYRING" in config and "USERNAME" in config and "PASSWORD" not in config:
            config["PASSWORD"] = _from_keyring(config["KEYRING"], config["USERNAME"])
        return Login(kind, config)

    return read


def split_url(url: str) -> tuple[str, str | None, str | None]:
    """Return the URL without credentials, and the name and password that it held.

    Raises:
        ConfigurationError: it is no URL of a server. The message does not repeat it, for what it may hold.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("the URL of CouchDB must look like http://host:5984 (set COUCHJOBS_URL)")
    if "@" in parts.path:
        raise ConfigurationError(
            "the URL of CouchDB holds a name or password with a /: write it as %2F (set COUCHJOBS_URL)"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    bare = urlunsplit((parts.scheme, host + (f":{port}" if port else ""), parts.path.rstrip("/"), "", ""))
    name = unquote(parts.username) if parts.username else None
    return bare, name, unquote(parts.password or "") if name else None


def split_urls(urls: str) -> tuple[list[str], str | None, str | None]:
    """Return the same of the URLs of several nodes, after one another with commas between.

    Raises:
        ConfigurationError: one is no URL of a server, or they name two users.
    """
    nodes: list[str] = []
    user: tuple[str | None, str | None] = None, None
    for url in _BETWEEN.split(urls.strip()):
        bare, name, password = split_url(url)
        if name is not None:
            if user[0] is not None and user != (name, password):
                raise ConfigurationError("the nodes of COUCHJOBS_URL are of one cluster, and have the same user")
            user = name, password
        nodes.append(bare)
    return nodes, *user


def _kind_of(config: dict[str, str]) -> str:
    """Return the kind of credentials that the variables are for, where none of them says it."""
    by_name = "COUCHDB_SESSION" if ":" in config.get("USERNAME", "") else "PASSWORD"  # a : ends the name in a header
    kinds = {"USERNAME": by_name, "APIKEY": "IAM", "BEARER_TOKEN": "BEARERTOKEN"}
    return next((kind for name, kind in kinds.items() if name in config), "NOAUTH")


def _from_keyring(service: str, name: str) -> str:
    try:
        import keyring  # noqa: PLC0415  an extra
    except ImportError:
        raise ConfigurationError("COUCHJOBS_KEYRING is set: pip install 'couchjobs[keyring]'") from None
    try:
        password = keyring.get_password(service, name)
    except Exception as error:  # noqa: BLE001  each backend has errors of its own
        raise ConfigurationError(f"the keyring cannot be read: {type(error).__name__}") from None
    if password is None:
        raise ConfigurationError(f"the keyring holds no password: keyring set {service} {name}")
    return password


def _read_file(path: str) -> dict[str, str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"the credentials file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the credentials file {path} is no UTF-8 text") from None
    found: dict[str, str] = {}
    for line in parse_stream(StringIO(text)):
        if line.error or (line.key is not None and line.value is None):
            where = f"line {line.original.line} of the credentials file {path}"
            raise ConfigurationError(f"{where} is not like COUCHJOBS_PASSWORD=...")
        if line.key is not None and line.value is not None:
            found[line.key] = line.value
    return found
