"""Running jobs that name no daemon: somebody else wrote them so, and nobody would ever end them.

One whose claim cannot be read has lost its worker as soon as two looks, a sweep apart, find it unchanged. One without
any claim may be that of another engine, on whose databases couchjobs works too: it has a day, from its start.
"""

from __future__ import annotations

from datetime import timedelta

from couchjobs.couch.database import Document
from couchjobs.errors import CouchError
from couchjobs.jobs.job import CLIENT_WORKER, Job, State
from couchjobs.log import get_logger
from couchjobs.recovery.lost import LostJobs
from couchjobs.timestamps import now

_logger = get_logger(__name__)
_OTHERS_HAVE = timedelta(days=1)
_LONGEST_NAME = 200
"""Characters of a daemon's name that the view `queue/claimed` shows."""


class UnnamedClaims:
    """Those of one database of jobs. `lost`: what becomes of them; it knows the jobs."""

    def __init__(self, lost: LostJobs) -> None:
        self._store = lost.store
        self._lost = lost
        self._seen: dict[str, str] = {}

    async def rescue(self) -> int:
        """Look once more, and put back what was there, unchanged, at the last look; return how many jobs that were."""
        seen: dict[str, str] = {}
        rescued = 0
        async for rows in self._store.database.view_pages("queue/claimed", [None], [None, {}]):
            for one in await self._store.database.read(row["id"] for row in rows):
                if one.document is not None:
                    seen[one.doc_id] = one.document["_rev"]
                    if self._seen.get(one.doc_id) == one.document["_rev"]:
                        rescued += await self._take(one.document)
        self._seen = seen
        return rescued

    async def _take(self, document: Document) -> bool:
        """Take one job, if it is nobody's; return whether it was."""
        try:
            job = self._store.read(document)
            if not _is_nobodys(job) or not await self._lost.take(job):
                return False
        except CouchError as error:
            _logger.warning("job that names no daemon not rescued yet", job=document["_id"], reason=str(error))
            return False
        except Exception:  # no document may stop the others
            _logger.exception("job that names no daemon cannot be rescued", job=document["_id"])
            return False
        _logger.warning("a running job that named no daemon is rescued", job=document["_id"])
        return True


def _is_nobodys(job: Job) -> bool:
    """Return whether it runs, nobody can be known to run it, and neither a client nor another engine may."""
    if job.state is not State.RUNNING or job.worker == CLIENT_WORKER:
        return False
    if job.document().get("claim") is not None:
        return job.claim is None or len(job.claim.daemon) > _LONGEST_NAME
    return job.started_at is None or abs(now() - job.started_at) > _OTHERS_HAVE
