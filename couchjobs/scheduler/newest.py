"""The newest changes of a database whose feed gives old rows again, read beside the reader that goes through those.

After a node has gone, or a shard has moved, a feed may begin anew: a million rows take it a minute, and what changes
meanwhile comes after all of them. So a second feed, from shortly before the present, is read until the first one has
caught up. What has gone by is known (see seen): a row that both of them bring is news once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from couchjobs.couch.changes import ChangesFollower, Page
from couchjobs.couch.database import Database
from couchjobs.couch.positions import position_before
from couchjobs.supervisor import Supervisor

_ROWS = 1000
"""Before the present: what came after the last page, and before it is noticed that old rows come again."""


class NewestChanges:
    """Of one database.

    Args:
        database: the database.
        heartbeat_s: seconds between two signs of life of a feed that waits.
        fire: does what is to be done with a page; where it raises, the page comes again.
    """

    def __init__(self, database: Database, heartbeat_s: float, fire: Callable[[Page], Awaitable[object]]) -> None:
        self._database = database
        self._heartbeat_s = heartbeat_s
        self._fire = fire
        self._tasks = Supervisor()
        self.are_read = False

    def begin(self) -> None:
        """Read them from now on."""
        if not self.are_read:
            self.are_read = True
            self._tasks.start(f"read the newest of {self._database.name}", self._read)

    async def stop(self) -> None:
        """Read them no longer: the first feed has caught up, or is not read either."""
        self.are_read = False
        await self._tasks.stop()

    async def _read(self) -> None:
        since = await position_before(self._database, _ROWS)
        follower = ChangesFollower(self._database, since, heartbeat_s=self._heartbeat_s)
        while True:
            page = await follower.next_page()
            await self._fire(page)
            follower.done(page)
