"""What every scheduler can do."""

from __future__ import annotations

from typing import Protocol, TypeVar

from couchjobs.broker.protocol import Broker
from couchjobs.prefixer import Prefixer
from couchjobs.triggers.infos import TriggerInfos

BrokerT_contra = TypeVar("BrokerT_contra", bound=Broker, contravariant=True)


class Scheduler(Protocol[BrokerT_contra]):
    """Fires triggers into a broker of the kind that it is made for: CouchDB's into CouchDB, memory's into memory."""

    async def start_scheduler(self, broker: BrokerT_contra) -> None:
        """Begin to fire.

        Raises:
            ClosedError: the scheduler runs already.
        """

    async def shutdown_scheduler(self) -> None:
        """Fire nothing more.

        Raises:
            ClosedError: the scheduler does not run.
        """

    async def add_trigger(self, db: Prefixer, infos: TriggerInfos) -> TriggerInfos:
        """Store a trigger and return it as it was stored.

        Raises:
            UnknownTriggerError: its type is not known.
            MalformedTriggerError: its arguments cannot be parsed.
        """

    async def get_trigger(self, db: Prefixer, trigger_id: str) -> TriggerInfos:
        """Return the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """

    async def delete_trigger(self, db: Prefixer, trigger_id: str) -> None:
        """Delete the trigger.

        Raises:
            TriggerNotFoundError: there is none with that id.
        """

    async def get_all_triggers(self, db: Prefixer) -> list[TriggerInfos]:
        """Return all triggers that can be read, ordered by id."""
