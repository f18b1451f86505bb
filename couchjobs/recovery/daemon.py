"""This daemon, as the others see it, and the others, as this one sees them.

Each daemon has a document in the control database, with a counter that moves while it lives. The others time the
counter by their own monotonic clock, so that the clocks of hosts are never compared: a counter that stands still
for `dead_after` belongs to a dead daemon.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from couchjobs.couch.changes import ChangesFollower, current_sequence
from couchjobs.couch.connection import Connection
from couchjobs.errors import Conflict, CouchError, NotFound
from couchjobs.installation import install
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.recovery.rendezvous import first_right
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import format_time, now

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
PREFIX = "daemon:"


@dataclass(slots=True)
class _Peer:
    worker_types: frozenset[str]
    tenant: tuple[str, str]
    beat: int
    seen: float


class Daemon:
    """One daemon. `join` before use, `leave` after; the parts of a process share one."""

    def __init__(self, connection: Connection, db: Prefixer) -> None:
        self.id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.db = db
        self._connection = connection
        self._worker_types: set[str] = set()
        self._slots = 0
        self._beat = 0
        self._rev: str | None = None
        self._peers: dict[str, _Peer] = {}
        self._living: tuple[str, ...] = ()
        self._users = 0
        self._tasks = Supervisor()
        self._beating = asyncio.Lock()
        self._listeners: list[asyncio.Event] = []

    async def join(self, worker_types: Iterable[str] = (), slots: int = 0) -> None:
        """Say that this daemon lives and what it takes; know the others when this returns.

        Raises:
            NotFound: there is no control database; `couchjobs init` makes it.
        """
        self._users += 1
        self._worker_types |= set(worker_types)
        self._slots += slots
        if self._users > 1:
            await self._show()
            return
        control = self._connection.control
        follower = ChangesFollower(
            control, await current_sequence(control), heartbeat_s=self._connection.settings.feed_heartbeat
        )
        self._note(await control.with_prefix(PREFIX))
        await self._show()
        self._tasks.start("beat", self._beat_for_ever)
        self._tasks.start("watch daemons", lambda: self._watch(follower))

    async def leave(self) -> None:
        """Say that this daemon has gone."""
        self._users -= 1
        if self._users > 0:
            return
        await self._tasks.stop()
        try:
            await self._delete(self.id)
        except CouchError as error:
            _logger.warning("daemon document stays; the others will find it still", daemon=self.id, error=str(error))

    async def _delete(self, daemon: str) -> None:
        present = await self._connection.control.find(PREFIX + daemon)
        if present is not None:
            try:
                await self._connection.control.delete(present["_id"], present["_rev"])
            except (Conflict, NotFound):
                _logger.debug("daemon document has changed or is gone", daemon=daemon)

    def listen(self) -> asyncio.Event:
        """Return an event that is set whenever a daemon comes or goes."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    def living(self, worker_type: str | None = None) -> list[str]:
        """Return the living daemons of this tenant, this one first; of those with that worker, if given."""
        tenant = (self.db.domain, self.db.db_prefix)
        deadline = asyncio.get_running_loop().time() - self._connection.settings.dead_after
        others = [
            daemon
            for daemon, peer in self._peers.items()
            if peer.seen > deadline
            and peer.tenant == tenant
            and (worker_type is None or worker_type in peer.worker_types)
        ]
        return [self.id, *others]

    def has_first_right(self, key: str, worker_type: str | None = None) -> bool:
        """Return whether this daemon, among the living ones, has the first right to `key`."""
        return first_right(key, self.living(worker_type)) == self.id

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._connection.settings.beat_interval)
            try:
                await self._show()
            except NotFound:
                _logger.warning("the control database is gone, and made again")
                await install(self._connection, self.db)
                self._rev = None
                continue
            self._notice_changes()
            await self._bury_dead()

    async def _bury_dead(self) -> None:
        """Delete the documents of daemons that have long been still; whoever has the first right does it."""
        deadline = asyncio.get_running_loop().time() - 2 * self._connection.settings.dead_after
        for daemon in [daemon for daemon, peer in self._peers.items() if peer.seen < deadline]:
            if self.has_first_right(f"dead:{daemon}"):
                _logger.warning("a daemon is dead: its document is removed", daemon=daemon)
                await self._delete(daemon)
            self._peers.pop(daemon, None)

    async def _show(self) -> None:
        async with self._beating:
            self._beat += 1
            document: Document = {
                "_id": PREFIX + self.id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "version": version("couchjobs"),
                "domain": self.db.domain,
                "prefix": self.db.db_prefix,
                "worker_types": sorted(self._worker_types),
                "slots": self._slots,
                "beat": self._beat,
                "at": format_time(now()),
            }
            if self._rev is not None:
                document["_rev"] = self._rev
            try:
                self._rev = await self._connection.control.put(document)
            except Conflict:
                present = await self._connection.control.find(PREFIX + self.id)
                self._rev = present["_rev"] if present else None

    async def _watch(self, follower: ChangesFollower) -> None:
        while True:
            page = await follower.next_page()
            ids = {change.doc_id for change in page.changes if change.doc_id.startswith(PREFIX)}
            ids.discard(PREFIX + self.id)
            if ids:
                found = await self._connection.control.get_many(ids)
                for gone in ids - found.keys():
                    self._peers.pop(gone.removeprefix(PREFIX), None)
                self._note(found.values())
                self._notice_changes()

    def _note(self, documents: Iterable[Document]) -> None:
        present = asyncio.get_running_loop().time()
        for document in documents:
            daemon = document["_id"].removeprefix(PREFIX)
            beat = document.get("beat", 0)
            known = self._peers.get(daemon)
            if daemon != self.id and (known is None or known.beat != beat):
                names = document.get("worker_types")
                types = (
                    frozenset(name for name in names if isinstance(name, str))
                    if isinstance(names, list)
                    else frozenset()
                )
                tenant = (str(document.get("domain") or ""), str(document.get("prefix") or ""))
                self._peers[daemon] = _Peer(types, tenant, beat, present)

    def _notice_changes(self) -> None:
        living = tuple(sorted(self.living()))
        if living != self._living:
            self._living = living
            _logger.debug("daemons", living=living)
            for event in self._listeners:
                event.set()
