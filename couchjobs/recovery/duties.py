"""What a daemon puts right in one database of jobs, besides running them: each duty at its own interval."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.connection import Connection
from couchjobs.errors import ConfigurationError, CouchError
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.jobs.removal import Remover
from couchjobs.jobs.retention import Retention, stored_rules
from couchjobs.log import get_logger
from couchjobs.recovery.audit import Audit
from couchjobs.recovery.conflicts import CONFLICTS, conflicted, settle_conflicts
from couchjobs.recovery.dead_daemons import Rescuer
from couchjobs.recovery.lost import LostJobs
from couchjobs.recovery.unnamed_claims import UnnamedClaims
from couchjobs.supervisor import Supervisor
from couchjobs.timestamps import now

_CONFLICTS = "conflicts"
_UNNAMED = "unnamed"
_RETENTION = "retention"
_UNCONFIRMED_LOOK_S = 0.5
"""Seconds between two looks at claims of unclear answer: 400 a second are given up."""
_PAUSE_AT_REST = 1.0
"""Times as long as a step of removing took is the pause after it."""
_PAUSE_AT_WORK = 9.0
"""The same where jobs run here: a tenth of the time is left to it then."""
_PAUSE_BEHIND = 2.0
"""The same where removing takes longer than from one sweep to the next: finished jobs would come faster than go."""
_RULES_EACH_S = 5.0
"""Seconds between two looks at the rules: what is purged is gone, and a rule may have been a slip of the pen."""
_REMOVED_FOR_S = 10.0
"""Seconds of removing after which other tenants have their turn."""
_URGENT_FOR_S = 60.0
"""Seconds that a tenant stays awake for jobs of the dead that cannot be taken: some never can."""
_logger = get_logger(__name__)
Duty = Callable[[], Awaitable[object]]


class Duties:
    """Those of one daemon in one database of jobs.

    Args:
        lost: what becomes of a lost job; it knows the jobs.
        claims: what the daemon remembers of its own claims.
        daemon: the daemon.
        connection: to the server.
        worker_types: those whose jobs are in that database, and that the daemon has: daemons that have one of them
            share the duties.
    """

    def __init__(
        self,
        lost: LostJobs,
        claims: OwnClaims,
        daemon: Daemon,
        connection: Connection,
        worker_types: Collection[str],
    ) -> None:
        self._connection = connection
        self._claims = claims
        self._lost, self._store = lost, lost.store
        self._daemon = daemon
        self._settings = connection.settings
        self._worker_types = worker_types
        self._audit = Audit(lost, claims)
        self._rescuer = Rescuer(lost)
        self._unnamed = UnnamedClaims(lost)

        self.are_urgent = True
        """Whether it has not been seen to, since the start or the last pause, what daemons that died have left."""
        self._urgent_until = 0.0
        self._settled_to: str | None = None
        """The last conflict that was looked at, where there are more behind it: some can never be settled."""
        self._seldom: dict[str, Duty] = {
            "audit": lambda: self._audit.all_claims(self._settings.audit_grace),
            "unknown daemons": self._rescuer.suspect_unknown,
            "unnamed claims": self._rescue_unnamed,
            "conflicts": self._settle_conflicts,
            _RETENTION: self._remove_finished,
        }

    def start(self, tasks: Supervisor) -> None:
        """Begin with all of them: none waits for another one."""
        self.are_urgent = True
        self._urgent_until = time.monotonic() + _URGENT_FOR_S
        _start(tasks, "unconfirmed claims", _UNCONFIRMED_LOOK_S, self._audit.unconfirmed)
        _start(tasks, "dead daemons", self._settings.look_interval, self.rescue)
        for name, duty in self._seldom.items():
            often = name == _RETENTION  # with few jobs to remove at a time, whoever serves how many tenants
            _start(tasks, name, self._settings.sweep_interval if often else self._daemon.sweep_interval, duty)

    async def rescue(self) -> None:
        """Take the jobs of daemons that have died."""
        done = await self._rescuer.look_after(self._daemon, self._worker_types)
        self.are_urgent = not done and time.monotonic() < self._urgent_until

    async def once(self) -> None:
        """Do once what is done now and then, in bounded time.

        Raises:
            CouchError: one of them could not be done; the others were.
        """
        failed: CouchError | None = None
        brief: Duty = partial(self._remove_finished, _REMOVED_FOR_S)
        duties = [duty for name, duty in self._seldom.items() if name != _RETENTION]
        for duty in [*duties, self.rescue, brief]:
            try:
                await duty()
            except CouchError as error:
                failed = error
        if failed is not None:
            raise failed

    async def _rescue_unnamed(self) -> None:
        if self._daemon.answers_for(_UNNAMED, self._worker_types):
            await self._unnamed.rescue()

    async def _settle_conflicts(self) -> None:
        if self._daemon.answers_for(_CONFLICTS, self._worker_types):
            found = await conflicted(self._store, self._settled_to)
            self._settled_to = found[-1] if len(found) == CONFLICTS else None
            await settle_conflicts(self._lost.ends, self._daemon.peers, found)

    async def _remove_finished(self, longest_s: float = math.inf) -> None:
        """Remove finished jobs that are kept no longer, in small steps, with pauses that leave CouchDB to others.

        `longest_s`: seconds after which the rest is left for the next time.
        """
        rules = await self._rules()
        if not rules.rules:
            return
        loop, removed = asyncio.get_running_loop(), 0
        began = first = read_at = loop.time()
        remover = Remover(self._store)
        async for count in remover.steps(rules, now()):
            removed += count
            present = loop.time()
            behind = present - first > self._settings.sweep_interval
            at_work = _PAUSE_BEHIND if behind else _PAUSE_AT_WORK
            await asyncio.sleep((present - began) * (at_work if self._claims.held else _PAUSE_AT_REST))
            began = loop.time()
            if began - first > longest_s:
                break
            if began - read_at > _RULES_EACH_S:
                read_at = began
                if (await self._rules()).rules != rules.rules:
                    _logger.info("rules of retention have changed", database=self._store.database.name)
                    break
        if remover.refused:
            _logger.warning("finished jobs cannot be removed", jobs=remover.refused, reason=remover.reason)
        if removed:
            _logger.info("finished jobs removed", database=self._store.database.name, jobs=removed)

    async def _rules(self) -> Retention:
        """Return the rules by which this daemon is to remove jobs now; none where it is another one's turn."""
        if not self._daemon.answers_for(_RETENTION, self._worker_types):
            return Retention()
        try:
            return await stored_rules(self._connection, self._store.db)
        except ConfigurationError as error:
            _logger.warning("rules of retention cannot be understood: nothing is removed", reason=str(error))
            return Retention()


def _start(tasks: Supervisor, name: str, interval_s: float, duty: Duty) -> None:
    tasks.start(name, lambda: _at_intervals(interval_s, duty))


async def _at_intervals(interval_s: float, duty: Duty) -> None:
    await asyncio.sleep(interval_s * random.uniform(0.5, 1))  # noqa: S311  not all at the same moment
    while True:
        await duty()
        await asyncio.sleep(interval_s)
