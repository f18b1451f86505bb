"""The payloads that a debounced webhook gathers in one job: a list, and beside it a random id of each.

By the ids, the lists of two branches of a document can be joined, again and again, without a payload twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from couchjobs.couch.database import Document
from couchjobs.jobs.job import Changes

_IDS = "payload_ids"


def gathered(document: Document) -> dict[str, Any]:
    """Return the payloads of a job's document, by id, in their order; payloads that have no id are left out."""
    payload, ids = document.get("payload"), document.get(_IDS)
    payloads = payload.get("payloads") if isinstance(payload, dict) else None
    if not isinstance(payloads, list) or not isinstance(ids, list) or len(ids) != len(payloads):
        return {}
    return dict(zip(map(str, ids), payloads, strict=True))


def as_changes(payloads: dict[str, Any]) -> Changes:
    """Return what makes a job hold these payloads."""
    return {"payload": {"payloads": [*payloads.values()]}, _IDS: [*payloads]}


def missing(winner: Document, losers: Iterable[Document]) -> Changes | None:
    """Return what the winner must change to hold the payloads of other branches too, None for nothing."""
    present = gathered(winner)
    joined = dict(present)
    for loser in losers:
        joined = joined | {name: payload for name, payload in gathered(loser).items() if name not in joined}
    return as_changes(joined) if len(joined) > len(present) else None
