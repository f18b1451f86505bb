"""Lists of jobs, a page at a time: each job once, whatever somebody has written for the time at which it was queued."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from copies import put_on_all

from couchjobs.couch.connection import Connection
from couchjobs.jobs.queries import JobFilter, page_of
from couchjobs.prefixer import Prefixer

ODD: list[Any] = [
    *(f"2026-11-29t22:50:{second:02}Z" for second in range(6)),
    *(f"2026-11-29T22:50:{second:02}Z" for second in range(6)),
    "2026-11-29T23:50:00+01:00", "x" * 100, "", None, 0, 7, -1.5, False, True, [], ["a", "b"], {}, {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("wanted", [JobFilter(), JobFilter(worker="w"), JobFilter(trigger="t")])
async def test_pages_when_times_are_odd_then_each_job_once(
    connection: Connection, db: Prefixer, wanted: JobFilter, size: int
) -> None:
    """By each view; in one of several ranges, where all are of one kind."""
    jobs = connection.database(db.database("jobs"))
    for number, at in enumerate(ODD):
        document = {"_id": f"j{number:02}", "worker": "w", "trigger_id": "t", "state": "done", "queued_at": at}
        await put_on_all(jobs, document)
    found: list[str] = []
    after = None
    for _ in range(len(ODD) + 1):
        page, after = await page_of(connection, db, replace(wanted, after=after), size)
        found += [document["_id"] for document in page]
        if after is None:
            break
    assert sorted(found) == [f"j{number:02}" for number in range(len(ODD))]
