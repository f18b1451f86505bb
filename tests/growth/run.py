"""`scripts/growth`: one long run, as JSON; exit code 1 where something was lost or done twice."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import orjson

sys.path[:0] = [str(Path(__file__).parent.parent)]

from nodes import nodes  # noqa: E402
from retention import retention  # noqa: E402
from soak import soak  # noqa: E402
from tenants import tenants  # noqa: E402

from couchjobs.log import configure_logging  # noqa: E402

MUST_BE_NONE = ("lost", "left", "ran_again", "orders_lost", "old_orders_fired")


def chosen(given: argparse.Namespace) -> Coroutine[Any, Any, dict[str, Any]]:
    """The run that the command line names."""
    match given.run:
        case "retention":
            return retention(given.url, given.jobs, given.rate, given.node_command, given.stays)
        case "nodes":
            return nodes(given.url, given.rate, given.node_command, given.stays)
        case "tenants":
            return tenants(given.url, given.count)
        case _:
            return soak(given.url, given.minutes, given.rate)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Runs of minutes, with what they count as JSON.")
    runs = parser.add_subparsers(dest="run", required=True)
    one = {
        "retention": runs.add_parser("retention", help="finished jobs go by rules while others run"),
        "nodes": runs.add_parser("nodes", help="a node of a cluster is killed thrice, and started again"),
        "tenants": runs.add_parser("tenants", help="many tenants on one daemon, one of them with 100,000 jobs"),
        "soak": runs.add_parser("soak", help="five tenants, rules of a minute, daemons that are replaced"),
    }
    for name, parser_of in one.items():
        parser_of.add_argument(
            "--url", required=name == "nodes", help="a CouchDB, or nodes of a cluster with commas between"
        )
    for name, rate in (("retention", 500), ("nodes", 100), ("soak", 200)):
        one[name].add_argument("--rate", type=float, default=rate, help="jobs a second")
    for name in ("retention", "nodes"):
        is_needed = name == "nodes"
        one[name].add_argument("--node-command", required=is_needed, help="called with stop, then start, of one node")
        one[name].add_argument("--stays", required=is_needed, help="the other nodes, with commas between")
    one["retention"].add_argument("--jobs", type=int, default=50_000, help="finished jobs; four fifths are old")
    one["tenants"].add_argument("--count", type=int, default=1000, help="of tenants")
    one["soak"].add_argument("--minutes", type=float, default=20)
    given = parser.parse_args()
    configure_logging("error")
    result = asyncio.run(chosen(given))
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    sys.exit(any(result.get(name) for name in MUST_BE_NONE))


if __name__ == "__main__":
    main()
