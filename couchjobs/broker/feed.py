"""The changes feed of one database of jobs, page by page, at the pace of the workers. It is a hint: see `sweeper`.

The next page is asked for only when few candidates are ready, or after a short while, for cancellations; and not before
what follows from the last one, its claims say, has been answered. A job's three revisions are one row if nobody asks in
between, and CouchDB pays for each row: so there is one page a commit, large under load, at once at rest. When the
backlog is empty, the writer holds its next commit until that page is in, so that the claims from it go with that
commit. A page brings its documents along where most rows are likely to be jobs to claim; of a large page of other
daemons' jobs the rows alone are looked at, and not at once (see `unread`). Where a worker type has free slots and no
candidate, the feed is read at full pace, past whatever lies before its jobs. A daemon begins with the feed's beginning,
which needs no index; where the database is large, shortly before its end, and the view tells of the rest.
"""

from __future__ import annotations

import asyncio

from couchjobs.broker.lane import Lane
from couchjobs.broker.producer import Producer
from couchjobs.broker.sweeper import Sweeper
from couchjobs.couch.changes import ChangesFollower
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import sequence_number
from couchjobs.couch.identity import instance_of, purges_of, rows_of
from couchjobs.couch.positions import current_sequence, position_before
from couchjobs.errors import NotFound, PositionRefused
from couchjobs.installation import install
from couchjobs.log import get_logger

_logger = get_logger(__name__)
_LARGE_DATABASE = 100_000
"""Rows beyond which the views, built or not, are the quicker way to what is queued: some 4 s of the feed. Jobs that
were deleted are rows for ever."""
_NEWEST = 10_000
"""Rows of a large database that a daemon begins with: some 0.6 s, while the view may be built for minutes."""
_NEWEST_FIRST_S = 5.0
"""Seconds after which the view is to tell of older jobs, though the newest are not yet dealt with."""
_FIRST_SWEEP_S = 5.0
"""Seconds that are waited for the view, as it is, at the start in a large database."""
_PAGE = 500
"""Rows: CouchDB needs 30 ms for so many with their documents, and twice as many take 2 MB more and drain no faster."""
_SMALL_PAGE = 250
"""Rows that are asked for at least, however little room there is: most of a page may be nothing to claim."""
_LONGEST_PAUSE_S = 0.25
"""Seconds without a page at most, so that requests to cancel are seen while there are candidates enough."""
_STARVED_PAUSE_S = 0.1
"""The same where slots are free that have no candidate, while others have plenty."""
_OTHERS_PAUSE_S = 0.1
"""Seconds in which rows of other daemons' jobs gather, for a daemon that has found nothing else in a page."""
_MANY = 50
"""Rows of a page that are no jobs to claim beyond which, if they are half of it, documents are not brought along."""
_REWOUND = 2 * _PAGE
"""Rows that come again, beyond which they hold up new ones for long: after a change of the node, all may come."""
_REWOUND_S = 1.0
"""Seconds until the view is read then, at each such page."""
_LOOK_AGAIN_S = 1.0
"""Seconds between two looks for a database that does not exist."""


class JobsFeed:
    """Follows the changes of one lane. `follow` runs until it is cancelled.

    Args:
        connection: to the server.
        lane: the lane.
        producer: whom rows are handed to.
        sweeper: that of the lane, for what the feed does not show.
    """

    def __init__(self, connection: Connection, lane: Lane, producer: Producer, sweeper: Sweeper) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._lane = lane
        self._producer = producer
        self._sweeper = sweeper
        self._newest_first = False
        """Whether the newest rows are being dealt with, before the view tells what lies before them: it may have to be
        built, which takes the server's cores from what is known to be done."""

    async def follow(self) -> None:
        """Read the feed; a missing database is waited for."""
        missing = False
        while True:
            try:
                if self._lane.follower is None:
                    self._lane.follower = await self._begin()
                    if missing:
                        await install(self._connection, self._lane.store.db)
                    missing = False
                await self._read_pages(self._lane.follower)
            except PositionRefused as error:
                _logger.warning("the feed is read from its beginning", reason=str(error))
                missing, self._lane.follower = True, None
            except NotFound:
                if not missing:
                    _logger.warning("there is no database of jobs", database=self._lane.store.database.name)
                missing, self._lane.follower = True, None
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def has_more(self) -> bool:
        """Return whether there are rows that have not been dealt with."""
        return self._lane.follower is None or await self._lane.follower.has_more()

    async def _begin(self) -> ChangesFollower:
        database = self._lane.store.database
        info = await database.info()
        since = await self._newest() if rows_of(info) > _LARGE_DATABASE else "0"
        return ChangesFollower(
            database,
            since,
            heartbeat_s=self._settings.feed_heartbeat,
            leaves=True,
            instance=instance_of(info),
            purges=purges_of(info),
        )

    async def _newest(self) -> str:
        """Return where to begin in a large database: where the view, as it is, has many older jobs, they come first."""
        self._newest_first = True
        self._sweeper.sweep_by(_NEWEST_FIRST_S)
        await self._sweeper.has_swept.within(_FIRST_SWEEP_S)
        if self._lane.backlog.has_overflow:
            return await current_sequence(self._lane.store.database)
        return await position_before(self._lane.store.database, _NEWEST)

    async def _read_pages(self, follower: ChangesFollower) -> None:
        behind = documents = True
        writer, shown, furthest = self._lane.store.writer, "", sequence_number(follower.since)
        while True:
            limit = await self._until_wanted(behind)
            if writer.newest != shown and not self._lane.backlog.ready():
                shown = writer.newest
                writer.hold()  # the page comes at once, for it shows what was written here, and claims follow from it
            page = await follower.next_page(limit, documents=documents)
            if any(change.rev == writer.newest for change in page.changes):
                shown = writer.newest
            self._sweeper.note_views(change.doc_id for change in page.changes)
            looked_at, others = await self._producer.take_rows(self._lane, page.changes)
            follower.done(page)
            writer.release()
            rows, reached = len(page.changes), sequence_number(page.last_seq)
            if rows < limit:  # there are no further ones: copies that were away count otherwise for good
                furthest = reached
            elif reached < furthest - _REWOUND:
                self._sweeper.sweep_by(_REWOUND_S)  # what is new comes after all that comes again
            furthest = max(furthest, reached)
            too_large = documents and all(change.document is None for change in page.changes)
            self._lane.is_behind = behind = rows == limit
            documents = not too_large and rows - looked_at < max(_MANY, rows // 2)
            if self._newest_first and self._is_idle(behind=behind):
                self._newest_first = False
                self._sweeper.sweep_by(0.0)
            await writer.answered(_LONGEST_PAUSE_S)
            if others > _MANY and not looked_at and not behind:
                await asyncio.sleep(_OTHERS_PAUSE_S)

    def _is_idle(self, *, behind: bool) -> bool:
        """Return whether there is nothing that is known to be done."""
        return not (behind or self._lane.backlog.ready() or self._lane.backlog.has_reserve)

    async def _until_wanted(self, behind: bool) -> int:
        """Return, as soon as a page is wanted, of how many rows; `behind`: whether it is there already."""
        backlog, loop = self._lane.backlog, asyncio.get_running_loop()
        if not backlog.wants_more():
            starved = self._producer.spare_slots(self._lane) > 0
            deadline = loop.time() + (_STARVED_PAUSE_S if starved else _LONGEST_PAUSE_S)
            while not backlog.wants_more():
                left = deadline - loop.time()
                if (starved and behind) or left <= 0:
                    return _PAGE
                await self._lane.taken.within(left)
        return max(_SMALL_PAGE, min(_PAGE, self._settings.max_candidates - backlog.ready()))
