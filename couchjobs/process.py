"""How a process of couchjobs runs: on uvloop, and with a garbage collector that does not look at the same jobs again.

Python's collector looks at all young objects each 700 that are made, and at all old ones now and then. Jobs that wait
for a slot or an answer live longer than that and are never part of a cycle: with the thresholds here the collector
takes next to nothing of the processor, where it took a third of what a job costs. What was imported is never looked at.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import uvloop

T = TypeVar("T")

_THRESHOLDS = (50_000, 20, 100)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine in a new event loop, as `asyncio.run` does, and return what it returns."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    return uvloop.run(main)


def leave(code: int) -> NoReturn:
    """End the process as it is, whatever its threads and tasks still do; what was written to stderr is out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
