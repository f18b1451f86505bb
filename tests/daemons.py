"""Daemons as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

AS_USERS_HAVE: dict[str, Any] = {
    "beat_interval": 10,
    "dead_after": 30,
    "feed_heartbeat": 1,
    "sweep_interval": 60,
    "shutdown_timeout": 30,
    "request_timeout": 60,
}
"""The default settings, for tests that are about what users see."""


class DaemonProcess:
    """`couchjobs run` as a process of its own, with its log in a file."""

    def __init__(
        self, folder: Path, module: str, name: str, arguments: tuple[str, ...] = (), **environment: Any
    ) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "couchjobs", "run", module, *arguments],
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**os.environ, **{f"COUCHJOBS_{key.upper()}": str(value) for key, value in environment.items()}},
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout)

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def says(self, text: str) -> bool:
        """Whether the log holds this text."""
        return text in self.log.read_text()


def ran(folder: Path) -> list[tuple[str, str]]:
    """Which jobs have run, by which daemon."""
    file = folder / "ran.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line.split()[0], line.split()[1]) for line in lines]
