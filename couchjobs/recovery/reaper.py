"""Conflicted job documents of a cluster: the branch that counts wins, and the losing leaves are deleted.

A leaf counts more that has ended, or that a living daemon runs: an ended one is extended until it wins; a running one
wins by its owner's next write, and is waited for. Payloads that a losing leaf of a queued job holds alone are kept. The
winner, as CouchDB itself determines it, is never deleted, so
that of all leaves, whoever else deletes some at the same time, one stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from couchjobs.couch.database import generation
from couchjobs.couch.settle import settle
from couchjobs.jobs.job import ENDED, Job, State
from couchjobs.jobs.payloads import missing
from couchjobs.jobs.store import JobStore
from couchjobs.log import get_logger
from couchjobs.recovery.peers import Peers

if TYPE_CHECKING:
    from couchjobs.couch.database import Document

_logger = get_logger(__name__)
_PAGE = 500
_MOST_EXTENSIONS = 20


async def conflicted(store: JobStore) -> list[str]:
    """Return the ids of jobs in conflict, as the index knows them; at most 500."""
    return [row["id"] for row in await store.database.view("queue/conflicts", None, {}, limit=_PAGE)]


async def reap(store: JobStore, peers: Peers, job_ids: Iterable[str]) -> int:
    """Settle what can be settled of these jobs; return how many of them are in conflict no longer."""
    settled = 0
    for job_id in job_ids:
        if await _settle(store, peers, job_id):
            _logger.info("conflict settled", job=job_id)
            settled += 1
    return settled


async def _settle(store: JobStore, peers: Peers, job_id: str) -> bool:
    leaves = [leaf for leaf in await store.database.leaves(job_id) if not leaf.get("_deleted")]
    winner = await store.database.find(job_id)
    losers = [leaf for leaf in leaves if winner is not None and leaf["_rev"] != winner["_rev"]]
    if winner is None or len(losers) != len(leaves) - 1:
        return False  # the copies do not agree yet
    if any(_is_run(leaf, peers) for leaf in losers):
        return False
    ended = [leaf for leaf in losers if leaf.get("state") in ENDED]
    if ended and winner.get("state") not in ENDED:
        if _is_run(winner, peers) or not await _extend(store, ended[0], winner):
            return False
        losers = [winner, *(leaf for leaf in losers if leaf is not ended[0])]
    elif winner.get("state") == State.QUEUED and (more := missing(winner, losers)) is not None:
        answer = await settle(store.writer, {**winner, **more})
        if not answer.stored:
            return False
    for leaf in losers:
        await settle(store.writer, {"_id": job_id, "_rev": leaf["_rev"], "_deleted": True})
    return True


def _is_run(leaf: Document, peers: Peers) -> bool:
    """Return whether a daemon that is not dead runs the job on this branch."""
    claim = Job.read(leaf).claim
    return leaf.get("state") == State.RUNNING and claim is not None and not peers.is_dead(claim.daemon)


async def _extend(store: JobStore, leaf: Document, winner: Document) -> bool:
    """Write the leaf again, as it is, until its branch is longer than the winner's."""
    document = dict(leaf)
    for _ in range(_MOST_EXTENSIONS):
        answer = await settle(store.writer, document)
        if not answer.stored:
            return False
        document["_rev"] = answer.rev
        if generation(answer.rev) > generation(winner["_rev"]):
            return True
    return False
