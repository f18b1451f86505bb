"""Plain hooks that no slot bounds: so many threads of each, those included that nobody waits for any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from waiting import eventually

from couchjobs.errors import HookError, JobFailedError
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import JobRequest, new_job
from couchjobs.prefixer import Prefixer
from couchjobs.workers import admission, failure, turns
from couchjobs.workers.boundary import call_in_time
from couchjobs.workers.config import WorkersList
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import config_of, worker
from couchjobs.workers.turns import in_turn


class Hung:
    """A hook that does not end until it is let go."""

    def __init__(self) -> None:
        self.called = 0
        self.go = threading.Event()

    def __call__(self, *_: Any) -> bool:
        """Take part in no comparison of hooks: it is known by what it is, not by what it is equal to."""
        self.called += 1
        self.go.wait()
        return True


def a_job() -> Job:
    """Return one of a worker that has both hooks."""
    return new_job(Prefixer("test.example"), JobRequest(worker_type="hooked"))


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hung]:
    """A hook of which four may run at once, each for a moment; it ends with the test."""
    monkeypatch.setattr(turns, "MOST_AT_ONCE", 4)
    for module in (admission, failure):
        monkeypatch.setattr(module, "LONGEST_HOOK_S", 0.1)
    hook = Hung()
    yield hook
    hook.go.set()


async def test_turns_when_hooks_are_left_behind_one_after_the_other_then_no_more_threads_than_turns(hung: Hung) -> None:
    """Nobody waits between two of them: what is left behind counts all the same, until it ends."""
    call = partial(in_turn, 0.1, hung, partial(call_in_time, 0.1, hung))
    for _ in range(10):
        with pytest.raises(TimeoutError):
            await call()
    assert 1 <= hung.called <= 4
    assert turns._turns
    hung.go.set()

    async def forgotten() -> bool:
        return not turns._turns

    await eventually(forgotten)
    assert await in_turn(5, hung, partial(call_in_time, 5, hung)) is True
    assert not turns._turns


@pytest.mark.parametrize("which", ["before_hook", "on_failed"])
async def test_hook_when_it_never_ends_then_so_many_threads(which: str, hung: Hung) -> None:
    """Each of those that are called without a slot."""

    @worker("hooked", **{which: hung})
    async def hooked(ctx: WorkerContext) -> None:
        return None

    workers = WorkersList([config_of(hooked)])
    failures = failure.Failures(workers, "daemon")
    for _ in range(10):
        if which == "on_failed":
            await failures.tell(a_job(), JobFailedError("no", "tries"))
        else:
            with pytest.raises(HookError):
                await admission.is_wanted(workers, a_job())
    assert 1 <= hung.called <= 4
    hung.go.set()
