"""`couchjobs`: all commands, and what the user sees when one of them fails."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from couchjobs import errors, process
from couchjobs.cli import (
    bench,
    daemon,
    foresee,
    jobs,
    push,
    retention,
    secrets,
    serve,
    trigger_edit,
    trigger_list,
    triggers,
)
from couchjobs.cli.backfill import backfill
from couchjobs.cli.daemons import daemons
from couchjobs.cli.doctor import doctor
from couchjobs.cli.init import init
from couchjobs.cli.pause import pause, resume
from couchjobs.cli.queues import queues
from couchjobs.cli.top import top
from couchjobs.log import plain, redact
from couchjobs.workers.boundary import describe


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"couchjobs {version('couchjobs')}")
        raise typer.Exit


app = typer.Typer(
    help="A job engine for people whose data lives in CouchDB.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("init")(init)
app.command("run")(daemon.run)
app.command("dev")(daemon.dev)
app.command("serve")(serve.serve)
app.add_typer(serve.app, name="tokens")
app.add_typer(secrets.app, name="secrets")
app.command("push")(push.push)
app.add_typer(jobs.app, name="jobs")
app.add_typer(retention.app, name="retention")
app.command("purge")(retention.purge)
app.command("queues")(queues)
app.command("top")(top)
app.command("daemons")(daemons)
app.command("pause")(pause)
app.command("resume")(resume)
triggers.app.command("ls")(trigger_list.ls)
triggers.app.command("next")(foresee.next_times)
triggers.app.command("update")(trigger_edit.update)
triggers.app.command("enable")(trigger_edit.enable)
triggers.app.command("disable")(trigger_edit.disable)
triggers.app.command("match")(foresee.match)
triggers.app.command("test")(foresee.explain)
triggers.app.command("backfill")(backfill)
app.add_typer(triggers.app, name="triggers")
app.command("doctor")(doctor)
app.command("bench")(bench.bench)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """A job engine for people whose data lives in CouchDB."""


_NOT_THE_USERS_FAULT = (errors.Unavailable,)
_NOT_ALLOWED = (
    "; a producer pushes jobs and looks at jobs and triggers, all else is for workers and administrators:"
    " SECURITY.md says who may do what"
)


def main() -> None:
    """Run a command; exit code 2 and one line for what the user got wrong, 1 for what went wrong elsewhere."""
    try:
        app()
    except errors.CouchjobsError as error:
        hint = _NOT_ALLOWED if isinstance(error, errors.Forbidden) else ""
        print(f"couchjobs: {plain(redact(f'{_whose(error)}{error}').rstrip('.'))}{hint}", file=sys.stderr)
        process.leave(1 if isinstance(error, _NOT_THE_USERS_FAULT) else 2)  # threads of a program may go on
    except Exception as error:
        if not (whose := _whose(error)):
            raise
        own, trace = str(Path(__file__).parent.parent), traceback.TracebackException.from_exception(error)
        ours = [number for number, frame in enumerate(trace.stack) if frame.filename.startswith(own)]
        called = traceback.StackSummary.from_list(trace.stack[max(ours, default=-1) + 1 :])
        print(f"couchjobs: {plain(redact(f'{whose}{describe(error)}'))}", file=sys.stderr)
        print(redact("".join(called.format())), end="", file=sys.stderr)
        process.leave(2)


def _whose(error: BaseException) -> str:
    """Return whose function has raised that, where it is a user's; else nothing."""
    return "".join(f"{note}: " for note in getattr(error, "__notes__", ())[:1])
