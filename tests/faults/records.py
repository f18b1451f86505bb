"""Two independent records of what became of the jobs: a log that the workers append to, and the documents."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ENDED = ("done", "errored")


@dataclass(frozen=True)
class Line:
    """What a worker has noted: a try began or ended, in which daemon and in which of its processes, and when."""

    what: str
    job_id: str
    daemon: str
    pid: int
    at: float

    @property
    def pids(self) -> set[int]:
        """The processes whose death ends the try."""
        return {self.pid, int(self.daemon.rsplit("-", 2)[1])}


def read(log: Path) -> list[Line]:
    """All lines of the log."""
    rows = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [Line(what, job_id, daemon, int(pid), float(at)) for what, job_id, daemon, pid, at in rows]


def tries(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """The tries of each job: the lines that say that one began."""
    begun: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.what == "began":
            begun[line.job_id].append(line)
    return dict(begun)


def cut_short(lines: Iterable[Line], pid: int, died: float = math.inf) -> list[Line]:
    """The tries that began in this process, or in a child of it, before it died, and had not ended by then."""
    lines = [line for line in lines if line.at <= died]
    ended = {(line.job_id, line.pid) for line in lines if line.what == "ended"}
    return [
        line for line in lines if line.what == "began" and pid in line.pids and (line.job_id, line.pid) not in ended
    ]


def recoveries(lines: list[Line], deaths: Mapping[int, float], expected: Mapping[str, str]) -> list[tuple[float, str]]:
    """Of each job that a death cut short: the seconds from that death to its next try, and its id.

    A job that nobody has begun again, although it was to be done, counts as lost or stuck, and not here.
    """
    begun = tries(lines)
    return [
        (again.at - died, line.job_id)
        for pid, died in deaths.items()
        for line in cut_short(lines, pid, died)
        if expected.get(line.job_id) == "done"
        for again in [next((other for other in begun[line.job_id] if other.at > died), None)]
        if again is not None
    ]


def unexplained(lines: Iterable[Line], deaths: Collection[int], job_ids: Iterable[str]) -> list[str]:
    """Those of the jobs that were run again although no process of the try before had died."""
    begun = tries(lines)
    return [job_id for job_id in job_ids if any(not line.pids & {*deaths} for line in begun.get(job_id, [])[:-1])]


def lost(lines: Iterable[Line], states: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """The jobs that are gone, that ended in another state than the one expected, or of whose end only one record knows.

    `expected` is `done`, `errored`, or `ended` for either.
    """
    ended = {line.job_id for line in lines if line.what == "ended"}
    return [
        job_id
        for job_id, wanted in expected.items()
        if job_id not in states
        or (states[job_id] in ENDED and wanted not in (states[job_id], "ended"))
        or (wanted == "done" == states[job_id] and job_id not in ended)
    ]
