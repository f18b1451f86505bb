"""What `deploy/` holds for Prometheus and Grafana names metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually

from couchjobs.client import Couchjobs
from couchjobs.couch.connection import Connection
from couchjobs.http.server import make_app
from couchjobs.workers.context import WorkerContext
from couchjobs.workers.registry import worker

FOLDER = Path(__file__).parents[2] / "deploy"
NAME = re.compile(r"\bcouchjobs_[a-z_]+")


@worker("measured", max_exec_count=1)
async def measured(ctx: WorkerContext, message: Any) -> None:
    """Fail where it is told to."""
    if message == "fail":
        raise ValueError(message)


async def test_rules_and_panels_when_compared_with_a_scrape_then_each_metric_is_there(
    connection: Connection, start: Callable[..., Any]
) -> None:
    """Of a daemon that has done something, and of a connection that has failed at something."""
    system = await start(measured)
    client = Couchjobs.over(connection)
    for message in ("well", "fail"):
        await client.wait((await client.push("measured", message)).job.id, 10)
    await eventually(lambda: sum(system.broker.runtime.stats.ended.values()) == 2)
    connection.server.traffic.failed["GET _changes"] += 1
    async with TestClient(TestServer(make_app(connection, system.broker.runtime))) as http:
        text = await (await http.get("/metrics")).text()
    scraped = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]
    wanted = NAME.findall(json.dumps(panels)) + NAME.findall((FOLDER / "prometheus-alerts.yml").read_text())
    assert len(set(wanted)) > 12
    assert set(wanted) - scraped == set()
