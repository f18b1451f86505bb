"""One child process, as its daemon sees it: started, spoken to, and ended with all that its functions have started.

That it is dead is what `wait()` says, not that its socket is closed, which a process that it has forked may hold open.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil

from couchjobs.workers.loading import folder
from couchjobs.workers.outcome import Outcome
from couchjobs.workers.wire import receive, send

_LAST_STEPS_S = 4.0
"""Seconds that a child has for `worker_stop`, `atexit` and its last lines."""
_READY_WITHIN_S = 60.0
"""Seconds in which a child must have imported its modules and called each `worker_init`."""


class ChildsTry(Protocol):
    """A try that runs in a child."""

    worker_type: str

    @property
    def outcome(self) -> asyncio.Future[Outcome]:
        """Return what is done once the try has ended."""

    @property
    def has_outcome(self) -> bool:
        """Return whether the try has ended, though its thread may not have."""

    @property
    def ends_by(self) -> float | None:
        """Return until when the try has time, by the clock of the event loop; None where it has no limit."""

    def answered(self, message: dict[str, Any]) -> bool:
        """Take what the child says; return whether that was the last of it."""

    def lost(self, how: str) -> None:
        """Take note that the child is gone."""


@dataclass(eq=False)
class ChildProcess:
    """That of a pool: `start` makes one, `greet` has it load the workers."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tries: dict[int, ChildsTry] = field(default_factory=dict)
    of_type: Counter[str] = field(default_factory=Counter)
    had: int = 0
    pongs: int = 0
    """How often it has said that it listens."""
    retired: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it gets no more jobs."""

    @classmethod
    async def start(cls, loop: str) -> ChildProcess:
        """Start one, with that event loop: it is not ready yet."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "couchjobs.workers.child", str(theirs.fileno()), loop),
                pass_fds=[theirs.fileno()],
                cwd=folder(),
                start_new_session=True,  # a group of its own, with the programs that its functions start
            )
        return cls(process, *await asyncio.open_connection(sock=ours))

    async def greet(self, hello: dict[str, Any]) -> str:
        """Wait until it is ready; return why it is not, and has ended."""
        send(self.writer, hello)
        answer, hangs = await _first_answer(self.process, receive(self.reader))
        if answer is not None and "failed" not in answer:
            return ""
        self.kill()
        code = await self.process.wait()
        self.writer.close()
        how = f"it is not ready after {_READY_WITHIN_S:g} s" if hangs else f"it ended at once, {code}"
        return str(answer["failed"]) if answer else how

    async def listen(self) -> None:
        """Hand what it says to its tries, until it says no more."""
        while (message := await receive(self.reader)) is not None:
            self.pongs += "pong" in message
            running = self.tries.get(message["try"])
            if running is not None and "pong" not in message and running.answered(message):
                self.end(message["try"])

    def begin(self, number: int, one: ChildsTry) -> None:
        """Take note of a try that begins here."""
        self.tries[number] = one
        self.of_type[one.worker_type] += 1
        self.had += 1

    def end(self, number: int) -> None:
        """Take note that a try has ended."""
        self.of_type[self.tries.pop(number).worker_type] -= 1

    def only_hangs(self) -> bool:
        """Return whether nothing is left in it but plain functions whose tries have ended."""
        return all(one.has_outcome for one in self.tries.values())

    def hangs(self) -> bool:
        """Return whether there is such a function in it."""
        return any(one.has_outcome for one in self.tries.values())

    def kill(self) -> None:
        """End the process, and those that its functions have started, whatever they do: in groups of their own, too."""
        programs = self._programs()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        _kill_all(programs)

    def _programs(self) -> list[psutil.Process]:
        """Return what its functions have started and is still its descendant; none once it has ended."""
        if self.process.returncode is not None:
            return []
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except (psutil.Error, OSError):
            return []

    async def end_in_order(self) -> None:
        """Let the process end in order, for a moment, then kill what is left of its group."""
        programs = self._programs()
        self.writer.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _LAST_STEPS_S)
        self.kill()
        _kill_all(programs)
        await self.process.wait()


def _kill_all(programs: list[psutil.Process]) -> None:
    for program in programs:
        with suppress(psutil.Error, OSError):
            program.kill()


async def _first_answer(
    process: asyncio.subprocess.Process, receiving: Awaitable[dict[str, Any] | None]
) -> tuple[dict[str, Any] | None, bool]:
    """Return the first message of a child, None where it ends before that, and whether neither comes in time."""
    message, ended = asyncio.ensure_future(receiving), asyncio.ensure_future(process.wait())
    try:
        done, _ = await asyncio.wait([message, ended], timeout=_READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        return message.result() if message.done() else None, not done
    finally:
        message.cancel()
        ended.cancel()
