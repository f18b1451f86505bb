"""What is said of a removal that did not go through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.errors import Forbidden, Unavailable
from couchjobs.jobs.removal import Remover


@pytest.mark.parametrize(
    ("written", "error"), [(Written.UNKNOWN, Unavailable), (Written.REFUSED, Forbidden), (Written.CONFLICT, None)]
)
async def test_remove_when_deletions_are_not_taken_then_not_told_as_done(written: Written, error: Any) -> None:
    """A disk that is full is when somebody purges; a job that has changed meanwhile is no failure."""

    async def write(_: object) -> WriteAnswer:
        return WriteAnswer(written, reason="the disk is full")

    store: Any = SimpleNamespace(writer=SimpleNamespace(write=write))
    remover = Remover(store)
    remover._purges = False
    assert await remover._remove([{"_id": "a", "_rev": "1-a"}, {"_id": "b", "_rev": "1-b"}]) == 0
    if error is None:
        remover.check_all()
    else:
        with pytest.raises(error, match=r"2 jobs .*the disk is full"):
            remover.check_all()
