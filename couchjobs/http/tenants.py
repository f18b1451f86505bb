"""Many tenants behind one address: each by its host name, or by paths that begin with `/tenants/<prefix>`.

What is served to a tenant is an application of its own, with its own tokens, made when somebody asks for it, and
dropped when others were asked for since. What is asked without naming a tenant is for the one without a prefix; that
one also tells of the daemon of this process, and an administrator which tenants there are.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, unquote

from aiohttp import web
from structlog.contextvars import bound_contextvars
from yarl import URL

from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, CouchError, Unavailable
from couchjobs.http.access import CALLER
from couchjobs.http.all_paths import AllPaths
from couchjobs.http.api import API
from couchjobs.http.gate import Gate
from couchjobs.http.jsonapi import ApiError
from couchjobs.http.pages.page import ROOT, render
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.tenants.named import Missed, named_by

_logger = get_logger(__name__)
_PATH = "/tenants/"
_HEALTH = "/health/"
LIST = f"{ROOT}/tenants"
_LOOK_S = 5.0
"""Seconds within which a tenant is noticed that comes or goes."""
_MISSED_FOR_S = 4.0
"""Seconds for which a tenant is not named by any look until it is dropped: two looks."""
_MOST = 100
"""Tenants that are kept ready, some 0.2 MB each; more only where all of them are being answered."""
_COLLECT_AFTER = 50
"""Dropped ones after which memory is taken back: each is a cycle, and the collector seldom looks by itself."""
_PATIENCE_S = 0.5
"""Seconds that a request waits for a newer list of tenants, where there is an older one."""
_FIRST_S = 5.0
"""The same where there is none."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII | re.IGNORECASE)


class _Site:
    def __init__(self, db: Prefixer, base: str, app: web.Application) -> None:
        self.db = db
        self.base = base
        self.app = app
        self.answering: set[asyncio.Task[Any]] = set()


_SITE: web.RequestKey[_Site] = web.RequestKey("site", _Site)
_FAILED: web.RequestKey[Exception] = web.RequestKey("failed", Exception)


class Sites:
    """Those of one server: `close` when done.

    Args:
        connection: to CouchDB.
        wanted: which tenants, as the option `--tenants` says it.
        make: makes the application of the tenant of a connection, whose paths begin with that.
        root: that of the tenant without a prefix.
        gate: what is remembered of those who ask.
    """

    def __init__(
        self,
        connection: Connection,
        wanted: str,
        make: Callable[[Connection, str], web.Application],
        root: web.Application,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._connection = connection
        self._named = named_by(connection, wanted)
        self._make = make
        root.router.add_get(LIST, self.index)
        root[API].is_of_many = True
        root.pre_freeze()
        self._root = _Site(Prefixer(), "", root)
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._known: dict[str, Prefixer] = {}
        self._hosts: dict[str, Prefixer] = {}
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._missed = Missed(_MISSED_FOR_S)
        self._nobodys: set[str] = set()
        """Domains that are those of several tenants, or were one's: they are not the root's for that."""
        self._told: set[str] = set()
        """Domains that are said to be those of more than one tenant."""
        self._dropped = 0

    async def find(self, request: web.Request) -> tuple[_Site, str]:
        """Return what answers a request, and the path that it has there.

        Raises:
            ApiError: 404: there is no such tenant; 400: the host is none; 429: whoever asks was refused too often.
            CouchError, ConfigurationError: which tenants there are cannot be said.
        """
        path = request.rel_url.raw_path
        if path.startswith(_HEALTH):  # of this process, whatever CouchDB does
            return self._root, path
        host = _host(request)
        await self._look()
        if host in self._hosts:
            return await self._site(self._hosts[host], "", request), path
        if not path.startswith(_PATH):
            if host in self._nobodys:
                self._gate.check_stranger(request, cost=1)
                raise ApiError(
                    404, f"{host} is the host name of no tenant: it is one of several, or of one that has gone"
                )
            return self._root, path
        key, slash, rest = path.removeprefix(_PATH).partition("/")
        if unquote(key) not in self._known:
            self._gate.check_stranger(request, cost=1)
            raise ApiError(404, f"there is no tenant {unquote(key)[:100]!r}")
        db = self._known[unquote(key)]
        return await self._site(db, _base_of(db), request), slash + rest or "/"

    async def resolve(self, request: web.Request) -> Any:
        """Return what answers a request: a route of its tenant's application; None where nobody can."""
        try:
            request[_SITE], path = await self.find(request)
        except (ApiError, ConfigurationError, CouchError) as error:
            request[_FAILED] = Unavailable(str(error)) if isinstance(error, ConfigurationError) else error
            return None
        app = request[_SITE].app
        found = await app.router.resolve(request.clone(rel_url=URL(path, encoded=True)))
        found.add_app(app)
        return found

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Have a site stay as long as it answers."""
        if _FAILED in request:
            raise request[_FAILED]
        site, task = request.get(_SITE), asyncio.current_task()
        if site is None or task is None:  # no path at all
            return await handler(request)
        site.answering.add(task)
        try:
            with bound_contextvars(tenant=site.db.key):
                return await handler(request)
        finally:
            site.answering.discard(task)

    async def index(self, request: web.Request) -> web.Response:
        """GET /dashboard/tenants: which there are, for who may do everything with all of them."""
        if not request[CALLER].is_of_all_tenants:
            raise ApiError(403, f"{request[CALLER].name} may not see which tenants there are")
        known = sorted(self._known.values(), key=lambda db: db.key)
        rows = [{"name": db.domain or db.db_prefix, "base": _base_of(db)} for db in known]
        return render(request, "tenants.html", title="Tenants", rows=rows)

    async def close(self) -> None:
        """End all of them."""
        if self._looking is not None:
            self._looking.cancel()
        for site in [*self._sites.values(), self._root]:
            await _end(site)

    async def _look(self) -> None:
        """Know which tenants there are, as they were some seconds ago, or longer where CouchDB does not say.

        Raises:
            CouchError, ConfigurationError: it has never said.
        """
        if self._looking is None:
            if asyncio.get_running_loop().time() < self._look_at:
                return
            self._looking = asyncio.create_task(self._ask(), name="look for tenants")
        asking = self._looking
        await asyncio.wait([asking], timeout=_PATIENCE_S if self._look_at else _FIRST_S)
        if self._look_at:
            return
        if not asking.done():
            raise Unavailable("CouchDB does not say which tenants there are")
        asking.result()

    async def _ask(self) -> None:
        try:
            tenants = await self._named.tenants()
            await self._know(tenants)
            self._look_at = asyncio.get_running_loop().time() + _LOOK_S
        except (ConfigurationError, CouchError) as error:
            if not self._look_at:
                raise
            _logger.warning("which tenants there are is not known now", reason=str(error))
            self._look_at = asyncio.get_running_loop().time() + _LOOK_S
        finally:
            self._looking = None

    async def _know(self, tenants: list[Prefixer]) -> None:
        """Serve these tenants, and no longer those that have gone."""
        taken = {db.domain.lower() for db in tenants}
        missed = self._missed.too_shortly(self._known, tenants)
        tenants = [*tenants, *(db for db in missed if not db.domain or db.domain.lower() not in taken)]
        self._known = {db.key: db for db in tenants}
        domains = Counter(db.domain.lower() for db in tenants if db.domain)
        shared = {domain for domain, count in domains.items() if count > 1}
        for domain in sorted(shared - self._told):
            _logger.warning("two tenants have one domain: its host name is nobody's", domain=domain)
        self._told = shared
        before = self._hosts.keys()
        self._hosts = {db.domain.lower(): db for db in tenants if db.domain and db.domain.lower() not in shared}
        self._nobodys = (self._nobodys | before | shared) - self._hosts.keys()
        for name, site in [*self._sites.items()]:
            if self._known.get(site.db.key) != site.db:
                del self._sites[name]
                for task in site.answering:  # streams, mostly
                    task.cancel()
                await _end(site)

    async def _site(self, db: Prefixer, base: str, request: web.Request) -> _Site:
        name = f"{base} {db.key}"
        site = self._sites.get(name)
        if site is None or site.db != db:
            self._gate.check_unknown(request)
            app = self._make(self._connection.of(db), base)
            app.pre_freeze()
            site = self._sites[name] = _Site(db, base, app)
        self._sites.move_to_end(name)
        if len(self._sites) > _MOST:
            await self._drop_one(but=site)
        return site

    async def _drop_one(self, but: _Site) -> None:
        for name, site in [*self._sites.items()]:
            if not site.answering and site is not but:
                del self._sites[name]
                await _end(site)
                self._dropped += 1
                if self._dropped % _COLLECT_AFTER == 0:
                    gc.collect()
                return


async def _end(site: _Site) -> None:
    await site.app.shutdown()
    await site.app.cleanup()


def _base_of(db: Prefixer) -> str:
    """Return what the paths of a tenant begin with; nothing for the one without a prefix."""
    return _PATH + quote(db.key, safe="") if db.key else ""


def _host(request: web.Request) -> str:
    """Return the name of the host that is asked for.

    Raises:
        ApiError: 400: it is none.
    """
    matched = _HOST.fullmatch(request.host)
    if matched is None:
        raise ApiError(400, "the header Host names no host")
    return matched[1].lower()


def add_sites(front: web.Application, sites: Sites) -> None:
    """Have an application answer by these."""
    front.router.register_resource(AllPaths(sites.resolve))

    async def close(_: web.Application) -> None:
        await sites.close()

    front.on_shutdown.append(close)
