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
from collections.abc import Iterable, Iterator
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
_MERGE_PAUSE_S = 0.25


@dataclass(slots=True)
class _Peer:
    """Another daemon. One that was there before this one lives for certain once its beat has been seen to move."""

    worker_types: frozenset[str]
    schedules: bool
    tenant: tuple[str, str]
    beat: object
    seen: float
    moved: bool


class Daemon:
    """One daemon. `join` before use, `leave` after; the parts of a process share one.

    Its document says which worker types it claims jobs for and whether it fires triggers; only daemons that do so have
    a first right to anything. A daemon that is shutting down does neither, for as long as its last jobs may take.
    """

    def __init__(self, connection: Connection, db: Prefixer) -> None:
        self.id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.db = db
        self._connection = connection
        self._worker_types: set[str] = set()
        self._slots = 0
        self._schedules = False
        self._beat = 0
        self._rev: str | None = None
        self._peers: dict[str, _Peer] = {}
        self._living: tuple[object, ...] = ()
        self._users = 0
        self._tasks = Supervisor()
        self._beating = asyncio.Lock()
        self._listeners: list[asyncio.Event] = []

    async def join(self) -> None:
        """Say that this daemon lives; know the others when this returns.

        Raises:
            NotFound: there is no control database; `couchjobs init` makes it.
        """
        self._users += 1
        if self._users > 1:
            return
        control = self._connection.control
        follower = ChangesFollower(
            control, await current_sequence(control), heartbeat_s=self._connection.settings.feed_heartbeat
        )
        self._note(await control.with_prefix(PREFIX), moved=False)
        await self._show()
        self._tasks.start("beat", self._beat_for_ever)
        self._tasks.start("watch daemons", lambda: self._watch(follower))

    async def take_jobs(self, worker_types: Iterable[str], slots: int) -> None:
        """Say for which worker types this daemon claims jobs, and how many at once; none and 0: no longer."""
        self._worker_types, self._slots = set(worker_types), slots
        await self._tell()

    async def take_triggers(self, takes: bool) -> None:
        """Say whether this daemon fires triggers."""
        self._schedules = takes
        await self._tell()

    async def _tell(self) -> None:
        self._notice_changes()
        try:
            await self._show()
        except CouchError as error:
            _logger.warning("the next beat tells the others", daemon=self.id, error=str(error))

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

    async def _delete(self, daemon: str, beat: object = None) -> bool:
        """Delete the document of a daemon, whose last beat was this one if given; return whether that was done."""
        present = await self._connection.control.find(PREFIX + daemon)
        if present is None or (beat is not None and present.get("beat", 0) != beat):
            return False
        try:
            await self._connection.control.delete(present["_id"], present["_rev"])
        except (Conflict, NotFound):
            _logger.debug("daemon document has changed or is gone", daemon=daemon)
            return False
        return True

    def listen(self) -> asyncio.Event:
        """Return an event that is set whenever a daemon comes or goes."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    def living(self, worker_type: str | None = None) -> list[str]:
        """Return the living daemons of this tenant, this one first; of those with that worker, if given."""
        return [
            self.id,
            *(
                daemon
                for daemon, peer in self._living_peers()
                if worker_type is None or worker_type in peer.worker_types
            ),
        ]

    def has_first_right(self, job_id: str, worker_type: str) -> bool:
        """Return whether this daemon, among the living ones with that worker, has the first right to the job."""
        return first_right(job_id, self.living(worker_type)) == self.id

    def fires(self, key: str) -> bool:
        """Return whether this daemon, among those that fire triggers, has the first right to one, or to a feed.

        Daemons of which only old documents are known do not count: two that fire the same make the same job, but one
        that has died fires nothing.
        """
        if not self._schedules:
            return False
        others = [daemon for daemon, peer in self._living_peers() if peer.schedules and peer.moved]
        return first_right(key, [self.id, *others]) == self.id

    def _living_peers(self) -> Iterator[tuple[str, _Peer]]:
        tenant = (self.db.domain, self.db.db_prefix)
        deadline = asyncio.get_running_loop().time() - self._connection.settings.dead_after
        return (
            (daemon, peer) for daemon, peer in self._peers.items() if peer.seen > deadline and peer.tenant == tenant
        )

    async def _beat_for_ever(self) -> None:
        interval = self._connection.settings.beat_interval
        while True:
            await asyncio.sleep(interval)
            try:
                async with asyncio.timeout(interval):
                    await self._show()
            except TimeoutError:
                _logger.warning("beat not answered in time", daemon=self.id, seconds=interval)
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
        for daemon, peer in [*self._peers.items()]:
            if peer.seen < deadline:
                if first_right(f"dead:{daemon}", self.living()) == self.id and await self._delete(daemon, peer.beat):
                    _logger.warning("a daemon is dead: its document is removed", daemon=daemon)
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
                "schedules": self._schedules,
                "beat": self._beat,
                "at": format_time(now()),
            }
            try:
                await self._put(document)
            except Conflict:  # an answer was lost, or somebody took this daemon for dead
                present = await self._connection.control.find(document["_id"])
                self._rev = present["_rev"] if present else None
                await self._put(document)

    async def _put(self, document: Document) -> None:
        fields = document if self._rev is None else {**document, "_rev": self._rev}
        self._rev = await self._connection.control.put(fields)

    async def _watch(self, follower: ChangesFollower) -> None:
        while True:
            page = await follower.next_page()
            ids = {change.doc_id for change in page.changes if change.doc_id.startswith(PREFIX)}
            ids.discard(PREFIX + self.id)
            if ids:
                found = await self._connection.control.get_many(ids)
                for gone in ids - found.keys():
                    self._peers.pop(gone.removeprefix(PREFIX), None)
                newcomers = found.keys() - {PREFIX + daemon for daemon in self._peers}
                self._note(found.values(), moved=True)
                self._notice_changes()
                if newcomers:
                    await self._show()  # a newcomer counts on those whose beat it sees moving
            await asyncio.sleep(_MERGE_PAUSE_S)

    def _note(self, documents: Iterable[Document], *, moved: bool) -> None:
        present = asyncio.get_running_loop().time()
        for document in documents:
            daemon = document["_id"].removeprefix(PREFIX)
            beat = document.get("beat", 0)
            known = self._peers.get(daemon)
            if daemon != self.id and (known is None or known.beat != beat):
                names = document.get("worker_types")
                self._peers[daemon] = _Peer(
                    frozenset(name for name in names if isinstance(name, str))
                    if isinstance(names, list)
                    else frozenset(),
                    document.get("schedules") is True,
                    (str(document.get("domain") or ""), str(document.get("prefix") or "")),
                    beat,
                    present,
                    moved,
                )

    def _notice_changes(self) -> None:
        firing = tuple(sorted((daemon, peer.schedules and peer.moved) for daemon, peer in self._living_peers()))
        living = (self._schedules, *firing)
        if living != self._living:
            self._living = living
            _logger.debug("daemons", living=living)
            for event in self._listeners:
                event.set()
