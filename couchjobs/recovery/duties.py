"""What a daemon puts right in one database of jobs, besides running them: each duty at its own interval."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from couchjobs.cluster.daemon import Daemon
from couchjobs.jobs.claims import OwnClaims
from couchjobs.recovery.audit import Audit
from couchjobs.recovery.conflicts import conflicted, settle_conflicts
from couchjobs.recovery.dead_daemons import Rescuer
from couchjobs.recovery.lost import LostJobs
from couchjobs.recovery.unnamed_claims import UnnamedClaims
from couchjobs.settings import Settings
from couchjobs.supervisor import Supervisor

_CONFLICTS = "conflicts"
_UNNAMED = "unnamed"


class Duties:
    """Those of one daemon in one database of jobs.

    Args:
        lost: what becomes of a lost job; it knows the jobs.
        claims: what the daemon remembers of its own claims.
        daemon: the daemon.
        settings: of the process.
    """

    def __init__(self, lost: LostJobs, claims: OwnClaims, daemon: Daemon, settings: Settings) -> None:
        self._store = lost.store
        self._daemon = daemon
        self._settings = settings
        self._worker_types = lost.failures.workers.names()
        self._audit = Audit(lost, claims)
        self._rescuer = Rescuer(lost)
        self._unnamed = UnnamedClaims(lost)

    def start(self, tasks: Supervisor) -> None:
        """Begin with all of them: none waits for another one."""
        look, sweep = self._settings.look_interval, self._settings.sweep_interval
        for name, interval_s, duty in (
            ("unconfirmed claims", look, self._audit.unconfirmed),
            ("dead daemons", look, lambda: self._rescuer.look_after(self._daemon, self._worker_types)),
            ("audit", sweep, lambda: self._audit.all_claims(self._settings.audit_grace)),
            ("unknown daemons", sweep, self._rescuer.suspect_unknown),
            ("unnamed claims", sweep, self._rescue_unnamed),
            ("conflicts", sweep, self._settle_conflicts),
        ):
            tasks.start(name, lambda interval_s=interval_s, duty=duty: _at_intervals(interval_s, duty))  # type: ignore[misc]

    async def _rescue_unnamed(self) -> None:
        if self._daemon.answers_for(_UNNAMED, self._worker_types):
            await self._unnamed.rescue()

    async def _settle_conflicts(self) -> None:
        if self._daemon.answers_for(_CONFLICTS, self._worker_types):
            await settle_conflicts(self._store, self._daemon.peers, await conflicted(self._store))


async def _at_intervals(interval_s: float, duty: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await duty()
