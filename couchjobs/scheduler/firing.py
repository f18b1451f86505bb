"""Storing the job of one firing, whatever made it fire.

A firing is done with where its job is stored, and where it never can be: a hook refuses it, which the log tells; no
daemon could run it, or CouchDB never takes its document, and a small errored job in its place says why (of one that is
debounced, the log). It must hold up neither a feed nor a clock. Whatever else happens says nothing about the job, and
is the caller's to try again; he moves no checkpoint, no tick and no window meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from couchjobs.broker.couch import CouchBroker
from couchjobs.errors import BadDocumentError, CouchError, NotFound, QueueClosedError, Refused, Unavailable
from couchjobs.jobs.job import Job
from couchjobs.log import get_logger
from couchjobs.scheduler.debounce import Debouncer
from couchjobs.triggers.infos import TriggerInfos

_logger = get_logger(__name__)


class Firing:
    """Fires the triggers of one tenant into one broker."""

    def __init__(self, broker: CouchBroker, debouncer: Debouncer) -> None:
        self._broker = broker
        self._debouncer = debouncer

    async def fire(self, infos: TriggerInfos, make_job: Callable[[], Job], makers: Collection[str] = ()) -> None:
        """Store the job that `make_job` makes, or join the open window of a debounced trigger.

        `makers`: the triggers that made the job whose change this is a firing by, and those before it.

        Raises:
            CouchError: CouchDB does not take it now, or has no database of jobs.
            QueueClosedError: the broker is shut down.
        """
        job: Job | None = None
        try:
            if infos.debounce:
                await self._debouncer.fire(infos, makers=makers)
            else:
                job = make_job()
                await self._broker.pusher.store(job)
        except (Refused, BadDocumentError) as error:
            _logger.error("a firing makes no job, and never can", trigger=infos.id, reason=str(error))  # noqa: TRY400
            if job is not None:
                await self._broker.store_refused(job, str(error))
        except NotFound as error:
            raise Unavailable(str(error), 404) from error
        except (CouchError, QueueClosedError):
            raise
        except Exception:  # a hook refuses it, or what the trigger holds makes no job
            _logger.exception("a firing makes no job, and never can", trigger=infos.id)
