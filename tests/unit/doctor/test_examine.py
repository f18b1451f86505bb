"""The doctor: what becomes of its mends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from couchjobs.doctor.examine import _run
from couchjobs.doctor.finding import Finding, Patient
from couchjobs.errors import Forbidden


async def test_repair_when_one_mend_fails_then_it_is_left_and_says_why_and_the_others_are_made() -> None:
    """Whoever looks at the exit code learns that something is left."""

    async def fails() -> str:
        raise Forbidden("403 forbidden: not by you", 403)

    async def mends() -> str:
        return "mended"

    async def check(_patient: Patient) -> AsyncIterator[Finding]:
        yield Finding("conflict", "a", "two branches", fails)
        yield Finding("conflict", "b", "two branches", mends)

    nobody: Any = None
    first, second = await _run((check,), nobody, repair=True)
    assert (first.done, second.done) == (None, "mended")
    assert "not by you" in first.what
