"""The ground on which couchjobs is broken: a server, a proxy before it, daemons as processes, and two records."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemons import DaemonProcess
from fault_proxy import FaultProxy

from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.settle import settle
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.installation import install
from couchjobs.jobs.ids import new_id

HERE = Path(__file__).parent
ENDED = ("done", "errored")


@dataclass(frozen=True)
class Size:
    """How large a run is. Durations in seconds."""

    jobs: int
    work: float
    beat_interval: float
    dead_after: float
    rounds: int
    patience: float


FULL = Size(jobs=2000, work=0.5, beat_interval=10, dead_after=30, rounds=5, patience=300)
SHORT = Size(jobs=300, work=0.2, beat_interval=0.5, dead_after=6, rounds=2, patience=90)


@dataclass
class Ground:
    """One scenario's own databases and daemons."""

    size: Size
    connection: Connection
    proxy: FaultProxy
    server: EmbeddedServer | None
    folder: Path
    name: str
    daemons: list[DaemonProcess] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    """The pids of daemons that were killed, stopped, or ended by their own worker functions."""
    expected: dict[str, str] = field(default_factory=dict)
    """By id of the job: the state that it must end in; `ended` is either."""
    recovery_s: float = 0.0

    def start(self, **settings: Any) -> DaemonProcess:
        """Start one more daemon, through the proxy."""
        environment = {
            "url": self.proxy.url,
            "prefix": self.name,
            "control_db": f"{self.name}-control",
            "beat_interval": self.size.beat_interval,
            "dead_after": self.size.dead_after,
            "sweep_interval": self.size.dead_after,
            "audit_grace": self.size.dead_after,
            "shutdown_timeout": 5,
            "request_timeout": 20,
        }
        os.environ["FAULTS_LOG"] = str(self.folder / "log")
        os.environ["FAULTS_CLOCK_OFF"] = str(settings.pop("clock_off", 0))
        process = DaemonProcess(
            HERE, "program", str(self.folder / f"daemon-{len(self.daemons)}"), **(environment | settings)
        )
        self.daemons.append(process)
        return process

    async def push(self, count: int, worker: str = "work", message: Any = None, expected: str = "done") -> list[str]:
        """Write so many jobs, straight to the server."""
        database = self.connection.settings.tenant.database("jobs")
        writer = self.connection.writer(database)
        ids = [new_id() for _ in range(count)]
        self.expected |= dict.fromkeys(ids, expected)
        body = self.size.work if worker == "work" else message
        await asyncio.gather(
            *(
                settle(writer, {"_id": one, "worker": worker, "message": body, "state": "queued"}, patience_s=60)
                for one in ids
            )
        )
        return ids

    def lines(self) -> list[tuple[str, str, str, float]]:
        """What the workers have noted: began or ended, the job, the daemon, when."""
        file = self.folder / "log"
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(what, job_id, daemon, float(at)) for what, job_id, daemon, at in rows]

    def running(self, pid: int) -> list[str]:
        """The jobs that the daemon with this pid has begun and not ended."""
        mine = [(what, job_id) for what, job_id, daemon, _ in self.lines() if pid_of(daemon) == pid]
        ended = {job_id for what, job_id in mine if what == "ended"}
        return [job_id for what, job_id in mine if what == "began" and job_id not in ended]

    async def until_begun(self, count: int) -> None:
        """Wait until so many tries have begun."""
        deadline = time.monotonic() + self.size.patience
        while True:
            if sum(what == "began" for what, *_ in self.lines()) >= count or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.05)

    async def states(self, ids: list[str]) -> dict[str, str]:
        """The states of these jobs, by id."""
        database = self.connection.database(self.connection.settings.tenant.database("jobs"))
        return {job_id: str(document.get("state")) for job_id, document in (await database.get_many(ids)).items()}

    async def until_ended(self, ids: list[str]) -> float:
        """Wait until these jobs have ended, and return how long that took."""
        began = time.monotonic()
        while time.monotonic() - began < self.size.patience:
            states = await self.states(ids)
            if all(states.get(job_id) in ENDED for job_id in ids):
                break
            await asyncio.sleep(0.2)
        return time.monotonic() - began

    async def kill(self, victim: DaemonProcess) -> None:
        """Kill a daemon that runs jobs, start another one, and time how long its jobs take to be done."""
        self.killed.add(victim.process.pid)
        victim.signal(signal.SIGKILL)
        await asyncio.to_thread(victim.wait)
        orphans = self.running(victim.process.pid)
        self.start()
        self.recovery_s = max(self.recovery_s, await self.until_ended(orphans))

    async def count(self, scenario: str) -> dict[str, Any]:
        """Wait until all is done that will be, and count from both records."""
        waited = await self.until_ended([*self.expected])
        self.recovery_s = self.recovery_s or waited
        states = await self.states([*self.expected])
        begun: defaultdict[str, list[str]] = defaultdict(list)
        ended = Counter(job_id for what, job_id, *_ in self.lines() if what == "ended")
        for what, job_id, daemon, _ in self.lines():
            if what == "began":
                begun[job_id].append(daemon)
        works = [job_id for job_id, state in self.expected.items() if state == "done"]
        twice = [job_id for job_id in works if len(begun[job_id]) > 1]
        unexplained = [job_id for job_id in twice if any(pid_of(one) not in self.killed for one in begun[job_id][:-1])]
        lost = [
            job_id
            for job_id, state in self.expected.items()
            if job_id not in states
            or (states[job_id] in ENDED and state not in (states[job_id], "ended"))
            or (state == "done" == states[job_id] and not ended[job_id])
        ]
        database = self.connection.database(self.connection.settings.tenant.database("jobs"))
        params = {"include_docs": True, "conflicts": True}
        rows = (await self.connection.server.request("GET", f"{database.path}/_all_docs", params=params))["rows"]
        return {
            "scenario": scenario,
            "jobs": len(self.expected),
            "lost": len(lost),
            "doubles": len(twice),
            "unexplained_doubles": len(unexplained),
            "stuck": sum(states.get(job_id) not in ENDED for job_id in self.expected),
            "conflicts_left": sum("_conflicts" in row["doc"] for row in rows),
            "recovery_s": round(self.recovery_s, 1),
        }


def pid_of(daemon: str) -> int:
    """The pid in a daemon's id."""
    return int(daemon.rsplit("-", 2)[1])


@asynccontextmanager
async def ground(size: Size, url: str | None) -> AsyncIterator[Ground]:
    """A fresh ground, on the embedded server unless a URL says another; nothing of it is left afterwards."""
    name = f"faults{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="couchjobs-faults-") as folder:
        server = None if url else EmbeddedServer(Path(folder) / "data")
        if server is not None:
            server.start()
        given = {"prefix": name, "control_db": f"{name}-control", "url": url or (server.url if server else "")}
        try:
            async with connect(**given) as connection, FaultProxy(given["url"]) as proxy:
                await install(connection, connection.settings.tenant)
                it = Ground(size, connection, proxy, server, Path(folder), name)
                try:
                    yield it
                finally:
                    for daemon in it.daemons:
                        daemon.end()
                    for database in await connection.server.all_databases():
                        if database.startswith(name):
                            await connection.server.delete_database(database)
        finally:
            if server is not None:
                server.stop()
