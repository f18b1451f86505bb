"""The outage matrix in short: each way to go wrong once, each kind of request a few times."""

from __future__ import annotations

import asyncio

import pytest
from outage_matrix import KINDS, WAYS, run_cell

SHORT = [(KINDS[number % len(KINDS)], way) for number, way in enumerate(WAYS)]
AT_ONCE = 6


@pytest.mark.timeout(300)
async def test_matrix_when_requests_go_wrong_for_some_seconds_then_nothing_is_lost_doubled_or_stuck(
    server_url: str,
) -> None:
    """The long form is `scripts/attacks outages`."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(kind: str, way: str) -> str:
        async with limit:
            cell = await run_cell(server_url, kind, way)
            wrong = f"lost {cell.lost}, doubled {cell.doubled}, stuck {cell.stuck}"
            return "" if cell.good else f"{kind} x {way}: {wrong}"

    found = await asyncio.gather(*(one(kind, way) for kind, way in SHORT))
    assert [text for text in found if text] == []
