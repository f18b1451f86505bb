"""A child process of a daemon: it runs worker functions, and nothing else. `python -m couchjobs.workers.child FD LOOP`.

It talks to its parent alone, over the socket FD; worker functions have a connection of their own to CouchDB. It ends
when the parent closes the socket, or is gone. Signals are the parent's business: one that stops a whole group of
processes must not end a job that may still go on for a while. Processes that a function starts have them as usual.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil

from couchjobs import process
from couchjobs.couch.connection import Connection, connect
from couchjobs.errors import BadRequest, ConfigurationError
from couchjobs.jobs.job import Job
from couchjobs.log import configure_logging
from couchjobs.settings import Settings
from couchjobs.workers.boundary import GRACE_S, describe, take_signals
from couchjobs.workers.config import WorkersList
from couchjobs.workers.engine import CouchEngine
from couchjobs.workers.loading import load_workers
from couchjobs.workers.outcome import Done, Failed, Interrupted
from couchjobs.workers.processes import InProcess
from couchjobs.workers.wire import pack, receive, send, unpack
from couchjobs.workers.worker import TASKS, Try

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_GRACE_S = 0.5
"""For tries that are interrupted, as the child ends."""
_LOOK_S = 1.0
"""Between two looks at whether the daemon lives."""
_LAST_STEPS_S = 4.0
"""Seconds that this process has to end in order once its parent has gone."""


class _Child:
    def __init__(self, workers: WorkersList, connection: Connection, writer: asyncio.StreamWriter) -> None:
        settings = connection.settings
        self.process = InProcess(workers, settings.max_retry_delay, CouchEngine(connection, workers))
        self._settings = settings
        self._writer = writer
        self._tries: dict[int, Try] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: dict[str, Any]) -> None:
        """Do what the parent wants: begin a try, stop one, or say that this listens."""
        number = message["try"]
        if "ping" in message:
            send(self._writer, {"try": number, "pong": True})
        elif "job" in message:
            try:
                job = Job.from_document(message["job"], go_durations=self._settings.go_durations)
                job.belongs_to(message["domain"], message["prefix"])
                self._tries[number] = self.process.begin(job, message["daemon"])
            except Exception as error:  # noqa: BLE001  the parent waits for an outcome, whatever it is
                send(self._writer, {"try": number, "outcome": pack(Failed(describe(error))), "busy": False})
                return
            task = asyncio.create_task(self._run(number), name=f"{TASKS} {job.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif number in self._tries:
            self._tries[number].stop(unpack(message["stop"]), message.get("grace_s", GRACE_S))  # type: ignore[arg-type]

    async def close(self) -> None:
        """Stop what still runs, which is the others' to do again, and let go what the functions share."""
        for running in self._tries.values():
            running.stop(Interrupted(), _LAST_GRACE_S)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_GRACE_S)
        await self.process.close()

    async def _run(self, number: int) -> None:
        running = self._tries[number]
        try:
            outcome = await running.run()
        except BaseException as error:  # noqa: BLE001  the parent waits for an outcome, whatever it is
            outcome = Failed(describe(error))
        finally:
            del self._tries[number]
        busy = running.outliving is not None and not running.outliving.done()
        try:
            send(self._writer, {"try": number, "outcome": pack(outcome), "busy": busy})
        except BadRequest as error:
            done = Done(lost=f"the result is no JSON: {error}")
            send(self._writer, {"try": number, "outcome": pack(done), "busy": busy})
        if running.outliving is not None and busy:
            running.outliving.add_done_callback(lambda _: send(self._writer, {"try": number, "free": True}))


async def _serve(handle: int) -> None:
    os.set_inheritable(handle, False)
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=handle))
    hello = await receive(reader)
    if hello is None:
        return
    configure_logging(hello["log_level"])
    settings = Settings(**hello["settings"])
    async with connect(settings) as connection:
        child: _Child | None = None
        try:
            child = _Child(load_workers(hello["modules"]), connection, writer)
            await child.process.start()
        except BaseException as error:  # noqa: BLE001  the parent says so, and does not start
            send(writer, {"failed": str(error) if isinstance(error, ConfigurationError) else repr(error)})
            await writer.drain()
            if child is not None:
                await child.process.close()
            return
        send(writer, {"ready": True})
        while (message := await receive(reader)) is not None:
            child.take(message)
        await child.close()


def main() -> None:
    """Serve the parent until it has gone; whatever still runs then is the others' to do again."""
    for number in _SIGNALS:
        process.listen_to(number, _leave_to_parent)  # SIG_IGN would be inherited by programs that a function runs
    os.register_at_fork(after_in_child=take_signals)
    threading.Thread(target=_mind_parent, args=[os.getppid()], name="couchjobs parent", daemon=True).start()
    process.run(_serve(int(sys.argv[1])), sys.argv[2])
    process.leave(0)


def _mind_parent(parent: int) -> None:
    """End this process, and the programs of its functions, a while after its parent: a function may block the loop."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    time.sleep(_LAST_STEPS_S)
    with suppress(psutil.Error, OSError):
        for program in psutil.Process().children(recursive=True):
            program.kill()
    os.killpg(0, signal.SIGKILL)


def _leave_to_parent(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


if __name__ == "__main__":
    main()
