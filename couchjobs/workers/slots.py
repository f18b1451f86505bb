"""The slots of one daemon: how many jobs of each worker type, and of all types together, run at once."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Any

from couchjobs.log import get_logger
from couchjobs.waits import Signal
from couchjobs.workers.config import WorkersList
from couchjobs.workers.processes import Processes

_logger = get_logger(__name__)
_RESERVED = 10
"""One of so many slots of a type is kept for a tenant that has none of them."""
_HUNG_AFTER_S = 10.0
"""Seconds after its time for which a plain function may go on before that is told: some only clean up."""


class Slots:
    """The slots of one daemon, in all its processes.

    Args:
        workers: the worker types.
        processes: what runs them, each with `concurrency` slots of each type.
        most: how many jobs of all types run at once; None: no limit but that.
        shared: whether many tenants share them: a tenth of those of a type is then kept for one that uses none.
    """

    def __init__(
        self, workers: WorkersList, processes: Processes, most: int | None = None, *, shared: bool = False
    ) -> None:
        self.news = Signal()
        """Set when there may be something to start: a slot is free again; by others, when there is a candidate."""
        self._processes = processes
        self._concurrency = {config.worker_type: config.concurrency for config in workers}
        self._used: Counter[str] = Counter()
        self._hung: Counter[str] = Counter()
        self.count = processes.count * sum(self._concurrency.values())
        self._room = sys.maxsize if most is None else most
        self._most = self._room
        self._shared = shared
        processes.listeners.append(self.news.set)

    def free(self, used: int) -> dict[str, int]:
        """Return how many more jobs of each type may be claimed now: none where there is no process to run them.

        `used`: how many slots the tenant has that asks.
        """
        processes, room = self._processes.living(), self.room_for(used)
        if not processes or room <= 0:
            return {}
        found = {}
        for name, count in self._concurrency.items():
            free = self._unreserved(processes * count - self._used[name], processes * count, used)
            if free > 0:
                found[name] = min(free, room)
        return found

    def room_for(self, used: int) -> int:
        """Return for how many more jobs there is room, whatever their type."""
        return self._unreserved(self._room, self._most, used)

    def _unreserved(self, free: int, most: int, used: int) -> int:
        """Return how many of these are not kept for others; who runs nothing may always take one that is free."""
        if not self._shared:
            return free
        kept = free - most // _RESERVED
        return kept if used else max(kept, min(free, 1))

    def take(self, worker_type: str) -> Slot:
        """Take one, free or not."""
        self._used[worker_type] += 1
        self._room -= 1
        return Slot(self, worker_type)

    def give_back(self, worker_type: str) -> None:
        """Take note that one is free again."""
        self._used[worker_type] -= 1
        self._room += 1
        self.news.set()

    def tell_of_hung(self, worker_type: str, function: asyncio.Future[Any]) -> None:
        """Say in the log that a function holds a slot after its time."""
        if function.done() or self._processes.are_children:
            return
        self._hung[worker_type] += 1
        function.add_done_callback(lambda _: self._hung.subtract([worker_type]))
        _logger.error(
            "functions do not end after their time, and hold slots: look at ctx.cancelled, or use --processes",
            worker=worker_type,
            slots_held=self._hung[worker_type],
            slots=self._concurrency[worker_type],
        )


class Slot:
    """One slot, taken by one job until it is given back."""

    def __init__(self, slots: Slots, worker_type: str) -> None:
        self._slots = slots
        self._worker_type = worker_type
        self._is_free = False

    def free(self, function: asyncio.Future[Any] | None) -> None:
        """Give the slot back, once, as soon as the function has ended that outlives its try; None: there is none."""
        if self._is_free:
            return
        self._is_free = True
        if function is None or function.done():
            self._slots.give_back(self._worker_type)
            return
        function.add_done_callback(lambda _: self._slots.give_back(self._worker_type))
        asyncio.get_running_loop().call_later(_HUNG_AFTER_S, self._slots.tell_of_hung, self._worker_type, function)
