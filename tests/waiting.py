"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

SOON_DEAD: dict[str, Any] = {"beat_interval": 0.2, "dead_after": 2}
"""Settings of a test that is about the death of a daemon."""
SOON_SWEPT: dict[str, Any] = {"sweep_interval": 1}
"""Those of one that is about what only a sweep finds."""


async def eventually(condition: Callable[[], Any], timeout: float = 15.0, what: str = "") -> Any:
    """Return what `condition` returns as soon as that is true; it may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or inspect.getsource(condition).strip()}")
        await asyncio.sleep(0.02)
