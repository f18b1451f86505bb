"""The payloads that a debounced webhook gathers in one job: a list, and beside it a random id of each.

By the ids, the lists of two branches of a document can be joined, again and again, without a payload twice. Where
somebody has changed the list, and the ids are no longer those of what is in it, the payloads themselves stand for their
ids: nothing that was acknowledged is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from couchjobs.couch.codec import encode
from couchjobs.couch.database import Document
from couchjobs.jobs.job import Changes

_IDS = "payload_ids"


def gathered(document: Document) -> dict[str, Any] | None:
    """Return the payloads of a job's document, by id, in their order; None where it has no list of them."""
    payload, ids = document.get("payload"), document.get(_IDS)
    payloads = payload.get("payloads") if isinstance(payload, dict) else None
    if not isinstance(payloads, list):
        return None
    if isinstance(ids, list) and len(ids) == len(payloads) == len(set(map(str, ids))):
        return dict(zip(map(str, ids), payloads, strict=True))
    alike: Counter[str] = Counter()
    found: dict[str, Any] = {}
    for one in payloads:
        name = sha256(encode(one)).hexdigest()[:16]
        alike[name] += 1
        found[f"{name}-{alike[name]}"] = one
    return found


def holds(document: Document, names: Iterable[str]) -> bool:
    """Return whether payloads with these ids have come into the document, whatever became of its list since."""
    ids = document.get(_IDS)
    return {*names} <= {*map(str, ids if isinstance(ids, list) else [])}


def as_changes(payloads: dict[str, Any], document: Document | None = None) -> Changes:
    """Return what makes a job hold these payloads, with what else its document has beside them."""
    beside = (document or {}).get("payload")
    return {
        "payload": {**(beside if isinstance(beside, dict) else {}), "payloads": [*payloads.values()]},
        _IDS: [*payloads],
    }


def missing(winner: Document, losers: Iterable[Document]) -> Changes | None:
    """Return what the winner must change to hold the payloads of other branches too, None for nothing."""
    present = gathered(winner)
    if present is None:
        return None
    joined = dict(present)
    for loser in losers:
        joined |= {name: payload for name, payload in (gathered(loser) or {}).items() if name not in joined}
    return as_changes(joined, winner) if len(joined) > len(present) else None
