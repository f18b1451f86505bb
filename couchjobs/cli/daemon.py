"""`run` and `dev`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from couchjobs import process
from couchjobs.cli.options import Domain, Json, LogLevel, Prefix, Url, print_json, settings_of
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.errors import ConfigurationError
from couchjobs.log import configure_logging
from couchjobs.settings import Settings
from couchjobs.system import run_daemon
from couchjobs.workers.config import WorkersList
from couchjobs.workers.loading import load_workers
from couchjobs.workers.pool import ChildPool

_PARENT_LOOK_S = 0.5


def run(
    modules: Annotated[
        list[str], typer.Argument(help="Modules whose @worker functions do the work, such as myapp.jobs.")
    ],
    url: Url = None,
    domain: Domain = None,
    prefix: Prefix = None,
    processes: Annotated[
        int,
        typer.Option("--processes", min=0, help="Run the functions in so many processes, each with all slots."),
    ] = 0,
    max_jobs_per_child: Annotated[
        int, typer.Option("--max-jobs-per-child", min=0, help="Replace a child after so many jobs; 0 for never.")
    ] = 0,
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
    process.run(_run_to_the_end(settings, workers, modules, processes, log_level, max_jobs_per_child))


async def _run_to_the_end(
    settings: Settings, workers: WorkersList, modules: list[str], processes: int, log_level: str, max_jobs: int
) -> None:
    """Run the daemon; a worker function that ignores being cancelled must not keep the process alive."""
    pool = ChildPool(processes, modules, workers, settings, log_level, max_jobs) if processes else None
    await run_daemon(settings, workers, pool)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if left or any(not thread.daemon for thread in others):
        process.leave(0)


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
