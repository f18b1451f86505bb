"""`run` and `dev`."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
import uvloop

from couchjobs.broker.runner import TASKS, THREADS
from couchjobs.cli.options import Domain, Json, LogLevel, Prefix, Url, print_json, settings_of
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.errors import ConfigurationError
from couchjobs.log import configure_logging
from couchjobs.settings import Settings
from couchjobs.system import run_daemon
from couchjobs.workers.config import WorkersList
from couchjobs.workers.registry import get_workers_list, workers_of

_PARENT_LOOK_S = 0.5


def run(
    modules: Annotated[
        list[str], typer.Argument(help="Modules whose @worker functions do the work, such as myapp.jobs.")
    ],
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    log_level: LogLevel = "info",
    as_json: Json = False,
) -> None:
    """Run a daemon: fire triggers, claim jobs, do the work, until SIGTERM or Ctrl-C."""
    settings = settings_of(url, domain, prefix)
    if log_level not in ("debug", "info", "warning", "error"):
        raise ConfigurationError(f"--log-level {log_level!r}: debug, info, warning or error")
    configure_logging(log_level)
    workers = load_workers(modules)
    if as_json:
        print_json({"pid": os.getpid(), "workers": workers.names()})
    uvloop.run(_run_to_the_end(settings, workers))


async def _run_to_the_end(settings: Settings, workers: WorkersList) -> None:
    """Run the daemon; a worker function that ignores being cancelled must not keep the process alive."""
    await run_daemon(settings, workers)
    names = [task.get_name() for task in asyncio.all_tasks()] + [thread.name for thread in threading.enumerate()]
    if any(name.startswith((TASKS, THREADS)) for name in names):
        sys.stderr.flush()
        os._exit(0)


def load_workers(names: list[str]) -> WorkersList:
    """Return the workers of these modules; the working directory is importable.

    Raises:
        ConfigurationError: a module cannot be imported, or there is no worker in them.
    """
    sys.path.insert(0, str(Path.cwd()))
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name.removeprefix("./").removesuffix(".py").replace("/", ".")))
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"module {name!r} cannot be imported: {error} (looked in {Path.cwd()} and the Python path)"
            ) from error
        except ConfigurationError:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = getattr(error, "lineno", None) or where.lineno
            file = getattr(error, "filename", None) or where.filename
            raise ConfigurationError(
                f"module {name!r} fails when it is imported: {type(error).__name__}: {error} ({file}, line {line})"
            ) from error
    workers = workers_of(*modules)
    for config in get_workers_list():
        workers.add(config)
    if not len(workers):
        raise ConfigurationError(f"there is no @worker function in {', '.join(names)}")
    return workers


def dev(
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder for the databases. Defaults to ~/.local/share/couchjobs.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Keep the databases in memory.")] = False,
    port: Annotated[
        int, typer.Option("--port", help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)
    ] = 5984,
    as_json: Json = False,
) -> None:
    """Start the embedded server, for trying things out. Production means Apache CouchDB.

    It ends with Ctrl-C, or with the shell that started it. The administrator is `admin`; the password is
    COUCHJOBS_PASSWORD, or one that is generated into the data folder.
    """
    if memory and data is not None:
        raise ConfigurationError("--data and --memory exclude each other")
    if not memory and data is None:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "couchjobs"
    parent = os.getppid()
    server = EmbeddedServer(data, port, password=os.environ.get("COUCHJOBS_PASSWORD"))
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with server:
        if as_json:
            print_json({"url": server.url, "port": server.port, "pid": server.pid, "data": str(data) if data else None})
        else:
            print(f"The embedded server runs at {server.bare_url}, data in {data or 'memory'}. Ctrl-C ends it.")
            print(f"  export COUCHJOBS_URL={server.url}", flush=True)
        while not stopping.wait(_PARENT_LOOK_S):
            if os.getppid() != parent:
                break
            if server.ended():
                raise ConfigurationError("the embedded server has ended by itself; its last words are above")
