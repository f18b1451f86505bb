"""Starting and stopping one embedded server. It ends with the process that started it."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from couchjobs.embedded.node import find_node, install_server
from couchjobs.errors import ConfigurationError

_START_S = 30
_STOP_S = 10
_PASSWORD_FILE = "password"  # noqa: S105  the name of a file


@dataclass
class EmbeddedServer:
    """A PouchDB server on 127.0.0.1. `start` before use, `stop` after, or use as a context manager.

    Args:
        data: the folder for its databases; None keeps them in memory.
        port: 0 takes a free one.
        user: the administrator.
        password: of the administrator; None: the one in the data folder, generated where there is none yet.
    """

    data: Path | None = None
    port: int = 0
    user: str = "admin"
    password: str | None = None

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __repr__(self) -> str:
        return f"<EmbeddedServer at {self.bare_url}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bare_url(self) -> str:
        """Return the URL without credentials."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Return the URL with the administrator's credentials."""
        return f"http://{self.user}:{self.password}@127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the process id of the running server.

        Raises:
            ConfigurationError: it does not run.
        """
        if self._process is None:
            raise ConfigurationError("the embedded server does not run")
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it answers; installs what it needs the first time.

        Raises:
            ConfigurationError: it cannot start (port taken, no Node, folder not writable).
        """
        folder = install_server()
        if self.password is None:
            self.password = _password_of(self.data)
        if self.data is not None:
            self.data.mkdir(parents=True, exist_ok=True)
        settings = {
            "data": str(self.data.resolve()) if self.data else None,
            "port": self.port,
            "user": self.user,
            "password": self.password,
        }
        self._process = subprocess.Popen(  # noqa: S603
            [*find_node(), str(folder / "main.js")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "COUCHJOBS_EMBEDDED": json.dumps(settings), "NODE_NO_WARNINGS": "1"},
        )
        said = self._first_line()
        if "port" not in said:
            self.stop()
            reason = said.get("error", "no answer; is another one using that data folder?")
            hint = "; the port is taken: choose another, 0 takes a free one" if reason == "EADDRINUSE" else ""
            raise ConfigurationError(f"the embedded server did not start on port {self.port}: {reason}{hint}")
        self.port = said["port"]

    def stop(self) -> None:
        """Stop the server and wait until it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self.stop()

    def ended(self) -> bool:
        """Return whether the server has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def _first_line(self) -> dict[str, Any]:
        if self._process is None or self._process.stdout is None:
            return {}
        ready, _, _ = select.select([self._process.stdout], [], [], _START_S)
        line = self._process.stdout.readline() if ready else ""
        said: dict[str, Any] = json.loads(line) if line else {}
        return said


def _password_of(data: Path | None) -> str:
    if data is None:
        return secrets.token_urlsafe(18)
    file = data / _PASSWORD_FILE
    if not file.exists():
        data.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(secrets.token_urlsafe(18))
    return file.read_text().strip()
