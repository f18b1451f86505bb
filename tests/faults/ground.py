"""The ground on which couchjobs is broken: a server, a proxy before it, daemons as processes, and two records."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import records
from daemons import DaemonProcess
from fault_proxy import FaultProxy

from couchjobs.couch.connection import Connection, connect
from couchjobs.couch.surely import write_surely
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.installation import install
from couchjobs.jobs.ids import new_id

HERE = Path(__file__).parent
_TOLD = 5
_SLOW_S = 60


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
    processes: int = 0
    """How many child processes each daemon has."""
    daemons: list[DaemonProcess] = field(default_factory=list)
    deaths: dict[int, float] = field(default_factory=dict)
    """By pid, when it was: of processes that were killed, stopped, or ended by their own worker functions."""
    expected: dict[str, str] = field(default_factory=dict)
    """By id of the job: the state that it must end in; `ended` is either."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

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
        os.environ["FAULTS_LOG"] = str(self.log)
        os.environ["FAULTS_CLOCK_OFF"] = str(settings.pop("clock_off", 0))
        process = DaemonProcess(
            HERE,
            "program",
            str(self.folder / f"daemon-{next(self._numbers)}"),
            ("--processes", str(self.processes)),
            **(environment | settings),
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
                write_surely(writer, {"_id": one, "worker": worker, "message": body, "state": "queued"}, patience_s=60)
                for one in ids
            )
        )
        return ids

    @property
    def log(self) -> Path:
        """The file that the workers append to."""
        return self.folder / "log"

    def lines(self) -> list[records.Line]:
        """What the workers have noted."""
        return records.read(self.log)

    def died(self, pid: int, at: float | None = None) -> None:
        """Note that a process is dead, or as good as that, since then, or now."""
        self.deaths.setdefault(pid, time.monotonic() if at is None else at)

    def orphans(self, pid: int) -> list[str]:
        """The jobs that are to be done, and whose tries a process cuts short."""
        return [
            line.job_id for line in records.cut_short(self.lines(), pid) if self.expected.get(line.job_id) == "done"
        ]

    async def until_begun(self, count: int) -> None:
        """Wait until so many tries have begun."""
        deadline = time.monotonic() + self.size.patience
        while True:
            if sum(line.what == "began" for line in self.lines()) >= count or time.monotonic() > deadline:
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
            if all(states.get(job_id) in records.ENDED for job_id in ids):
                break
            await asyncio.sleep(0.2)
        return time.monotonic() - began

    async def until_settled(self) -> list[str]:
        """Wait until no job is in conflict, as for their ends, and return those that are; say how long it took."""
        began, told = time.monotonic(), ""
        database = self.connection.database(self.connection.settings.tenant.database("jobs"))
        params = {"include_docs": True, "conflicts": True}
        while True:
            answer = await self.connection.server.request("GET", f"{database.path}/_all_docs", params=params)
            conflicts = [row["id"] for row in answer["rows"] if "_conflicts" in row["doc"]]
            waited = time.monotonic() - began
            if not conflicts or waited > self.size.patience:
                if told:
                    print(f"--- {told}; {len(conflicts)} after {waited:.1f} s", file=sys.stderr)
                return conflicts
            told = told or f"{len(conflicts)} jobs in conflict at first, {conflicts[0]} among them"
            await asyncio.sleep(0.2)

    async def kill(self, victim: DaemonProcess) -> None:
        """Kill a daemon that runs jobs, start another one, and wait until its jobs are done."""
        victim.signal(signal.SIGKILL)
        self.died(victim.process.pid)
        await asyncio.to_thread(victim.wait)
        self.start()
        await self.until_ended(self.orphans(victim.process.pid))

    async def count(self, scenario: str) -> dict[str, Any]:
        """Wait until all is done that will be, and count from both records."""
        waited = await self.until_ended([*self.expected])
        states = await self.states([*self.expected])
        lines = self.lines()
        begun = records.tries(lines)
        works = [job_id for job_id, state in self.expected.items() if state == "done"]
        lost = records.lost(lines, states, self.expected)
        unexplained = records.unexplained(lines, self.deaths, works)
        stuck = [job_id for job_id in self.expected if states.get(job_id) not in records.ENDED]
        conflicts = await self.until_settled()
        for what, job_ids in (("lost", lost), ("unexplained", unexplained), ("stuck", stuck), ("conflict", conflicts)):
            for job_id in job_ids[:_TOLD]:
                await self.tell(what, job_id, lines)
        seconds, slowest = max(records.recoveries(lines, self.deaths, self.expected), default=(waited, ""))
        if slowest and seconds > _SLOW_S:
            await self.tell("slow", slowest, lines)
        return {
            "scenario": scenario,
            "jobs": len(self.expected),
            "lost": len(lost),
            "doubles": sum(len(begun.get(job_id, ())) > 1 for job_id in works),
            "unexplained_doubles": len(unexplained),
            "stuck": len(stuck),
            "conflicts_left": len(conflicts),
            "recovery_s": round(seconds, 1),
        }

    async def tell(self, what: str, job_id: str, lines: list[records.Line]) -> None:
        """Print all that is known of a job that should have fared better: both records, and the daemons' logs."""
        print(f"--- {what}: {job_id}; deaths: {self.deaths}", file=sys.stderr)
        for line in lines:
            if line.job_id == job_id:
                print(f"    {line}", file=sys.stderr)
        database = self.connection.database(self.connection.settings.tenant.database("jobs"))
        for leaf in await database.leaves(job_id):
            print(f"    {leaf}", file=sys.stderr)
        for log in sorted(self.folder.glob("daemon-*.log")):
            for text in log.read_text(errors="replace").splitlines():
                if job_id in text or "this daemon" in text:
                    print(f"    {log.stem}: {text}", file=sys.stderr)


@asynccontextmanager
async def ground(size: Size, url: str | None, processes: int = 0) -> AsyncIterator[Ground]:
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
                it = Ground(size, connection, proxy, server, Path(folder), name, processes)
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
