"""Reads jobs of one database again of which this daemon keeps nothing but the id: see `unread`, and `Reserve`.

It waits for no view: that may be built for minutes, while there are jobs to run.
"""

from __future__ import annotations

from couchjobs.broker.lane import Lane
from couchjobs.broker.producer import Producer
from couchjobs.timestamps import moment

_ROWS_PAUSE_S = 0.1
"""Seconds between two looks at what other daemons have left: most of it they have claimed by then."""
_BEHIND_PAUSE_S = 1.0
"""The same while rows of the feed wait to be looked at, which say of most jobs that they have been claimed."""
_ROWS = 200
"""Rows of a look, whatever the number of slots: most may be of jobs that are done, and 10,000 of them are to be passed
within seconds. CouchDB needs 8 ms for so many."""
_BEHIND_ROWS = 50
"""The same while rows of the feed wait to be looked at."""
_LOOK_AGAIN_S = 1.0
"""Seconds until what could not be read is asked for again."""


class Reader:
    """Reads jobs of one lane again. `run` goes on until it is cancelled.

    Args:
        lane: the lane.
        producer: who looks at the documents.
    """

    def __init__(self, lane: Lane, producer: Producer) -> None:
        self._lane = lane
        self._producer = producer
        self._rows_read_at = 0.0

    async def run(self) -> None:
        """Read what is to be read, whenever it is time for it."""
        while True:
            await self._read()
            await self._lane.to_read.within(self._next_in())

    async def _read(self) -> None:
        present, rows = moment(), 0
        if present.monotonic - self._rows_read_at >= self._pause_s:
            rows = self._rows
            self._rows_read_at = present.monotonic
        reserve = self._lane.backlog.take_reserve()
        ids = dict.fromkeys([*self._lane.unread.take(rows, present.monotonic), *reserve])
        try:
            await self._producer.read(self._lane, ids)
        except BaseException:  # also where it is cut off
            for job_id in ids:
                self._lane.read_again(job_id, _LOOK_AGAIN_S)
            raise
        self._lane.unread.judge(self._lane.backlog.__contains__)

    @property
    def _pause_s(self) -> float:
        return _BEHIND_PAUSE_S if self._lane.is_behind else _ROWS_PAUSE_S

    @property
    def _rows(self) -> int:
        """Return how many rows a look takes now; none where enough is known for each slot that is free."""
        if not self._producer.may_help(self._lane):
            return 0
        return _BEHIND_ROWS if self._lane.is_behind else _ROWS

    def _next_in(self) -> float | None:
        """Return in how many seconds there is something to read, unless something happens before."""
        if self._lane.backlog.wants_reserve():
            return 0.0
        present, unread, waits = moment().monotonic, self._lane.unread, list[float]()
        if (again_in := unread.next_in(0, present)) is not None:
            waits.append(again_in)
        if (rows_in := unread.next_in(self._rows, present)) is not None:
            waits.append(max(rows_in, self._rows_read_at + self._pause_s - present))
        return max(0.0, min(waits)) if waits else None
