"""A broker and a scheduler, and what is around them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from couchjobs import system as module
from couchjobs.errors import ClosedError
from couchjobs.memory.broker import MemBroker
from couchjobs.memory.scheduler import MemScheduler
from couchjobs.system import JobSystem
from couchjobs.workers.config import WorkersList


class Part:
    """A daemon, or its HTTP: whether it runs."""

    id, workers, runtime = "own", WorkersList([]), None

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.done: list[str] = []

    async def open(self) -> None:
        """Take the address."""
        self.done.append("open")

    async def start(self, *_: Any) -> None:
        """Run."""
        self.done.append("start")
        if self.fails:
            raise OSError("no")

    async def stop(self) -> None:
        """Stop."""
        self.done.append("stop")

    shutdown = stop

    def stop_claiming(self) -> None:
        """Do nothing."""

    hurry = stop_claiming


@pytest.mark.parametrize(
    ("fails", "daemon_did", "http_did"),
    [
        ("http", ["start", "stop"], ["open", "start", "stop"]),
        ("daemon", ["start"], ["open", "stop"]),
        (None, ["start", "stop"], ["open", "start", "stop"]),
    ],
)
async def test_daemon_when_a_step_of_its_start_fails_then_nothing_of_it_is_left(
    monkeypatch: pytest.MonkeyPatch, fails: str | None, daemon_did: list[str], http_did: list[str]
) -> None:
    """Where its HTTP cannot start, its jobs run already: they are put back."""
    daemon, http = Part(fails=fails == "daemon"), Part(fails=fails == "http")
    monkeypatch.setattr("couchjobs.http.server.HttpServer", lambda *_: http)
    nothing: Any = None
    both = module._WithHttp(daemon, nothing, ("127.0.0.1", 0), None)  # type: ignore[arg-type]
    if fails is None:
        await both.start()
        await both.shutdown()
    else:
        with pytest.raises(OSError, match="no"):
            await both.start()
    assert (daemon.done, http.done) == (daemon_did, http_did)


async def test_system_when_entered_then_it_runs_until_it_is_left() -> None:
    """Whatever happens within; one that was shut down before is left alone."""
    workers = WorkersList([])
    with suppress(ZeroDivisionError):
        async with JobSystem(MemBroker(), MemScheduler(), workers) as system:
            assert system.state == "running"
            assert 1 / 0
    assert system.state == "closed"
    async with JobSystem(MemBroker(), MemScheduler(), workers) as system:
        await system.shutdown()
    with pytest.raises(ClosedError):
        await system.shutdown()
