"""What is written to jobs that do not run here."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import eventually

from couchjobs.broker import marks as module
from couchjobs.broker.lane import Lane
from couchjobs.broker.marks import Marks

Again = list[tuple[str, float]]


@pytest.fixture
def lane() -> Any:
    """A lane that notes what is to be read again."""
    again: Again = []
    lane: Any = SimpleNamespace(
        again=again,
        in_conflict={},
        marks={},
        marking=asyncio.Semaphore(10),
        backlog=SimpleNamespace(forget=lambda job_id: None),
        read_again=lambda job_id, in_s=0.0: again.append((job_id, in_s)),
        store=SimpleNamespace(ends=SimpleNamespace(shortly=lambda refusals: None)),
    )
    lane.note_conflict = lambda job_id: Lane.note_conflict(lane, job_id)
    return lane


async def test_conflict_when_a_further_leaf_comes_while_one_is_settled_then_looked_at_again(
    lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job would be a candidate with a leaf that nobody has seen."""
    looks: list[asyncio.Event] = []

    async def settle(*_: Any) -> bool:
        looks.append(asyncio.Event())
        await looks[-1].wait()
        return True

    monkeypatch.setattr(module, "settle_conflicts", settle)
    nobody: Any = None
    marks = Marks(nobody, nobody)
    marks.settle(lane, "j")
    await eventually(lambda: len(looks) == 1)
    marks.settle(lane, "j")  # a row of the feed says so
    looks[0].set()
    await eventually(lambda: lane.again == [("j", 0.0)])
    assert "j" in lane.in_conflict, "what reads it has it settled again"
    await eventually(lambda: not lane.marks)
    marks.settle(lane, "j")
    await eventually(lambda: len(looks) == 2)
    looks[1].set()
    await eventually(lambda: len(lane.again) == 2)
    assert "j" not in lane.in_conflict


async def test_mark_when_it_is_not_taken_or_there_are_too_many_then_the_job_is_read_again(
    lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the document is by then decides."""
    monkeypatch.setattr(module, "_MOST", 1)
    ends = SimpleNamespace(reject_unread=lambda *_: asyncio.sleep(0, False))
    lane.store.ends.shortly = lambda refusals: ends
    nobody: Any = None
    marks = Marks(nobody, nobody)
    marks.reject_unread(lane, "one", "too deep")
    marks.reject_unread(lane, "two", "too deep")
    await eventually(lambda: {job_id for job_id, _ in lane.again} == {"one", "two"})
    assert {in_s for _, in_s in lane.again} == {module._LOOK_AGAIN_S}
    await marks.close([lane])
