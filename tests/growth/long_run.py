"""What the long runs share: daemons as processes at default settings, jobs at a steady rate, a record of workers."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from daemons import DaemonProcess

from couchjobs.bench.cpu import listeners
from couchjobs.bench.figures import latencies
from couchjobs.bench.limit import job_documents
from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.database import Database
from couchjobs.couch.surely import write_surely
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.installation import install
from couchjobs.prefixer import Prefixer

HERE = Path(__file__).parent
_MB = 1024 * 1024
_LOOK_S = 0.25
_TOLD = 20


class Try(NamedTuple):
    """What a worker has noted: what it was, which job, in which process, and when."""

    what: str
    job_id: str
    pid: int
    at: float


@dataclass
class LongRun:
    """One run's own databases, daemons and record."""

    connection: Connection
    """To the nodes that stay."""
    url: str
    """What daemons are told: perhaps several nodes."""
    folder: Path
    name: str
    daemons: list[DaemonProcess] = field(default_factory=list)
    sent: dict[str, float] = field(default_factory=dict)
    """By job that is to run, when it was written."""

    @property
    def tenant(self) -> Prefixer:
        """The tenant of runs that have one."""
        return self.connection.settings.tenant

    def database(self, doctype: str, tenant: Prefixer | None = None) -> Database:
        """A database of a tenant."""
        return self.connection.database((tenant or self.tenant).database(doctype))

    def start(self, *options: str) -> DaemonProcess:
        """Start one more daemon, at the settings that everybody has."""
        os.environ["GROWTH_LOG"] = str(self.folder / "log")
        own = {"url": self.url, "control_db": f"{self.name}-control"}
        if "--tenants" not in options:
            own["prefix"] = self.name
        daemon = DaemonProcess(HERE, "noting", str(self.folder / f"daemon-{len(self.daemons)}"), options, **own)
        self.daemons.append(daemon)
        return daemon

    async def stop(self, daemon: DaemonProcess) -> None:
        """Have a daemon end as users do."""
        daemon.signal(signal.SIGTERM)
        await asyncio.to_thread(daemon.wait, 120)

    def tries(self) -> dict[str, list[Try]]:
        """All that ran, by what it was."""
        log, found = self.folder / "log", defaultdict[str, list[Try]](list)
        for line in log.read_text().splitlines() if log.exists() else []:
            what, job_id, pid, at = line.split(" ")
            found[what].append(Try(what, job_id, int(pid), float(at)))
        return found

    async def write(self, jobs_per_s: float, *, until: Callable[[], bool], databases: Sequence[Database] = ()) -> None:
        """Write jobs at a steady rate, in turn into these databases, until it is enough and all are stored."""
        writers = [self.connection.writer(one.name) for one in databases or [self.database("jobs")]]
        began, number, writing = time.perf_counter(), 0, set[asyncio.Task[Any]]()
        while not until():
            ahead = began + number / jobs_per_s - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            [document] = job_documents(1, "work")
            self.sent[document["_id"]] = time.time()
            task = asyncio.create_task(write_surely(writers[number % len(writers)], document, patience_s=120))
            writing.add(task)
            task.add_done_callback(writing.discard)
            number += 1
        await asyncio.gather(*writing)

    def waits(self, since: float, until: float) -> dict[str, float]:
        """How long jobs waited that were written in that time, in ms; each has run."""
        tries = self.tries()
        begun = [
            tries[job_id][0].at - at for job_id, at in self.sent.items() if since <= at < until and job_id in tries
        ]
        return latencies(begun or [0.0])

    async def until_all_ran(self, longest_s: float = 300) -> None:
        """Wait for all jobs that were written."""
        await self.until(lambda: self.sent.keys() <= self.tries().keys(), "all jobs have run", longest_s)

    async def until(
        self, condition: Callable[[], bool | Awaitable[bool]], what: str, longest_s: float, each_s: float = _LOOK_S
    ) -> bool:
        """Wait until something is so; return whether it is, at last.

        Raises:
            RuntimeError: no daemon is left that could bring it about.
        """
        deadline = time.monotonic() + longest_s
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return True
            if all(daemon.process.poll() is not None for daemon in self.daemons):
                self.tell_daemons()
                raise RuntimeError(f"no daemon is left: {what}")
            if time.monotonic() > deadline:
                say(f"not within {longest_s:.0f} s: {what}")
                return False
            await asyncio.sleep(each_s)

    def lost_and_again(self) -> tuple[list[str], list[str]]:
        """The jobs that were written and did not run, and all that ran twice."""
        tries = self.tries()
        return [one for one in self.sent if one not in tries], [what for what, some in tries.items() if len(some) > 1]

    def tell_daemons(self) -> None:
        """Print the ends of the daemons' logs."""
        for daemon in self.daemons:
            for line in daemon.log.read_text(errors="replace").splitlines()[-_TOLD:]:
                say(f"    {daemon.log.stem}: {line}")


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def memory_mb(pids: set[int]) -> float:
    """What these processes and their children have."""
    families = [one for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return round(sum(one.memory_info().rss for one in families) / _MB, 1)


def server_memory_mb(url: str) -> float | None:
    """What the server has, where it runs on this machine."""
    pids = listeners(url)
    return memory_mb(pids) if pids else None


async def node(command: str, what: str) -> None:
    """Stop or start the node of the cluster that the command is about."""
    say(f"node: {what}")
    await asyncio.to_thread(subprocess.run, [command, what], check=True, stdout=sys.stderr)


@asynccontextmanager
async def long_run(url: str | None, stays: str | None = None) -> AsyncIterator[LongRun]:
    """A fresh ground, on the embedded server unless a URL says another; nothing of it is left afterwards.

    `stays`: the nodes that this process itself asks, where others die.
    """
    name = f"growth{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="couchjobs-growth-") as folder:
        server = None if url else EmbeddedServer(Path(folder) / "data")
        if server is not None:
            server.start()
        given = url or (server.url if server else "")
        try:
            async with connect(prefix=name, control_db=f"{name}-control", url=stays or given) as connection:
                await install(connection, connection.settings.tenant)
                it = LongRun(connection, given, Path(folder), name)
                try:
                    yield it
                finally:
                    for daemon in it.daemons:
                        daemon.end()
                    for database in await connection.server.databases_from(name):
                        await connection.server.delete_database(database)
        finally:
            if server is not None:
                server.stop()
