"""How long the rules of one trigger may take for one document: they are asked in the event loop of a daemon.

A regular expression of a hundred letters takes longer than the world lasts for some texts, and an `$elemMatch` asks its
question of each element of a list, whoever has written that. Whoever asks all rules of a trigger limits it, and what
may take long checks now and then.
"""

from __future__ import annotations

import threading
import time
from math import inf

from couchjobs.errors import CouchjobsError

LONGEST_S = 0.5
"""Seconds of the processor for all rules together: those in which the process stands still do not count.

A list of 100,000 elements, each asked two things, takes 0.3 s.
"""
_STEPS = 50
"""Steps of some microseconds between two looks at the clock."""


class TakesTooLongError(CouchjobsError):
    """The rules of a trigger take longer than `LONGEST_S` for a document."""


class _Effort(threading.local):
    """That of this thread. As a context manager: what is done within is limited."""

    _until = inf
    _left = _STEPS

    def __enter__(self) -> None:
        self._until, self._left = time.thread_time() + LONGEST_S, _STEPS

    def __exit__(self, *_: object) -> None:
        self._until = inf

    def step(self) -> None:
        """Take note of a short step.

        Raises:
            TakesTooLongError: it was one too many.
        """
        self._left -= 1
        if self._left <= 0:
            self._left = _STEPS
            self.left_s()

    def left_s(self) -> float:
        """Return how many seconds are left; infinite where nobody limits it.

        Raises:
            TakesTooLongError: none.
        """
        left = self._until - time.thread_time()
        if left <= 0:
            raise TakesTooLongError(f"its rules take longer than {LONGEST_S:g} s for this document")
        return left


effort = _Effort()
