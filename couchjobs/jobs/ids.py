"""Ids of jobs: ordered by time, for CouchDB's b-tree; the same for the same firing, whoever fires it.

Nobody parses them: which trigger fired is in `trigger_id`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import uuid
from datetime import datetime

_LONGEST_NAME = 200
"""Characters of an id that is told in others; what tells it apart is the digest beside it."""
_PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$")


def new_id() -> str:
    """Return a fresh UUIDv7. Ids of one process come in order. Source: RFC 9562, 5.7 and 6.2 (method 3)."""
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    return _uuid7(milliseconds, rest * 4096 // 1_000_000, secrets.randbits(62))


def tick_id(trigger_id: str, tick: datetime) -> str:
    """Return the id of the job of one tick: in the form of a UUIDv7 of the tick's time, the rest a digest."""
    milliseconds = int(tick.timestamp() * 1000)
    digest = int.from_bytes(hashlib.sha256(f"{trigger_id}\0{tick.isoformat()}".encode()).digest()[:10])
    return _uuid7(milliseconds, digest >> 68, digest)


def latest_id(time: datetime) -> str:
    """Return the id that follows all those that `new_id` and `tick_id` give until then."""
    return _uuid7(int(time.timestamp() * 1000), -1, -1)


def event_id(doctype: str, doc_id: str, rev: str, trigger_id: str) -> str:
    """Return the id of the job of one event: the document's id first, so that it inherits the order of the source."""
    name = (
        doc_id
        if _PLAIN.match(doc_id)
        else "x" + hashlib.sha256(doc_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    )
    digest = hashlib.sha256(f"{doctype}\0{trigger_id}".encode()).hexdigest()[:16]
    return f"{name}:{rev}:{digest}"


def follower_id(job_id: str, worker_type: str, key: str) -> str:
    """Return the id of a job that another one pushes, the same at each of its tries."""
    name = job_id[:_LONGEST_NAME]
    told = f"{worker_type}\0{key}\0{job_id}".encode("utf-8", "surrogatepass")
    return f"{name}:{hashlib.sha256(told).hexdigest()[:16]}"


def window_id(trigger_id: str, before: str) -> str:
    """Return the beginning of the id of the job of a debounce window, which replaces the one of that revision."""
    return hashlib.sha256(f"{trigger_id}\0{before}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _uuid7(milliseconds: int, high: int, low: int) -> str:
    number = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | (high & 0xFFF) << 64 | 0b10 << 62 | (low & (2**62 - 1))
    return str(uuid.UUID(int=number))


def job_in(database: str, job_id: str) -> str:
    """Return how errors name a job: whoever wrote it may have chosen a long id."""
    return f"job {job_id[:100]} in database {database}"
