"""A child process of a daemon: it runs worker functions, and nothing else. `python -m couchjobs.workers.child FD`.

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
from types import FrameType
from typing import Any

from couchjobs import process
from couchjobs.couch.connection import connect
from couchjobs.errors import BadRequest, ConfigurationError
from couchjobs.jobs.job import Job
from couchjobs.log import configure_logging, get_logger
from couchjobs.settings import Settings
from couchjobs.workers.config import WorkersList
from couchjobs.workers.loading import load_workers
from couchjobs.workers.outcome import Failed
from couchjobs.workers.wire import pack, receive, send, unpack
from couchjobs.workers.worker import TASKS, Try, describe, make_workers

_logger = get_logger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Child:
    def __init__(self, workers: WorkersList, settings: Settings, writer: asyncio.StreamWriter) -> None:
        self.workers, _ = make_workers(workers)
        self._settings = settings
        self._writer = writer
        self._tries: dict[int, Try] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: dict[str, Any]) -> None:
        """Do what the parent wants: begin a try, or stop one."""
        number = message["try"]
        if "job" in message:
            try:
                job = Job.from_document(message["job"], go_durations=self._settings.go_durations)
                job.belongs_to(message["domain"], message["prefix"])
                self._tries[number] = self.workers[job.worker].begin(job, message["daemon"])
            except Exception as error:  # noqa: BLE001  the parent waits for an outcome, whatever it is
                send(self._writer, {"try": number, "outcome": pack(Failed(describe(error))), "busy": False})
                return
            task = asyncio.create_task(self._run(number), name=f"{TASKS} {job.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif number in self._tries:
            self._tries[number].stop(unpack(message["stop"]))  # type: ignore[arg-type]

    async def _run(self, number: int) -> None:
        running = self._tries[number]
        try:
            outcome = await running.run()
        except BaseException as error:  # noqa: BLE001  the parent waits for an outcome, whatever it is
            outcome = Failed(describe(error))
        finally:
            del self._tries[number]
        busy = running.thread is not None and not running.thread.done()
        try:
            send(self._writer, {"try": number, "outcome": pack(outcome), "busy": busy})
        except BadRequest as error:
            failed = Failed(f"the result is no JSON: {error}")
            send(self._writer, {"try": number, "outcome": pack(failed), "busy": busy})
        if running.thread is not None and busy:
            running.thread.add_done_callback(lambda _: send(self._writer, {"try": number, "free": True}))


async def _serve(handle: int) -> None:
    os.set_inheritable(handle, False)
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=handle))
    hello = await receive(reader)
    if hello is None:
        return
    configure_logging(hello["log_level"])
    settings = Settings(**hello["settings"])
    async with connect(settings):
        try:
            child = _Child(load_workers(hello["modules"]), settings, writer)
            for worker in child.workers.values():
                await worker.init()
        except Exception as error:  # noqa: BLE001  the parent says so, and does not start
            send(writer, {"failed": str(error) if isinstance(error, ConfigurationError) else repr(error)})
            await writer.drain()
            return
        send(writer, {"ready": True})
        while (message := await receive(reader)) is not None:
            child.take(message)


def main() -> None:
    """Serve the parent until it has gone; whatever still runs then is the others' to do again."""
    for number in _SIGNALS:
        signal.signal(number, _leave_to_parent)  # SIG_IGN would be inherited by programs that a function runs
    os.register_at_fork(after_in_child=_take_signals)
    try:
        process.run(_ending(_serve(int(sys.argv[1]))))
    except KeyboardInterrupt:
        os._exit(1)


def _leave_to_parent(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


def _take_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


async def _ending(serving: Any) -> None:
    await serving
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
