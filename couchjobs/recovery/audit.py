"""A daemon's audit of itself: jobs whose documents name it as their owner, and that it does not run, are given up.

That happens where a claim was stored although its answer said otherwise: a lost answer, or a cluster that told all
claimants `accepted`. Those that are known of are given up within seconds (`unconfirmed`), any other by the audit, now
and then. What to do depends on the other branches of the document. A branch that loses is withdrawn by its claimant.
One that wins goes back to the queue as soon as it is alone: the claimant of another one either owns the job, and its
end will win, or withdraws. So of all branches one always stays.

A try that is known to have begun here counts: its job goes back as one that has lost its worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import timedelta

from couchjobs.couch.database import Document
from couchjobs.errors import CouchError, Refused
from couchjobs.jobs.job import Job, State, is_claimed_by
from couchjobs.jobs.own_claims import OwnClaims
from couchjobs.log import get_logger
from couchjobs.recovery.lost import LostJobs
from couchjobs.timestamps import now

_logger = get_logger(__name__)
_UNCONFIRMED_S = 3.0
"""Seconds until a claim of unclear answer is given up: all copies of a document know of all claims by then."""
_AT_A_TIME = 200
"""Claims given up together; the next look takes the others."""
_MOST = 500
"""Claims that do not run from which on no further ones are looked for; the next audit goes on with what is left."""


class Audit:
    """Finds what names this daemon as its owner, in one database of jobs.

    Args:
        lost: what becomes of a job whose try has begun; it knows the jobs, and the daemon.
        claims: what the daemon remembers of its claims.
    """

    def __init__(self, lost: LostJobs, claims: OwnClaims) -> None:
        self._lost = lost
        self._store = lost.store
        self._daemon = lost.failures.daemon
        self._claims = claims

    async def all_claims(self, grace_s: float) -> int:
        """Give up what was claimed longer ago than `grace_s` and does not run; return how many jobs that were.

        `grace_s`: seconds, by this daemon's own clock, which also wrote the time of the claim; an index may be behind.
        """
        oldest, present = now() - timedelta(seconds=grace_s), now()
        stale = dict.fromkeys(self._claims.begun)
        async for rows in self._store.database.view_pages("queue/claimed", [self._daemon], [self._daemon, {}]):
            for one in await self._store.database.read(row["id"] for row in rows if row["id"] not in self._claims.held):
                if one.document is None or not is_claimed_by(one.document, self._daemon):
                    continue
                claim = Job.read(one.document).claim
                if claim is None or claim.at is None or not oldest <= claim.at <= present:
                    stale[one.doc_id] = None
            if len(stale) > _MOST:
                break
        return sum(await self._give_up(job_id for job_id in stale if job_id not in self._claims.held))

    async def unconfirmed(self) -> None:
        """Give up claims of unclear answer, once all copies of a document may be expected to know of all claims."""
        unconfirmed, present = self._claims.unconfirmed, time.monotonic()
        ripe = [
            job_id
            for job_id, since in unconfirmed.items()
            if present - since > _UNCONFIRMED_S and job_id not in self._claims.held
        ][:_AT_A_TIME]
        for job_id, is_done in zip(ripe, await self._give_up(ripe), strict=True):
            if is_done:
                unconfirmed.pop(job_id, None)
            else:
                unconfirmed[job_id] = present

    async def _give_up(self, job_ids: Iterable[str]) -> list[bool]:
        """Give up these jobs, each for itself; return for each whether that is done."""
        return await asyncio.gather(*(self._try_to_give_up(job_id) for job_id in job_ids))

    async def _try_to_give_up(self, job_id: str) -> bool:
        try:
            return await self.give_up(job_id)
        except CouchError as error:
            _logger.warning("claim not given up yet", job=job_id, reason=str(error))
        except Exception:
            _logger.exception("claim cannot be given up", job=job_id)
        return False

    async def give_up(self, job_id: str) -> bool:
        """Give up a job that does not run here, whatever its claim became; False where that must wait for others."""
        leaves = await self._store.database.leaves(job_id)
        if job_id in self._claims.held:  # from now on; what was read may be of that claim
            return True
        own = [leaf for leaf in leaves if is_claimed_by(leaf, self._daemon)]
        for leaf in own:
            if leaf is not leaves[0]:
                await self._withdraw(leaf)
        if own and own[0] is leaves[0]:
            if any(leaf not in own and leaf.get("state") != State.QUEUED for leaf in leaves):
                return False
            if await self._put_back(leaves[0], own):
                _logger.warning("put back a job that was claimed and does not run", job=job_id)
        self._claims.begun.pop(job_id, None)  # only now: until its end is stored, it must not go back as if it had not
        return True

    async def _withdraw(self, leaf: Document) -> None:
        """Delete a branch that loses.

        Raises:
            Unavailable: that must wait.
        """
        try:
            if await self._lost.ends.delete_leaf(leaf):
                _logger.info("claim withdrawn: it is a branch that loses", job=leaf["_id"])
        except Refused as error:
            _logger.warning("a claim cannot be withdrawn, and stays: it loses", job=leaf["_id"], reason=str(error))

    async def _put_back(self, leaf: Document, own: list[Document]) -> bool:
        """Give back the leaf that wins; `own`: all that this daemon has claimed, one of which may have begun to run."""
        job = self._store.read(leaf)
        claims = {claim.id for one in own if (claim := Job.read(one).claim) is not None}
        if self._claims.begun.get(job.id) not in claims and job.ending is None:
            return await self._lost.release(job)
        return await self._lost.take(job, f"daemon {self._daemon} could not store how its try has ended")
