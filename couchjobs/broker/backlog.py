"""Queued jobs of one database that this daemon knows of and may claim: a bounded look ahead, never the whole queue.

A candidate is ready (it may be claimed now), or due later, or left to the daemon that it is assigned to, in whose
partition it is. What that has not claimed after a delay counts as abandoned, and is taken over by slots that have
nothing else to do, by each of them at most once in every such delay: a daemon that is full or stuck gets help, one that
is merely slower keeps its partition. Nothing here touches the network, and the present is an argument: `scheduled_at`
is compared with the clock that people set, delays with the one that nobody sets.

`next_in` and `take` answer from the same state: where the one says 0, the other yields something at that moment; where
it says a time, then; where it says None, nothing can be taken before something else is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from couchjobs.broker.type_queue import Candidate, TypeQueue
from couchjobs.timestamps import Moment

_ROOM_FOR_PRIORITY = 2
"""Times as many of higher priority than usual find a place as of the others."""
_ROOM_TO_SORT = 2
"""Times as many as may wait are collected before the latest are dropped: sorting costs, and is to be seldom."""


class Backlog:
    """The candidates of all worker types of one database.

    Args:
        slots: how many jobs of each worker type run at once.
        most: how many of each type are ready at most; about as many are not.
        delay_s: how long a job is left to the daemon that it is assigned to.
        strict: the worker types whose candidates are taken by priority alone.
    """

    def __init__(self, slots: Mapping[str, int], most: int, delay_s: float = 0.0, strict: Collection[str] = ()) -> None:
        self._known: dict[str, Candidate] = {}
        self._queues = {name: TypeQueue(name, self._known, count, most, delay_s) for name, count in slots.items()}
        for name in strict:
            self._queues[name].strict = True
        self._most = most

    def offer(self, one: Candidate, now: Moment) -> None:
        """Add a candidate, or replace what was known of that job.

        Where there are too many, its id alone is kept in reserve (see `take_reserve`), or it is noted from when on it
        may be claimed (see `overflowed`). One of higher priority still finds a place; of those that are not ready, the
        earliest do. What comes later does not come before what is in reserve.
        """
        self.forget(one.job_id)
        queue = self._queues[one.worker]
        most = self._most if one.priority <= 0 else self._most * _ROOM_FOR_PRIORITY
        is_ready = one.assigned and one.not_before <= now.wall
        if is_ready and (queue.ready >= most or queue.comes_after_others(one, now)):
            queue.keep_in_reserve(one, now)
            return
        if not is_ready:
            one.job = None
        queue.add(one, now)
        if queue.unready > _ROOM_TO_SORT * most:
            queue.overflow_latest(most)

    def forget(self, job_id: str) -> None:
        """Drop what is known of that job."""
        one = self._known.get(job_id)
        if one is not None:
            self._queues[one.worker].remove(one)

    def reassign(self, has: Callable[[str, str], bool], now: Moment) -> None:
        """Leave to others no longer what `has(job id, worker type)` says to be in this daemon's partition by now."""
        for one in [one for one in self._known.values() if not one.assigned and has(one.job_id, one.worker)]:
            one.assigned = True
            self._queues[one.worker].again(one, now)

    def __contains__(self, job_id: str) -> bool:
        """Return whether that job is a candidate, in whatever revision."""
        return job_id in self._known

    def knows(self, job_id: str, rev: str) -> bool:
        """Return whether that very revision is a candidate."""
        one = self._known.get(job_id)
        return one is not None and one.rev == rev

    def take(self, worker_type: str, count: int, now: Moment) -> list[Candidate]:
        """Remove and return at most `count` candidates: two of three by priority, one of three the oldest.

        Where none of them is left, those that other daemons have abandoned.
        """
        queue = self._queues[worker_type]
        queue.ripen(now)
        taken: list[Candidate] = []
        while len(taken) < count and (one := queue.pop_ready() or queue.pop_abandoned(now)) is not None:
            taken.append(one)
        return taken

    def next_in(self, worker_types: Iterable[str], now: Moment) -> float | None:
        """Return in how many seconds a candidate of these types can be taken; None: something must happen first."""
        waits = [
            wait
            for name in worker_types
            if (queue := self._queues.get(name)) is not None and (wait := queue.next_in(now)) is not None
        ]
        return min(waits, default=None)

    def known(self, worker_type: str) -> int:
        """Return how many candidates of that type there are, ready or not."""
        return self._queues[worker_type].ready + self._queues[worker_type].unready

    def runnable(self, worker_type: str) -> int:
        """Return how many candidates of that type wait for no time of their own: other daemons' are among them."""
        return self._queues[worker_type].ready + self._queues[worker_type].others

    def ready(self, worker_type: str | None = None) -> int:
        """Return how many candidates are ready, of that type or of all."""
        return sum(queue.ready for name, queue in self._queues.items() if worker_type in (None, name))

    def __bool__(self) -> bool:
        """Return whether there is any candidate."""
        return bool(self._known)

    @property
    def is_quiet(self) -> bool:
        """Return whether all candidates wait for their time, and all that there may be are known."""
        others = self.has_overflow or self.has_reserve
        return not others and all(one.waits_for_its_time for one in self._known.values())

    @property
    def has_overflow(self) -> bool:
        """Return whether there are, or will be, jobs to claim of which nothing is known."""
        return any(queue.overflow_from is not None for queue in self._queues.values())

    @property
    def has_reserve(self) -> bool:
        """Return whether there are ready jobs of which the ids alone are known."""
        return any(queue.reserve for queue in self._queues.values())

    def wants_more(self) -> bool:
        """Return whether nothing is ready, or of some type little: fewer than its slots could take at once.

        What is in reserve comes first.
        """
        queues = self._queues.values()
        return not any(queue.ready or queue.reserve for queue in queues) or any(
            0 < queue.ready < queue.low and not queue.reserve for queue in queues
        )

    def note_overflow(self, worker_type: str, not_before: float) -> None:
        """Note that queued jobs of that type are no candidates, and from when on they may be claimed."""
        self._queues[worker_type].note_overflow(not_before)

    def keep_in_reserve(self, worker_type: str, ids: Iterable[str]) -> bool:
        """Keep the ids of ready jobs that the view has shown, in its order; return whether there was room for all."""
        queue = self._queues[worker_type]
        if queue.strict:
            return False
        return all(queue.reserve.add(job_id, before_others=False) for job_id in ids if job_id not in self._known)

    def take_reserve(self) -> list[str]:
        """Remove and return ids from the reserve of the types of which few are ready: they are to be read again."""
        return [job_id for queue in self._queues.values() for job_id in queue.take_reserve(self._most)]

    def wants_reserve(self) -> bool:
        """Return whether `take_reserve` yields any."""
        return any(queue.reserve and queue.ready < queue.low for queue in self._queues.values())

    def overflow_in(self, now: Moment) -> float | None:
        """Return in how many seconds `overflowed` names a type, by what is ready now; None: not at all."""
        waits = [wait for queue in self._queues.values() if (wait := queue.overflow_in(now)) is not None]
        return min(waits, default=None)

    def overflowed(self, now: Moment) -> list[str]:
        """Return the types with jobs that are not known and may be claimed by now, and few ready; forget the notes."""
        types = [name for name, queue in self._queues.items() if queue.overflow_in(now) == 0]
        for name in types:
            self._queues[name].overflow_from = None
        return types
