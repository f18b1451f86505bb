"""`run` and `dev`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from couchjobs import process
from couchjobs.cli.options import Domain, Json, LogLevel, Prefix, Url, check_tenants, print_json, settings_of
from couchjobs.embedded.server import EmbeddedServer
from couchjobs.errors import ConfigurationError
from couchjobs.http.address import read_address
from couchjobs.log import configure_logging
from couchjobs.pid_one import leave_pid_one
from couchjobs.system import run_daemon
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
    tenants: Annotated[
        str | None,
        typer.Option(
            "--tenants",
            metavar="all|documents|FILE",
            help="Serve many tenants: all that have a database of jobs, those of documents tenant:<domain> in the "
            "control database, or of a file with a prefix a line.",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Also serve jobs, triggers, health and metrics over HTTP."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option("--processes", min=0, help="Run the functions in so many processes, each with all slots."),
    ] = 0,
    max_jobs_per_child: Annotated[
        int, typer.Option("--max-jobs-per-child", min=0, help="Replace a child after so many jobs; 0 for never.")
    ] = 0,
    loop: Annotated[str, typer.Option("--loop", help="The event loop: uvloop or asyncio.")] = "uvloop",
    watch: Annotated[
        bool, typer.Option("--watch", help="Start anew when a Python file in this folder changes; for development.")
    ] = False,
    log_level: LogLevel = "info",
    as_json: Json = False,
) -> None:
    """Run a daemon: fire triggers, claim jobs, do the work, until SIGTERM or Ctrl-C."""
    leave_pid_one()
    if watch:
        _watch()
        return
    settings = settings_of(url, domain, prefix)
    if loop not in process.LOOPS:
        raise ConfigurationError(f"--loop {loop!r}: {' or '.join(process.LOOPS)}")
    check_tenants(settings, tenants)
    address = None if http is None else read_address(http)
    configure_logging(log_level)
    for number in (signal.SIGTERM, signal.SIGINT):  # until the daemon has handlers of its own
        signal.signal(number, lambda _number, _frame: process.leave(0))
    workers = load_workers(modules)
    if as_json:
        print_json({"pid": os.getpid(), "workers": workers.names()})
    pool = None
    if processes:
        pool = ChildPool(processes, modules, workers, settings, log_level, max_jobs_per_child, loop)
    process.run(run_daemon(settings, workers, pool, tenants, address), loop)
    process.leave(0)


def _watch() -> None:
    """Run the same command without --watch, and anew whenever a Python file changes."""
    try:
        from watchfiles import PythonFilter, run_process  # noqa: PLC0415  an extra
    except ImportError:
        raise ConfigurationError("--watch needs an extra: pip install 'couchjobs[watch]'") from None
    command = [sys.executable, "-m", "couchjobs", *(word for word in sys.argv[1:] if word != "--watch")]
    run_process(Path.cwd(), target=shlex.join(command), target_type="command", watch_filter=PythonFilter())


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
    leave_pid_one()
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
