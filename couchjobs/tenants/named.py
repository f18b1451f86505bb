"""Which tenants a daemon of many serves: all that have jobs, those of a file, or those that documents name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from couchjobs.cluster.peers import Tenants
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.errors import ConfigurationError, Unavailable
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer, escape
from couchjobs.settings import Settings

_logger = get_logger(__name__)
_WRITTEN_S = 0.2
"""Seconds for which a file that has changed must stay as it is until it counts."""
_MOST_LOOKS = 20
"""Times that it may have changed meanwhile, until it counts as one that is not to be had now."""
DOCUMENT = "tenant:"
ALL = "all"
DOCUMENTS = "documents"


class Named(Protocol):
    """What says which tenants there are."""

    async def tenants(self) -> list[Prefixer]:
        """Return them.

        Raises:
            ConfigurationError: what says so cannot be read now.
            CouchError: CouchDB does not say.
        """

    def told(self, tenants: list[Prefixer]) -> Tenants:
        """Return how the daemon's document says that it serves these."""


class Missed:
    """Those that are named no longer, for a while: a node that is back may not know them yet.

    `for_s`: seconds, of two looks at least.
    """

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self._since: dict[str, float] = {}

    def too_shortly(self, served: Mapping[str, Prefixer], named: Iterable[Prefixer]) -> list[Prefixer]:
        """Return those that are served, by their keys, and have not been named by any look for shorter than that."""
        present, before = time.monotonic(), self._since
        self._since = {key: before.get(key, present) for key in served.keys() - {db.key for db in named}}
        return [served[key] for key, since in self._since.items() if present - since < self._for_s]


def named_by(connection: Connection, wanted: str) -> Named:
    """Return what names the tenants: `all`, `documents`, or the path of a file.

    Raises:
        ConfigurationError: there is no such file.
    """
    if wanted == ALL:
        return _All(connection)
    if wanted == DOCUMENTS:
        return _Documents(connection)
    path = Path(wanted)
    if not path.is_file():
        raise ConfigurationError(
            f"--tenants {wanted}: there is no such file; write {ALL}, {DOCUMENTS} or a file of prefixes, one a line"
        )
    return _File(path, connection.settings)


class _All:
    """Every tenant that has a database of jobs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs = escape(connection.settings.jobs_doctype)
        self._bad: set[str] = set()

    async def tenants(self) -> list[Prefixer]:
        names = await self._connection.server.all_databases()
        if self._connection.control.name not in names:  # nobody is dropped for what stands before CouchDB
            raise Unavailable("GET /_all_dbs: a list of databases without that of couchjobs itself")
        own = f"/{self._jobs}"
        keys = sorted({name.removesuffix(own) for name in names if name.endswith(own)})
        return [
            *[Prefixer("", None)] * (self._jobs in names),
            *(Prefixer("", key) for key in keys if self._serves(key)),
        ]

    def _serves(self, key: str) -> bool:
        try:
            self._connection.settings.check_tenant(Prefixer("", key))
        except ConfigurationError as error:
            if key not in self._bad:
                _logger.warning("a database is no tenant's", prefix=key, reason=str(error))
            self._bad.add(key)
        return key not in self._bad

    def told(self, tenants: list[Prefixer]) -> Tenants:  # noqa: ARG002  whichever they are
        return Tenants(None)


class _File:
    """Those of a file: a prefix a line, and after it, perhaps, a domain; # begins a remark."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._last = ""
        """What it said when it was read last."""
        self._served: list[Prefixer] | None = None
        self._bad: set[str] = set()

    async def tenants(self) -> list[Prefixer]:
        text = await self._text()
        if text != self._last:
            self._last = text = await self._once_written(text)
        found, bad = [], set()
        for number, line in enumerate(text.splitlines(), 1):
            try:
                db = self._read(line)
            except ConfigurationError as error:
                bad.add(f"{self._path}, line {number}: {error}")
            else:
                found += [db] if db is not None else []
        return _apart(found + self._kept(bad, found), str(self._path))

    async def _once_written(self, text: str) -> str:
        """Return the text once it stands still: half of it may be written, and half a name is one, too."""
        for _ in range(_MOST_LOOKS):
            await asyncio.sleep(_WRITTEN_S)
            before, text = text, await self._text()
            if text == before:
                return text
        raise ConfigurationError(f"{self._path} is being written all the time")

    async def _text(self) -> str:
        try:
            return await asyncio.to_thread(self._path.read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._path} cannot be read: {error}") from None

    def _read(self, line: str) -> Prefixer | None:
        words = line.partition("#")[0].split()
        if not words:
            return None
        if len(words) > 2:
            raise ConfigurationError(f"a prefix, and perhaps a domain: {line[:80]!r}")
        db = Prefixer(words[1] if len(words) > 1 else "", words[0])
        self._settings.check_tenant(db)
        return db

    def _kept(self, bad: set[str], found: list[Prefixer]) -> list[Prefixer]:
        """Return whom the bad lines may mean: who is served already and stands in no good one.

        Raises:
            ConfigurationError: there are bad lines, and nobody is served yet.
        """
        if bad and self._served is None:
            raise ConfigurationError("; ".join(sorted(bad)))
        for one in sorted(bad - self._bad):
            _logger.warning("a line names no tenant, and nobody is dropped until it is mended", reason=one)
        keys = {db.key for db in found}
        kept = [db for db in self._served or () if bad and db.key not in keys]
        self._bad, self._served = bad, found + kept
        return kept

    def told(self, tenants: list[Prefixer]) -> Tenants:
        return _listed(tenants)


class _Documents:
    """Those of documents `tenant:<domain>` = `{prefix}` in the control database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bad: set[str] = set()

    async def tenants(self) -> list[Prefixer]:
        found = []
        for document in await self._connection.control.with_prefix(DOCUMENT):
            doc_id = str(document["_id"])
            try:
                found.append(read_tenant(document, self._connection.settings))
            except ConfigurationError as error:
                if doc_id not in self._bad:
                    _logger.warning("a document names no tenant", document=doc_id, reason=str(error))
                self._bad.add(doc_id)
            else:
                self._bad.discard(doc_id)
        return _apart(found, f"{DOCUMENT}...")

    def told(self, tenants: list[Prefixer]) -> Tenants:
        return _listed(tenants)


def read_tenant(document: Document, settings: Settings) -> Prefixer:
    """Return the tenant that a document `tenant:<domain>` names.

    Raises:
        ConfigurationError: it names none.
    """
    prefix = document.get("prefix")
    if not isinstance(prefix, str):
        raise ConfigurationError(f"its prefix is no text, but {prefix!r:.80}")
    db = Prefixer(str(document["_id"]).removeprefix(DOCUMENT), prefix)
    settings.check_tenant(db)
    return db


def _listed(tenants: list[Prefixer]) -> Tenants:
    return Tenants(frozenset(db.key for db in tenants))


def _apart(tenants: list[Prefixer], where: str) -> list[Prefixer]:
    """Return those that have databases of their own: `a.b`, `a-b` and `a:b` are one."""
    found: dict[str, Prefixer] = {}
    for db in tenants:
        other = found.setdefault(db.key, db)
        if other != db:
            _logger.warning("two tenants have the same databases: one is left out", where=where, tenants=[other, db])
    return [*found.values()]
