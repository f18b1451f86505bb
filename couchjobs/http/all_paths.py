"""A resource of aiohttp that has all paths: who answers is found out anew for each request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web
from yarl import URL


class AllPaths(web.AbstractResource):
    """All paths of an application. `find`: returns the route that answers a request; None where there is none."""

    def __init__(self, find: Callable[[web.Request], Awaitable[Any]]) -> None:
        super().__init__()
        self._find = find

    @property
    def canonical(self) -> str:
        """Return what all paths begin with."""
        return "/"

    async def resolve(self, request: web.Request) -> tuple[Any, set[str]]:
        """Return what answers."""
        return await self._find(request), set()

    def url_for(self, **_: str) -> URL:
        """Return nothing: nobody asks.

        Raises:
            NotImplementedError: somebody does.
        """
        raise NotImplementedError

    def add_prefix(self, prefix: str) -> None:
        """Refuse: nothing is before it.

        Raises:
            NotImplementedError: somebody asks for it.
        """
        raise NotImplementedError(prefix)

    def get_info(self) -> Any:
        """Return nothing worth telling."""
        return {}

    def raw_match(self, path: str) -> bool:
        """Return whether it is the path itself."""
        return path == "/"

    def __len__(self) -> int:
        """Return that it has no route of its own."""
        return 0

    def __iter__(self) -> Iterator[web.AbstractRoute]:
        """Yield none."""
        return iter(())
