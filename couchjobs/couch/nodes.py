"""The nodes of a cluster that a process may ask: one of them at a time, the first one where it answers.

Whoever asks names the first node, and is led to the one in use. Where a node gives no answer, the next requests go to
the next one: at once where nothing was sent, else once the caller has found out what became of his request. The first
node is looked at now and then, and used again once it says that it is up.

Sequences do not hold at every node: after a change of nodes, rows of a feed may come again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from couchjobs.log import get_logger

_logger = get_logger(__name__)
LOOK_BACK_S = 15.0
"""Seconds between two looks at the first node, while another one is in use."""
_MOST_NONSENSE = 3
"""Answers in a row that are not CouchDB's, after which it is not CouchDB that is there."""


class Nodes:
    """Those of one server. `urls`: without credentials, the one first that is to be used where it answers."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [*urls]
        self._in_use = 0
        self._look_back_at = 0.0
        self._failed_at: dict[int, float] = {}
        """When each of them gave no answer last."""
        self._nonsense = 0

    @property
    def first(self) -> str:
        """Return the URL of the first one, by which all of them are called."""
        return self._urls[0]

    @property
    def in_use(self) -> str:
        """Return the URL of the one that is asked now."""
        return self._urls[self._in_use]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._urls)

    def at(self, url: str) -> str:
        """Return where something is asked for now that is at the first node by its URL."""
        if self._in_use == 0 or not url.startswith(self.first):
            return url
        return self.in_use + url.removeprefix(self.first)

    def failed(self, node: str, reason: str) -> None:
        """Take note that a node gave no answer, in whose place the next one is used, unless that is so already."""
        present = time.monotonic()
        if node != self.in_use or len(self._urls) == 1:
            return
        self._failed_at[self._in_use] = present
        ring = [(self._in_use + step) % len(self._urls) for step in range(1, len(self._urls))]
        self._nonsense = 0
        self._in_use = min(ring, key=lambda number: self._failed_at.get(number, 0.0))  # the next that never failed
        self._look_back_at = present + LOOK_BACK_S
        _logger.warning("a node does not answer, and another one is asked", node=node, other=self.in_use, reason=reason)

    def note_answer(self, node: str, *, is_couchdb: bool) -> None:
        """Take note of an answer of a node: where something else answers at the one in use, the next one is used.

        Once or twice is a proxy that restarts: a change of nodes has rows of feeds come again.
        """
        if node != self.in_use:
            return
        self._nonsense = 0 if is_couchdb else self._nonsense + 1
        if self._nonsense >= _MOST_NONSENSE:
            self.failed(node, "what answers is not CouchDB")

    def is_to_look_back(self) -> bool:
        """Return whether it is time to look at the first node; it is not again before a while has passed."""
        if self._in_use == 0 or time.monotonic() < self._look_back_at:
            return False
        self._look_back_at = time.monotonic() + LOOK_BACK_S
        return True

    def is_back(self) -> None:
        """Take note that the first node is up."""
        if self._in_use:
            _logger.info("the first node is up again, and asked", node=self.first)
            self._in_use = self._nonsense = 0
