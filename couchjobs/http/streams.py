"""What streams of server-sent events have in common: how one begins, and that a feed is followed while somebody reads.

Source: html.spec.whatwg.org, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from aiohttp import web

from couchjobs.http.access import STILL
from couchjobs.supervisor import Supervisor
from couchjobs.waits import Signal


class Reader(Protocol):
    """One who waits for events."""

    news: Signal
    """Set when there is something to tell."""


T = TypeVar("T")
R = TypeVar("R", bound=Reader)
BEAT = b": beat\n\n"
BEAT_S = 15.0
"""Seconds without an event after which the connection is shown to be alive: proxies cut what is silent."""
_ASK_S = 15.0
"""Seconds after which a reader is asked for again."""


def stream() -> web.StreamResponse:
    """Return an answer for events, which is still to begin."""
    return web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


async def begin(response: web.StreamResponse, request: web.Request) -> None:
    """Begin such an answer, and have what stands between see that it has begun."""
    await response.prepare(request)
    await response.write(b": couchjobs\n\n")


async def with_beats(pages: AsyncIterator[T]) -> AsyncGenerator[T | None]:
    """Yield what there is, and None whenever it takes long: then a beat is to be sent."""
    while True:
        coming = asyncio.ensure_future(anext(pages))
        try:
            while not (await asyncio.wait([coming], timeout=BEAT_S))[0]:
                yield None
            page = coming.result()
        except StopAsyncIteration:
            return
        finally:
            coming.cancel()
        yield page


class Stay:
    """Says whether a reader may still read: he is asked for again now and then, for tokens are revoked."""

    def __init__(self, request: web.Request) -> None:
        self._still = request[STILL]
        self._ask_at = asyncio.get_running_loop().time() + _ASK_S

    async def lasts(self) -> bool:
        """Return whether he may."""
        present = asyncio.get_running_loop().time()
        if present < self._ask_at:
            return True
        self._ask_at = present + _ASK_S
        return bool(await self._still())


class Readers(Generic[R]):
    """Those of one stream: `close` when done.

    What they read is followed from the first one on, and no longer once there is none.
    """

    def __init__(self) -> None:
        self.present: set[R] = set()
        self.is_open = True
        self._following: Supervisor | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @contextmanager
    def joined_by(self, reader: R, follow: Callable[[Supervisor], None]) -> Iterator[None]:
        """Have a reader be one of them inside the block; `follow` starts the tasks, where none run."""
        self.present.add(reader)
        if self._following is None:
            self._following = Supervisor()
            follow(self._following)
        try:
            yield
        finally:
            self.present.discard(reader)
            if not self.present:
                self._end()

    async def close(self) -> None:
        """Follow nothing more, and have all readers end."""
        self.is_open = False
        for reader in self.present:
            reader.news.set()
        self._end()
        await asyncio.gather(*self._ending)

    def _end(self) -> None:
        if self._following is not None:
            ending = asyncio.create_task(self._following.stop(), name="follow jobs no more")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            self._following = None
