"""Jobs of dead daemons go back to the queue, or, when their tries are spent, to errored: "worker lost".

Every daemon that claims jobs looks; of those, one has the first right to a dead one's jobs, the others a little later,
and the revision fences all but one out. A dead daemon is found by its beat that stands still; one whose document is
gone altogether by the claims that name it, which are listed now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.database import Document
from couchjobs.errors import CouchError
from couchjobs.jobs.job import ENDED, is_claimed_by
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.recovery.conflicts import is_run
from couchjobs.recovery.lost import LostJobs

_logger = get_logger(__name__)
_ANYBODY_AFTER = 1.3
"""Times `dead_after` until any daemon takes the jobs of a dead one, and not only that with the first right."""
_LOOKS = 3
"""Looks at the claims of a dead daemon until the next sweep."""
_LOOK_AGAIN_S = 3.0
"""Seconds until the second look, twice as many until the third."""
_LEFT_AGAIN_S = 10.0
"""Seconds until the next look at one with a job that could not be taken, which may be so for good."""
_AT_A_TIME = 20
"""Dead daemons looked after together; the next look takes the others."""


class Rescuer:
    """Looks after the jobs of other daemons, in one database. `lost`: what becomes of them; it knows the jobs."""

    def __init__(self, lost: LostJobs) -> None:
        self._lost = lost
        self._store = lost.store
        self._peers = lost.peers
        self._unknown: set[str] = set()
        self._done: set[str] = set()
        self.left: set[str] = set()
        """Daemons with jobs that could not be taken."""
        self._looks: dict[str, tuple[int, float]] = {}
        """By daemon, how often it was looked after, and when it is again: a view of a cluster may be behind."""

    async def suspect_unknown(self) -> None:
        """Suspect daemons that claims name and nobody knows, and, once more, those that were looked after."""
        self._unknown = {name for name in await claimants(self._store) if self._peers.is_dead(name)}
        self._done.clear()
        self._looks.clear()

    async def look_after(self, daemon: Daemon, worker_types: Collection[str]) -> bool:
        """Take the jobs of those that have died: of all of them, of which this daemon has the first right to some.

        Return whether that was done, as far as it was this daemon's to do; else it is to be tried again.

        `worker_types`: those of the jobs, for only daemons that have one of them look after them.
        """
        known = {*self._peers.suspects()}
        self._done &= known
        present = time.monotonic()
        suspects, self._unknown = known | self._unknown, set()
        own = [
            suspect
            for suspect in suspects - self._done
            if self._looks.get(suspect, (0, 0.0))[1] <= present
            and (daemon.answers_for(suspect, worker_types) or self._peers.is_dead(suspect, _ANYBODY_AFTER))
        ]
        own.sort(key=lambda suspect: self._looks.get(suspect, (0, 0.0))[1])
        looked_after = await asyncio.gather(*(self._look_after(daemon, suspect) for suspect in own[:_AT_A_TIME]))
        for suspect in (suspect for suspect, rescued in zip(own, looked_after, strict=False) if rescued):
            looks = self._looks.get(suspect, (0, 0.0))[0]
            if suspect in self.left:
                self._looks[suspect] = looks, present + _LEFT_AGAIN_S
                continue
            looks += 1
            self._looks[suspect] = looks, present + _LOOK_AGAIN_S * looks
            if looks >= _LOOKS:
                self._done.add(suspect)
                del self._looks[suspect]
        return len(own) <= _AT_A_TIME and all(looked_after) and not (self.left & known)

    async def _look_after(self, daemon: Daemon, suspect: str) -> bool:
        """Take the jobs of one suspect, if it is dead; return whether that was tried."""
        try:
            self.left.discard(suspect)
            if await daemon.is_surely_dead(suspect):
                await self.rescue(suspect)
            return True
        except CouchError as error:
            _logger.warning("jobs of a dead daemon not rescued yet", daemon=suspect[:100], reason=str(error))
        except Exception:
            _logger.exception("jobs of a dead daemon cannot be rescued", daemon=suspect[:100])
        return False

    async def rescue(self, dead: str) -> int:
        """Take all jobs from a daemon that is dead; return how many they were."""
        rescued = 0
        async for rows in self._store.database.view_pages("queue/claimed", [dead], [dead, {}]):
            answers = await self._store.database.read(row["id"] for row in rows)
            if any(one.is_unknown for one in answers):
                self.left.add(dead)
            taken = await asyncio.gather(
                *(self._take(one.document, dead) for one in answers if one.document is not None)
            )
            rescued += sum(taken)
        if rescued:
            _logger.warning("jobs of a dead daemon rescued", daemon=dead, jobs=rescued)
        return rescued

    async def _take(self, document: Document, dead: str) -> bool:
        """Take one job, unless another branch of it has ended or is run by a daemon that is not dead."""
        if not is_claimed_by(document, dead):
            return False
        try:
            for leaf in await self._store.database.leaves(document["_id"]):
                is_others = leaf.get("state") in ENDED or is_run(leaf, self._peers)
                if is_others and leaf["_rev"] != document["_rev"]:
                    return False
            job = self._store.read(document)
            return await self._lost.take(job)
        except CouchError as error:
            _logger.warning("job of a dead daemon not rescued yet", job=document["_id"], reason=str(error))
            self.left.add(dead)
            return False


async def claimants(store: JobStore) -> list[str]:
    """Return the daemons that running jobs name."""
    rows = await store.database.reduced("queue/claimed", [""], [{}], group_level=1)
    return [row["key"][0] for row in rows if isinstance(row["key"][0], str)]
