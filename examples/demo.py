"""The demo: an embedded server, two daemons, documents written with plain HTTP, and the life of each job.

It uses the library for one thing alone, to start the server. Everything else is what anybody would do with curl. On a
terminal it stays up, with its dashboard, until Ctrl-C; with `--once` it ends by itself.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from couchjobs.embedded.server import EmbeddedServer

FOLDER = Path(__file__).parent
STEPS = {"queued": "queued   ", "running": "running  ", "done": "done     ", "errored": "errored  "}
JOBS = 5
LONGEST_S = 60


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


class Http:
    """Plain HTTP, as curl would do it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._url = server.bare_url
        self._credentials = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON of the answer."""
        request = urllib.request.Request(  # noqa: S310  127.0.0.1 alone
            f"{self._url}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {self._credentials}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def show(self, method: str, path: str, body: Any = None) -> Any:
        """The same, and print what would be typed."""
        data = f" -d '{json.dumps(body)}'" if body is not None else ""
        say(f"  $ curl -X {method} $COUCHJOBS_URL/{path}{data}")
        return self(method, path, body)


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def start_daemon(server: EmbeddedServer, number: int, log: Path, port: int) -> subprocess.Popen[bytes]:
    """Start `couchjobs run orders`, with a dashboard on that port, and return the process."""
    environment = {**os.environ, "COUCHJOBS_URL": server.url, "COUCHJOBS_DOMAIN": "shop.example"}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  this very Python
            [sys.executable, "-m", "couchjobs", "run", "orders", "--http", f"127.0.0.1:{port}"],
            cwd=FOLDER,
            stdout=output,
            stderr=output,
            env=environment,
        )
    say(f"  daemon {number}: pid {process.pid}, log {log}")
    return process


def wait_for_daemons(http: Http, count: int) -> dict[str, str]:
    """Return the daemons' short names by their ids, once so many have announced themselves."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        try:
            rows = http("GET", "couchjobs/_all_docs?startkey=%22daemon:%22&endkey=%22daemon:~%22&include_docs=true")[
                "rows"
            ]
        except OSError:
            rows = []
        if len(rows) == count:
            rows.sort(key=lambda row: row["doc"]["pid"])
            return {row["id"].removeprefix("daemon:"): f"daemon {number}" for number, row in enumerate(rows, 1)}
        time.sleep(0.1)
    raise SystemExit("the daemons did not start; see their logs")


def follow(http: Http, daemons: dict[str, str]) -> list[dict[str, Any]]:
    """Print each state of each job as the changes feed tells it; return the documents once all have ended."""
    since, ended = "0", {}
    deadline = time.monotonic() + LONGEST_S
    while len(ended) < JOBS and time.monotonic() < deadline:
        page = http("GET", f"jobs/_changes?feed=longpoll&include_docs=true&timeout=2000&since={since}")
        since = page["last_seq"]
        for job in (row["doc"] for row in page["results"] if "worker" in row.get("doc", {})):
            note = f"by {daemons.get(job['claim']['daemon'], '?')}" if "claim" in job else ""
            if job["state"] == "queued" and job.get("errors"):
                note = f"again at {job['scheduled_at'][11:19]}, for it failed: {job['errors'][-1]['error']}"
            if "result" in job:
                note += f", result {json.dumps(job['result'])}"
            say(f"  {job['worker']:9} {job['_id'][:26]:26} {STEPS[job['state']]} {note}")
            if job["state"] in ("done", "errored"):
                ended[job["_id"]] = job
    return list(ended.values())


def main() -> int:
    """Run the demo and return the exit code."""
    began = time.monotonic()
    logs = [FOLDER.parent / f"demo-daemon-{number}.log" for number in (1, 2)]
    daemons: list[subprocess.Popen[bytes]] = []
    ports = [free_port() for _ in logs]
    stays = sys.stdout.isatty() and "--once" not in sys.argv[1:]
    with EmbeddedServer() as server:
        http = Http(server)
        say(f"The embedded server runs at {server.bare_url} (PouchDB; production means Apache CouchDB).\n")
        try:
            say("Two daemons, on one machine or on many, need nothing but its URL:")
            for number, (log, port) in enumerate(zip(logs, ports, strict=True), 1):
                daemons.append(start_daemon(server, number, log, port))
            names = wait_for_daemons(http, len(daemons))
            say(f"  their dashboard: http://127.0.0.1:{ports[0]}/dashboard")
            say("\nA database of orders, and a trigger document: a mail for each order that is paid.")
            http.show("PUT", "orders")
            trigger = {
                "type": "@event",
                "arguments": "orders:CREATED,UPDATED:paid:status",
                "worker": "sendmail",
                "message": {"template": "thanks"},
            }
            http.show("PUT", "triggers/thank-you", trigger)
            wait_for_checkpoint(http)
            say("\nOrders, as any client would write them; one of them is not paid yet.")
            for name, status in (("ann", "paid"), ("bob", "open"), ("cleo", "paid")):
                http.show("PUT", f"orders/{name}", {"customer": f"{name}@example.org", "status": status})
            bob = http("GET", "orders/bob")
            http.show("PUT", "orders/bob", {**bob, "status": "paid"})
            say("\nJobs written by hand; the invoice will fail once and be tried again.")
            mail = {"worker": "sendmail", "message": {"template": "hello", "to": "dora@example.org"}, "state": "queued"}
            http.show("PUT", "jobs/by-hand", mail)
            http.show("PUT", "jobs/invoice-1", {"worker": "invoice", "message": None, "state": "queued"})
            say("\nThe life of each job, from the changes feed:")
            jobs = follow(http, names)
            seconds = time.monotonic() - began
            if stays:
                stay(ports[0])
        finally:
            for process in daemons:
                process.terminate()
            codes = [process.wait(30) for process in daemons]
    return report(jobs, codes, seconds)


def stay(port: int) -> None:
    """Leave everything up until Ctrl-C."""
    say(f"\nLook at them: http://127.0.0.1:{port}/dashboard   (Ctrl-C ends the demo)")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def wait_for_checkpoint(http: Http) -> None:
    """Return once a daemon follows the database of orders, which takes it a few milliseconds."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        if http("GET", "couchjobs/_all_docs?startkey=%22checkpoint:%22&endkey=%22checkpoint:~%22")["rows"]:
            return
        time.sleep(0.02)


def report(jobs: list[dict[str, Any]], codes: list[int], seconds: float) -> int:
    """Say what came of it and return the exit code."""
    done = sum(job["state"] == "done" for job in jobs)
    say(f"\n{done} of {JOBS} jobs done in {seconds:.1f} s; the daemons ended with {codes}; nothing is left running.")
    return 0 if done == JOBS and codes == [0, 0] else 1


if __name__ == "__main__":
    sys.exit(main())
