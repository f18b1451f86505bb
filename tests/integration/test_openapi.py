"""What `/openapi.json` says is what the routes do: schemathesis asks them, with good attributes and bad ones.

`COUCHJOBS_TEST_EXAMPLES` says how many examples of each route are tried.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from couchjobs.couch.connection import Connection
from couchjobs.http import gate
from couchjobs.http.events import Events
from couchjobs.http.metrics import Metrics
from couchjobs.http.routes import routes
from couchjobs.http.server import make_app

EXAMPLES = os.environ.get("COUCHJOBS_TEST_EXAMPLES", "5")
NOT_ASKED = ("positive_data_acceptance", "allow_header_conformance", "unsupported_method")
"""A schema cannot say which trigger makes sense; and what a path does not take, another one with the same form may."""
LONGEST_S = 100


async def test_routes_when_asked_by_schemathesis_then_no_500_and_no_answer_outside_the_schema(
    connection: Connection, monkeypatch: Any, tmp_path: Path
) -> None:
    """All but the endless one; the limit of requests is as high as it needs."""
    monkeypatch.setattr(gate, "_PER_S", 100_000.0)
    monkeypatch.setattr(gate, "_BURST", 100_000.0)
    async with TestServer(make_app(connection)) as server:
        command = [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", str(server.make_url("/openapi.json"))),
            *("--exclude-path", "/events", "--max-examples", EXAMPLES, "--phases", "coverage,fuzzing"),
            *("--exclude-checks", ",".join(NOT_ASKED), "--generation-database", "none", "--no-color"),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(), LONGEST_S)
    assert process.returncode == 0, output.decode()


async def test_documentation_when_compared_with_the_routes_then_it_names_each_with_its_scope(
    connection: Connection,
) -> None:
    """The table of docs/http.md, and what the server describes."""
    text = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    app = make_app(connection)
    async with TestClient(TestServer(app)) as client:
        described = await (await client.get("/openapi.json")).json()
    for path, methods in described["paths"].items():
        named = path.replace("{", ":").replace("}", "")
        tail = named.removeprefix("/jobs/triggers/:id") if named.startswith("/jobs/triggers/:id/") else named
        assert re.search(re.escape(f"{tail}") + r"[`?\[]", text) or f"/{named.rpartition('/')[2]}`" in text, named
        assert {method.upper() for method in methods} <= {"GET", "POST", "PATCH", "DELETE"}
    served = {(one.method, one.resource.canonical) for one in app.router.routes() if one.resource is not None}
    assert {(one.method, one.path) for one in routes(Events(), Metrics())} <= served
