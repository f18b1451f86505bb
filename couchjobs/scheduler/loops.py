"""Triggers that fire again and again for one document: does their worker write the document that fires it?"""

from __future__ import annotations

import time

from couchjobs.couch.database import Document
from couchjobs.log import get_logger
from couchjobs.scheduler.positions import LOOP
from couchjobs.timestamps import format_time, now

_logger = get_logger(__name__)
_MINUTE_S = 60.0
"""For which firings are counted."""
_MOST = 20
"""Firings of a trigger for one document within a minute, beyond which that is said."""
_WATCHED = 10_000
"""Triggers with documents of their own that are counted; then all begin again."""
_MOST_FOUND = 20
"""Triggers that are named in the position of the database."""


class Loops:
    """Counts the firings of one database, and says in the log which are too many, once a minute each."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], list[float]] = {}
        """By trigger and document: when the minute began, and how many there were."""
        self.found: dict[str, Document] = {}
        """By trigger, the last document for which there were too many, and when."""

    def note(self, trigger_id: str, doc_id: str) -> None:
        """Take note of a firing."""
        present = time.monotonic()
        counted = self._counted.get((trigger_id, doc_id))
        if counted is None or present - counted[0] > _MINUTE_S:
            if len(self._counted) >= _WATCHED:
                self._counted.clear()
            self._counted[trigger_id, doc_id] = [present, 1]
            return
        counted[1] += 1
        if counted[1] == _MOST + 1:
            self.found.pop(trigger_id, None)
            self.found[trigger_id] = {"document": doc_id, "at": format_time(now())}
            if len(self.found) > _MOST_FOUND:
                self.found.pop(next(iter(self.found)))
            _logger.warning(
                "a trigger fires again and again for one document",
                question=LOOP,
                trigger=trigger_id,
                document=doc_id,
                firings=_MOST + 1,
                within_s=round(present - counted[0], 1),
            )
