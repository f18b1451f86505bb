"""This daemon, as the others see it: its document in the control database, and a counter in it that moves.

A daemon that cannot move its counter must assume, a little before the others do, that it is taken for dead.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version

from couchjobs.cluster.pauses import PREFIX as PAUSED
from couchjobs.cluster.pauses import Pauses
from couchjobs.cluster.peers import PREFIX, Peers, Tenants, sharing_databases, told_other_lanes
from couchjobs.cluster.rendezvous import first_right
from couchjobs.couch.changes import ChangesFollower, Page
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.couch.positions import current_sequence
from couchjobs.errors import Conflict, CouchError, NotFound, PositionRefused
from couchjobs.installation import install, install_control
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.zones import digest_of_zone_data
from couchjobs.waits import ChangedIds, Signal, patiently

_logger = get_logger(__name__)
_VERSION = version("couchjobs")
_MERGE_PAUSE_S = 0.25
"""Seconds between two looks at the beats of others: those of many daemons merge."""
_AGAIN = 1 / 10
"""After which part of the interval a beat that was not taken is tried again: a whole one might be too late."""
_LOOK_AGAIN_S = 1.0
"""Seconds until the control database is looked for again."""
_MARGIN = 1 / 6
"""Which part of `dead_after` before its end a daemon that cannot beat stops its jobs: time for them to end."""
_BLIND_AFTER = 2
"""Intervals without a beat of its own after which a daemon knows nothing of the others either."""
_AFTER_CONFLICT_S = 0.25
"""Seconds in which the nodes of a cluster agree, mostly."""
_LEAVE_TRIES = 8
"""Looks at its document that a daemon takes at its end, where a node of a cluster is behind: 2 s."""
_FORGOTTEN_AFTER = 240
"""Times `dead_after` until a daemon without a document is forgotten: two hours, at the default of 30 s."""
_PAUSES_EACH_S = 60.0
"""Seconds between two looks at all that is paused: a row of the feed is told once."""
_CLOCK_EACH_S = 3600.0
"""Between two comparisons of this clock with the server's: clocks drift by less than a second in that time."""
_OFF_S = 5.0
"""Seconds that clocks may differ."""
_SELDOM = 5
"""Times as long between two sweeps of each of many tenants."""
_BURIED_AFTER = 4
"""Times `dead_after` until the document of a dead daemon is removed: everybody has seen it die by then."""


class Presence:
    """The document and the beat of one process. `join` before use, `leave` after; the parts of a process share one.

    Its document says which worker types it claims jobs for, and whether it fires triggers; only daemons that do so have
    a first right to anything. A daemon that is shutting down does neither, for as long as its last jobs may take.
    """

    def __init__(self, connection: Connection, db: Prefixer | None) -> None:
        """Be there for one tenant; None: for those that `serve` says."""
        self.id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.db = db
        self.connection = connection
        self.peers = Peers(self.id, connection.settings.dead_after)
        self.pauses = Pauses()
        self.zones = ""
        """A digest of its data of time zones; empty until it is known."""
        self.schedules = False
        """Whether this daemon fires triggers."""
        self.declares: frozenset[str] = frozenset()
        """The triggers that its code declares, by their ids."""
        self._tenants: Tenants = Tenants(frozenset(() if db is None else (db.key,)))
        self._worker_types: set[str] = set()
        self._slots = 0
        self._beat = 0
        self._shown_at = time.monotonic()
        self._clock_at = 0.0
        self._ahead_s = 0.0
        """Of this host's clock to the server's, when that was last looked at."""
        self._rev: str | None = None
        self._living: tuple[object, ...] = ()
        self._users = 0
        self._tasks = Supervisor()
        self._beating = asyncio.Lock()
        self._listeners: list[asyncio.Event] = []
        self._pauses_changed = Signal()
        self._watched: list[tuple[str, ChangedIds]] = []

    @property
    def sweep_interval(self) -> float:
        """Return how often is looked for what no feed tells of, in seconds: for many tenants, more seldom."""
        return self.connection.settings.sweep_interval * (_SELDOM if self.serves_many else 1)

    @property
    def serves_many(self) -> bool:
        """Return whether this daemon is there for many tenants, each of which belongs to one daemon as a whole."""
        return self.db is None

    async def join(self) -> None:
        """Say that this daemon lives; know the others when this returns.

        Raises:
            NotFound: there is no control database; `couchjobs init` makes it.
        """
        self._users += 1
        if self._users > 1:
            return
        follower = await patiently(self._come_in, self.connection.settings.request_timeout)
        self._tasks.start("beat", self._beat_for_ever)
        self._tasks.start("look around", self._look_around)
        self._tasks.start("watch daemons", lambda: self._watch(follower))
        self._tasks.start("look at pauses", self._look_at_all_pauses)

    async def _come_in(self) -> ChangesFollower:
        control, settings = self.connection.control, self.connection.settings
        follower = ChangesFollower(
            control, await current_sequence(control), heartbeat_s=settings.feed_heartbeat, in_any_case=True
        )
        others = await control.with_prefix(PREFIX)
        self.peers.note(others, moved=False)
        self.pauses.replace(await control.with_prefix(PAUSED))
        if self.db is not None:
            if unlike := told_other_lanes(others, self.db, settings.lanes):
                _logger.warning("daemons have other lanes than this one: set COUCHJOBS_LANES alike", daemons=unlike)
            if shared := sharing_databases(others, self.db, settings.jobs_doctype):
                _logger.warning("tenants with these prefixes have the same databases as this one", prefixes=shared)
        await self._show()
        return follower

    async def serve(self, tenants: Tenants) -> None:
        """Say for which tenants this daemon is there."""
        if tenants != self._tenants:
            self._tenants = tenants
            await self._tell()

    async def take_jobs(self, worker_types: Iterable[str], slots: int) -> None:
        """Say for which worker types this daemon claims jobs, and how many at once; none and 0: no longer."""
        wanted = set(worker_types)
        if (wanted, slots) != (self._worker_types, self._slots):
            self._worker_types, self._slots = wanted, slots
            await self._tell()

    async def take_triggers(self, takes: bool) -> None:
        """Say whether this daemon fires triggers, and by which data of time zones."""
        if takes == self.schedules:
            return
        self.schedules = takes
        if takes and not self.zones:  # the next beat tells it
            asyncio.get_running_loop().run_in_executor(None, digest_of_zone_data).add_done_callback(self._note_zones)
        await self._tell()

    def _note_zones(self, digest: asyncio.Future[str]) -> None:
        if not digest.cancelled() and digest.exception() is None:
            self.zones = digest.result()

    async def _tell(self) -> None:
        self._notice_changes()
        if self._users == 0:
            return
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
        if self._beat == 0:
            return  # it has not come in
        try:
            for _ in range(_LEAVE_TRIES):  # a node of a cluster may not know the last beat yet
                if await self._delete(self.id):
                    break
        except CouchError as error:
            _logger.warning("daemon document stays; the others will find it still", daemon=self.id, error=str(error))

    async def _delete(self, daemon: str, beat: object = None) -> bool:
        """Delete the document of a daemon, whose last beat was this one if given; return whether it is gone."""
        present = await self.connection.control.find(PREFIX + daemon)
        if present is None:
            return True
        if beat is not None and present.get("beat", 0) != beat:
            return False
        try:
            await self.connection.control.delete(present["_id"], present["_rev"])
        except Conflict:
            _logger.debug("daemon document has changed or is gone", daemon=daemon)
            await asyncio.sleep(_AFTER_CONFLICT_S)
            return False
        return True

    @property
    def beat_age_s(self) -> float:
        """Return how long ago the last beat that was taken was sent, in seconds."""
        return time.monotonic() - self._shown_at

    @property
    def is_lost(self) -> bool:
        """Return whether the others may soon take this daemon for dead: its last beat is too long ago."""
        return self.beat_age_s > self.connection.settings.dead_after * (1 - _MARGIN)

    async def lost_or_found(self) -> bool:
        """Wait until this daemon is lost, or found again; return whether it is lost."""
        before = self.is_lost
        while self.is_lost == before:  # noqa: ASYNC110  time alone makes it so
            await asyncio.sleep(self.connection.settings.look_interval)
        return not before

    def listen(self) -> asyncio.Event:
        """Return an event that is set whenever a daemon comes or goes."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    def listen_to(self, prefix: str) -> ChangedIds:
        """Return what tells of documents of the control database whose ids begin so: a hint, as all of a feed is."""
        changed = ChangedIds()
        self._watched.append((prefix, changed))
        return changed

    async def is_surely_dead(self, daemon: str) -> bool:
        """Return whether a daemon is dead, having read its document once more: the feed may be behind."""
        if not self.peers.is_dead(daemon):
            return False
        present = await self.connection.control.find(PREFIX + daemon)
        if present is not None:
            self.peers.note([present], moved=True)
        return self.peers.is_dead(daemon)

    async def _beat_for_ever(self) -> None:
        interval = pause = self.connection.settings.beat_interval
        untaken = 0
        while True:
            await asyncio.sleep(pause)
            pause = interval
            try:
                async with asyncio.timeout(interval):
                    await self._show()
            except TimeoutError:
                _logger.warning("beat not answered in time", daemon=self.id, seconds=interval)
                pause = 0.0
            except NotFound:
                pause = interval * _AGAIN
                await self._make_again()
            except CouchError as error:
                pause = interval * _AGAIN
                untaken += 1
                if untaken & (untaken - 1) == 0:  # the 1st, 2nd, 4th, ... time
                    _logger.warning("beat not taken, and tried again", daemon=self.id, times=untaken, reason=str(error))
            else:
                untaken = 0
            self._notice_changes()

    async def _look_around(self) -> None:
        """Do what no beat must wait for: CouchDB may take a minute to answer."""
        while True:
            await asyncio.sleep(self.connection.settings.beat_interval)
            await self._bury_dead()
            if time.monotonic() >= self._clock_at:
                await self._look_at_clock()

    async def _look_at_clock(self) -> None:
        """Note how far the clock of this host is off the server's; the next beat tells it."""
        self._clock_at = time.monotonic() + _CLOCK_EACH_S
        with suppress(CouchError):
            self._ahead_s = await self.connection.server.clock_ahead_s() or 0.0
        if abs(self._ahead_s) > _OFF_S:
            _logger.error(
                "the clock here is off the server's: schedules, delays and time limits go by it",
                seconds=round(self._ahead_s),
            )

    async def _make_again(self) -> None:
        """Make the control database again, where it is gone."""
        try:
            changes = (
                await install_control(self.connection) if self.db is None else await install(self.connection, self.db)
            )
            for change in changes:
                _logger.warning("made again", what=change)
            self._rev = None
        except CouchError as error:
            _logger.warning("the control database is not to be had", reason=str(error))

    async def _bury_dead(self) -> None:
        """Delete the documents of daemons that have long been dead; whoever has the first right does it."""
        for daemon in self.peers.suspects():
            if self.peers.is_dead(daemon, _BURIED_AFTER):
                beat = self.peers.beat_of(daemon)
                if beat is None and not self.peers.is_dead(daemon, _FORGOTTEN_AFTER):
                    continue  # a tenant that is looked at seldom may hold jobs of it
                others = [peer_id for peer_id, peer in self.peers.living() if peer.moved and peer.worker_types]
                try:
                    is_own = first_right(f"dead:{daemon}", [self.id, *others]) == self.id
                    if beat is not None and is_own and await self._delete(daemon, beat):
                        _logger.warning("a daemon is dead: its document is removed", daemon=daemon)
                except CouchError as error:
                    _logger.info("a dead daemon's document stays for now", daemon=daemon, reason=str(error))
                    continue
                self.peers.forget(daemon)

    async def _show(self) -> None:
        async with self._beating:
            began = time.monotonic()
            blind = began - self._shown_at > _BLIND_AFTER * self.connection.settings.beat_interval
            if blind:
                self.peers.blinded()
            self._beat += 1
            document = self._document()
            try:
                await self._put(document)
            except Conflict:  # an answer was lost, or somebody took this daemon for dead
                present = await self.connection.control.find(document["_id"])
                self._rev = present["_rev"] if present else None
                await self._put(document)
            if blind:
                self.peers.blinded()
            self._shown_at = began

    def _document(self) -> Document:
        document: Document = {
            "_id": PREFIX + self.id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": _VERSION,
            "worker_types": sorted(self._worker_types),
            "slots": self._slots,
            "schedules": self.schedules,
            "zones": self.zones,
            "dead_after": self.connection.settings.dead_after,
            "beat": self._beat,
            "at": format_time(now()),
        }
        if self.db is None:
            document["tenants"] = self._tenants.written()
        else:
            document |= {"domain": self.db.domain, "prefix": self.db.db_prefix}
        if abs(self._ahead_s) > _OFF_S:
            document["clock_ahead_s"] = round(self._ahead_s, 1)
        if self.declares:
            document["declares"] = sorted(self.declares)
        if lanes := self.connection.settings.lanes:
            document["lanes"] = lanes
        if still := self.peers.still():
            document["still"] = still
        return document

    async def _put(self, document: Document) -> None:
        fields = document if self._rev is None else {**document, "_rev": self._rev}
        self._rev = await self.connection.control.put(fields, silence_s=self.connection.settings.beat_interval)

    async def _watch(self, follower: ChangesFollower) -> None:
        while True:
            try:
                page = await follower.next_page()
            except NotFound:
                await asyncio.sleep(_LOOK_AGAIN_S)  # the beat makes the database again
                continue
            except PositionRefused:
                follower.since = await current_sequence(follower.database)
                self.peers.note(await follower.database.with_prefix(PREFIX), moved=False)
                self.pauses.replace(await follower.database.with_prefix(PAUSED))
                continue
            ids = {change.doc_id for change in page.changes if change.doc_id.startswith(PREFIX)}
            ids.discard(PREFIX + self.id)
            self._tell_watchers(page)
            if paused := {change.doc_id for change in page.changes if change.doc_id.startswith(PAUSED)}:
                await self._look_at_pauses(paused)
                self._pauses_changed.set()
            if ids:
                answers = await self.connection.control.read(ids)
                for one in answers:
                    if one.absent:
                        self.peers.gone(one.doc_id.removeprefix(PREFIX))
                new = self.peers.note((one.document for one in answers if one.document is not None), moved=True)
                self._notice_changes()
                if new:
                    await self._show()  # a newcomer counts on those whose beat it sees moving
            follower.done(page)
            await asyncio.sleep(_MERGE_PAUSE_S)

    def _tell_watchers(self, page: Page) -> None:
        for prefix, changed in self._watched:
            if told := [change.doc_id for change in page.changes if change.doc_id.startswith(prefix)]:
                changed.note(told)

    async def _look_at_pauses(self, ids: Iterable[str]) -> None:
        answers = await self.connection.control.read(ids)
        gone = [one.doc_id for one in answers if one.absent]
        self.pauses.note((one.document for one in answers if one.document is not None), gone)

    async def _look_at_all_pauses(self) -> None:
        """Look again after a row, for the copy that was asked then may have been behind, and now and then."""
        while True:
            if await self._pauses_changed.within(_PAUSES_EACH_S):
                await asyncio.sleep(_LOOK_AGAIN_S)
            try:
                listed = {document["_id"] for document in await self.connection.control.with_prefix(PAUSED)}
                await self._look_at_pauses(listed | self.pauses.ids)  # the copy that lists them may be behind, too
            except CouchError as error:
                _logger.info("which types are paused is looked at again", reason=str(error))
                self._pauses_changed.set()

    def _notice_changes(self) -> None:
        others = {daemon: (peer.schedules and peer.moved, peer.tenants) for daemon, peer in self.peers.living()}
        living = (self.schedules, *sorted(others.items(), key=lambda one: one[0]))
        if living != self._living:
            self._living = living
            _logger.debug("daemons", living=living)
            for event in self._listeners:
                event.set()
