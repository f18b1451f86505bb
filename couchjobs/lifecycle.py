"""What is started once and closed once: in which state it is, and what has to be closed of it, the last first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from couchjobs.errors import ClosedError


class Lifecycle:
    """The state of one thing, and how to undo its start. `what`: what it is called in errors."""

    def __init__(self, what: str) -> None:
        self.state: Literal["new", "starting", "running", "closed"] = "new"
        self._what = what
        self._to_close = AsyncExitStack()

    def is_(self, state: str) -> bool:
        """Return whether it is in that state."""
        return self.state == state

    @asynccontextmanager
    async def starting(self) -> AsyncIterator[AsyncExitStack]:
        """Start it within: each step says on the stack how it is undone. Where one fails, what had begun is closed.

        Raises:
            ClosedError: it is started already, or has been.
        """
        self._must_be("new")
        self.state = "starting"
        try:
            yield self._to_close
            self.state = "running"
        except BaseException:
            self.state = "closed"
            await self._to_close.aclose()
            raise

    async def close(self) -> None:
        """Undo the steps of the start, the last one first.

        Raises:
            ClosedError: it does not run.
        """
        self._must_be("running")
        self.state = "closed"
        await self._to_close.aclose()

    def _must_be(self, state: str) -> None:
        if self.state != state:
            raise ClosedError(f"the {self._what} is {self.state}")
