"""Storing the job of one firing, whatever made it fire.

A firing whose job can never be stored (a hook refuses it, it is too large) is logged and left behind: it must hold up
neither a feed nor a clock. One that cannot be stored now is the caller's to try again.
"""

from __future__ import annotations

from collections.abc import Callable

from couchjobs.broker.couch import CouchBroker
from couchjobs.errors import NotFound, QueueClosedError, Unauthorized, Unavailable
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

    async def fire(self, infos: TriggerInfos, make_job: Callable[[], Job]) -> None:
        """Store the job that `make_job` makes, or join the open window of a debounced trigger.

        Raises:
            Unavailable: CouchDB does not take it now, or has no database of jobs.
            Unauthorized: CouchDB does not accept the credentials now.
            QueueClosedError: the broker is shut down.
        """
        try:
            if infos.debounce:
                await self._debouncer.fire(infos)
            else:
                await self._broker.store_job(make_job())
        except NotFound as error:
            raise Unavailable(str(error), 404) from error
        except (Unavailable, Unauthorized, QueueClosedError):
            raise
        except Exception as error:  # a hook, a document or a refusal: the next firing may be another matter
            _logger.exception("trigger makes a job that cannot be stored", trigger=infos.id, reason=str(error))
