"""Since when this process has watched the clock without a break.

A laptop that sleeps, a process that is stopped, a clock that is set: what comes in such a break was missed. Ticks that
come while CouchDB takes nothing are late, but somebody watched.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from couchjobs.timestamps import now

_BREAK = timedelta(seconds=5)
_PULSE_S = 1.0
"""So late is a clock that was set back noticed."""


class Attention:
    """Notices breaks, by looking at the clock each second."""

    def __init__(self) -> None:
        self.since = now()
        """The end of the last break, or the start."""
        self._looked = self.since
        self.steps_back = 0
        """How often the clock was set back."""

    def look(self, present: datetime) -> None:
        """Take note of the time."""
        gap = present - self._looked
        self._looked = present
        if abs(gap) > _BREAK:
            self.since = present
        self.steps_back += gap < -_BREAK

    async def watch(self) -> None:
        """Look at the clock for ever."""
        while True:
            await asyncio.sleep(_PULSE_S)
            if now() >= self._looked:  # a clock that was set back is noticed by who asks
                self.look(now())
