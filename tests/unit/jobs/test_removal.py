"""What is said of a removal that did not go through."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from couchjobs.couch.answers import WriteAnswer, Written
from couchjobs.errors import Forbidden, NotFound, Unavailable
from couchjobs.jobs import removal
from couchjobs.jobs.removal import Remover
from couchjobs.timestamps import format_time, now


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


@pytest.mark.parametrize("is_gone", [True, False])
async def test_free_when_the_database_of_the_pusher_is_not_to_be_had_then_kept_unless_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    """A node that has just come back may not know it yet: the pusher, tried again, would push its job a second time."""

    async def read(_: object) -> list[Any]:
        raise NotFound("no database", 404)

    async def gone(_: object) -> bool:
        return is_gone

    monkeypatch.setattr(removal, "is_surely_gone", gone)
    store: Any = SimpleNamespace(database_of=lambda worker: SimpleNamespace(read=read))
    pushed = {"_id": "j", "pushed_by": {"id": "p", "worker": "w"}}
    assert await Remover(store)._free([pushed]) == ([pushed] if is_gone else [])


@pytest.mark.parametrize(("ended_s", "is_kept"), [(5, True), (110, True), (400, False), (-100_000, False)])
def test_read_when_a_trigger_has_just_fired_then_kept_for_as_long_as_it_may_be_seen_again(
    ended_s: int, is_kept: bool
) -> None:
    """Whoever goes on for a dead daemon finds by the job alone that it has fired, whatever the rules say."""
    store: Any = SimpleNamespace(dead_after=30.0)
    ended = format_time(now() - timedelta(seconds=ended_s))
    job = {"_id": "j", "_rev": "3-a", "worker": "w", "message": None, "state": "done", "finished_at": ended}
    assert not Remover(store)._may_fire_again(job)
    assert Remover(store)._may_fire_again({**job, "trigger_id": "t"}) is is_kept
