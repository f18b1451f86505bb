"""How much CPU the server takes, where it runs on this machine and this user may look at it."""

from __future__ import annotations

from urllib.parse import urlsplit

import psutil

_HERE = ("127.0.0.1", "localhost", "::1")


def server_cpu_s(url: str) -> float | None:
    """Return the CPU seconds of the process that listens at `url`, and of its children; None if not to be told."""
    parts = urlsplit(url)
    if parts.hostname not in _HERE:
        return None
    try:
        pids = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == parts.port and one.pid
        }
        found = [child for pid in pids for child in _family(psutil.Process(pid))]
        return sum(sum(process.cpu_times()[:4]) for process in found) if found else None
    except psutil.Error:
        return None


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]
