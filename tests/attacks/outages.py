"""The outage matrix in its long form: all kinds of request, all ways to go wrong. `scripts/attacks outages --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from outage_matrix import KINDS, WAYS, Cell, run_cell

from couchjobs.embedded.server import EmbeddedServer
from couchjobs.log import configure_logging


async def run_all(url: str, kinds: list[str], ways: list[str], at_once: int, seconds: float) -> list[Cell]:
    """Run the cells, some at once, and tell of each that is not good; begin none after so many seconds."""
    limit = asyncio.Semaphore(at_once)
    began = time.monotonic()
    cells: list[Cell] = []

    async def one(kind: str, way: str) -> None:
        async with limit:
            if time.monotonic() - began > seconds:
                return
            try:
                cell = await run_cell(url, kind, way)
            except Exception as error:  # noqa: BLE001  a daemon that does not even end is a cell that failed
                cell = Cell(kind, way, stuck=[f"{type(error).__name__}: {error}"])
            cells.append(cell)
            if not cell.good:
                print(f"{kind} x {way}: lost {cell.lost}, doubled {cell.doubled}, stuck {cell.stuck}", flush=True)

    await asyncio.gather(*(one(kind, way) for way in ways for kind in kinds))
    return cells


def main() -> int:
    """Run the matrix; exit with 1 where a cell is not good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a CouchDB, with an administrator's credentials; without it, the embedded server")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind of request")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this way to go wrong")
    parser.add_argument("--at-once", type=int, default=5, help="cells that run at once (default 5)")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no cell after so many seconds")
    parser.add_argument("--log", default="error", help="the level of the daemons' logs (default error)")
    given = parser.parse_args()
    configure_logging(given.log)
    kinds, ways = given.kind or [*KINDS], given.way or [*WAYS]
    if given.url:
        cells = asyncio.run(run_all(given.url, kinds, ways, given.at_once, given.seconds))
    else:
        with EmbeddedServer() as server:
            cells = asyncio.run(run_all(server.url, kinds, ways, given.at_once, given.seconds))
    bad = [cell for cell in cells if not cell.good]
    summary = {
        "cells": len(cells),
        "hit": sum(cell.hit > 0 for cell in cells),
        "failed": len(bad),
        "lost": sum(len(cell.lost) for cell in bad),
        "doubled": sum(len(cell.doubled) for cell in bad),
        "stuck": sum(len(cell.stuck) for cell in bad),
    }
    print(json.dumps(summary))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
