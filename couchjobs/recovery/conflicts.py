"""Jobs in conflict: of all leaves of a document the one that counts stays, and the others are deleted.

A leaf counts by how far the job has come on it: done, errored, running, queued; of two alike, the one that CouchDB
prefers. That order depends on nothing but the leaves, so that all daemons agree, whatever they see: a leaf is deleted
only beside one that counts more, hence never the last of them. A running leaf whose daemon is not dead is left to it,
for it may be the owner: it ends or withdraws by itself. What a leaf of a job that has not ended yet holds alone is
carried over: payloads of a debounced webhook, and a request to cancel.

Conflicts come from clusters that take two writes, and from clients that edit offline and sync.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from couchjobs.cluster.peers import Peers
from couchjobs.couch.answers import leaf_rank
from couchjobs.couch.database import Document
from couchjobs.errors import CouchError, Refused
from couchjobs.jobs.ends import Ends
from couchjobs.jobs.job import ENDED, Job, State
from couchjobs.jobs.payloads import missing
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger

_logger = get_logger(__name__)
CONFLICTS = 500
"""Jobs in conflict that one look takes."""
_ORDER = (State.QUEUED, State.RUNNING, State.ERRORED, State.DONE)


async def conflicted(store: JobStore, after: str | None = None) -> list[str]:
    """Return the ids of jobs in conflict behind that one, as the index knows them: 500, or all that are left."""
    rows = await store.database.view("queue/conflicts", after, {}, limit=CONFLICTS + 1)
    return [row["id"] for row in rows if row["id"] != after][:CONFLICTS]


async def settle_conflicts(ends: Ends, peers: Peers, job_ids: Iterable[str]) -> int:
    """Settle what can be settled of these jobs; return how many of them are in conflict no longer."""
    settled = 0
    for job_id in job_ids:
        try:
            settled += await settle_conflict(ends, peers, job_id)
        except CouchError as error:
            _logger.warning("conflict not settled yet", job=job_id, reason=str(error))
    return settled


async def settle_conflict(ends: Ends, peers: Peers, job_id: str) -> bool:
    """Settle what can be settled of one job; return whether it is in conflict no longer.

    Raises:
        CouchError: CouchDB does not answer, or does not take it.
    """
    leaves = await ends.database.leaves(job_id)
    if len(leaves) < 2:
        return True
    best = max(leaves, key=_rank)
    others = [leaf for leaf in leaves if leaf is not best]
    if best.get("state") not in ENDED:
        others = [leaf for leaf in others if not is_run(leaf, peers)]
        if (more := _to_carry_over(best, others)) and not await ends.change_leaf(best, **more):
            return False
    settled = len(others) == len(leaves) - 1
    for leaf in others:
        try:
            settled = await ends.delete_leaf(leaf) and settled
        except Refused as error:  # it stays: the job goes on only where that loses in CouchDB, too
            settled = settled and leaf is not leaves[0]
            _logger.warning("a branch of a job cannot be deleted", job=job_id, rev=leaf["_rev"], reason=str(error))
    if settled:
        _logger.info("conflict settled", job=job_id, kept=best["_rev"])
    return settled


def _rank(leaf: Document) -> tuple[int, tuple[int, str]]:
    state = leaf.get("state")
    return (_ORDER.index(State(state)) if state in list(State) else -1), leaf_rank(leaf)


def is_run(leaf: Document, peers: Peers) -> bool:
    """Return whether a daemon that is not dead runs the job on this branch."""
    claim = Job.read(leaf).claim
    return leaf.get("state") == State.RUNNING and claim is not None and not peers.is_dead(claim.daemon)


def _to_carry_over(best: Document, others: list[Document]) -> dict[str, Any]:
    """Return the fields of a leaf whose job has not ended that it must take over from others; none for nothing."""
    more: dict[str, Any] = {}
    if best.get("state") == State.QUEUED:
        more |= missing(best, others) or {}
    if not Job.read(best).cancel_requested and any(Job.read(leaf).cancel_requested for leaf in others):
        more["cancel_requested"] = True
    return more
