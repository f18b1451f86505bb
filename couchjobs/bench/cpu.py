"""How much CPU processes of this machine take, where this user may look at them."""

from __future__ import annotations

from urllib.parse import urlsplit

import psutil

_HERE = ("127.0.0.1", "localhost", "::1")


def server_cpu_s(url: str) -> float | None:
    """Return the CPU seconds of the process that listens at `url`, and of its children; None if not to be told."""
    try:
        pids = listeners(url)
        return sum(family_cpu_s(pid) for pid in pids) if pids else None
    except psutil.Error:
        return None


def listeners(url: str) -> set[int]:
    """Return the processes of this machine that listen at `url`.

    Raises:
        psutil.Error: this user may not know.
    """
    parts = urlsplit(url)
    if parts.hostname not in _HERE:
        return set()
    return {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == parts.port and one.pid
    }


def family_cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its children have had.

    Raises:
        psutil.Error: there is no such process, or this user may not look at it.
    """
    process = psutil.Process(pid)
    return float(sum(sum(one.cpu_times()[:4]) for one in (process, *process.children(recursive=True))))
