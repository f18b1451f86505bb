"""What Prometheus scrapes: what this daemon has counted, and what the views say of the tenant's queues.

Views are asked once in five seconds at most, however many scrape.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.errors import CouchError, NotFound
from couchjobs.http.access import CALLER
from couchjobs.http.api import API, Api
from couchjobs.overview import first_undated, queues
from couchjobs.stats import Histogram, Stats, Traffic
from couchjobs.timestamps import now, parse_time

_KEPT_S = 5.0
_PATIENCE_S = 2.0
"""Seconds that the views may take to be brought up to date; then they are read as they are."""


class _Scrape(Collector):
    """One answer. `rows`: what the views said; None: they are not to be had."""

    def __init__(
        self, api: Api, rows: list[dict[str, Any]] | None, daemons: int | None, undated: Mapping[str, float]
    ) -> None:
        self._api = api
        self._rows = rows
        self._daemons = daemons
        self._undated = undated
        """By worker type, for how many seconds the same undated job has been seen to be due."""

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        up = GaugeMetricFamily("couchjobs_couchdb_up", "Whether CouchDB has answered.")
        up.add_metric([], float(self._rows is not None))
        yield up
        if self._daemons is not None:
            alive = GaugeMetricFamily("couchjobs_daemons", "Daemons with a document that serve the tenant.")
            alive.add_metric([], self._daemons)
            yield alive
        if self._api.presence is not None:
            age = GaugeMetricFamily("couchjobs_beat_age_seconds", "How long ago this daemon's last beat was taken.")
            age.add_metric([], self._api.presence.beat_age_s)
            yield age
        if self._api.stats is not None:
            yield from _counted(self._api.stats)
        if (age_s := self._api.feed_age_s) is not None:
            feed = GaugeMetricFamily(
                "couchjobs_feed_age_seconds", "For how long the feed of jobs has not been answered; 0 while it is well."
            )
            feed.add_metric([], age_s)
            yield feed
        yield from _asked(self._api.connection.server.traffic)
        yield from _queues(self._rows or [], self._undated)


def _counted(stats: Stats) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "couchjobs_tries", "Tries of this daemon, by what came of them.", labels=["worker", "outcome"]
    )
    for (worker, outcome), count in [*stats.ended.items()]:
        ended.add_metric([worker, outcome], count)
    yield ended
    claims = CounterMetricFamily("couchjobs_claims", "Claims of this daemon, by what came of them.", labels=["result"])
    for result, count in [*stats.claims.items()]:
        claims.add_metric([result], count)
    yield claims
    yield _histogram("couchjobs_run_seconds", "What tries took.", stats.ran, "worker")
    yield _histogram("couchjobs_wait_seconds", "From when a job was due to its claim.", stats.waited, "worker")


def _asked(traffic: Traffic) -> Iterator[Metric]:
    text = "What CouchDB's answers took, by kind of request; waits of feeds are left out."
    yield _histogram("couchjobs_couchdb_seconds", text, traffic.answered, "request")
    failed = CounterMetricFamily(
        "couchjobs_couchdb_failures", "Traffic without an answer, or with an error.", labels=["request"]
    )
    for kind, count in [*traffic.failed.items()]:
        failed.add_metric([kind], count)
    yield failed
    written = HistogramMetricFamily("couchjobs_group_commit_documents", "How many documents one request wrote.")
    written.add_metric([], _buckets(traffic.written), traffic.written.total)
    yield written


def _histogram(name: str, text: str, durations: Mapping[str, Histogram], label: str) -> HistogramMetricFamily:
    found = HistogramMetricFamily(name, text, labels=[label])
    for value, one in [*durations.items()]:
        found.add_metric([value], _buckets(one), one.total)
    return found


def _buckets(one: Histogram) -> list[tuple[str, float]]:
    return [*zip([*map(str, one.bounds), "+Inf"], map(float, accumulate(one.counts)), strict=True)]


def _queues(rows: list[dict[str, Any]], undated: Mapping[str, float]) -> Iterator[Metric]:
    for name, text in (
        ("queued", "Queued jobs, those that wait for their time included."),
        ("due", "Queued jobs whose time has come."),
        ("running", "Running jobs."),
    ):
        gauge = GaugeMetricFamily(f"couchjobs_{name}_jobs", text, labels=["worker"])
        for row in rows:
            gauge.add_metric([row["worker"]], row[name])
        yield gauge
    lag = GaugeMetricFamily("couchjobs_due_lag_seconds", "How long the oldest due job has been due.", labels=["worker"])
    paused = GaugeMetricFamily("couchjobs_paused", "Whether nobody claims jobs of the type.", labels=["worker"])
    for row in rows:
        lag.add_metric([row["worker"]], max(_age(row["oldest_due"]), undated.get(row["worker"], 0.0)))
        paused.add_metric([row["worker"]], float(row["paused"]))
    yield lag
    yield paused


def _age(time: str | None) -> float:
    try:
        since = parse_time(time) if time else None
    except ValueError:
        since = None
    return max(0.0, (now() - since).total_seconds()) if since else 0.0


class Metrics:
    """The route `GET /metrics`."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] | None = None
        self._daemons: int | None = None
        self._undated: dict[str, tuple[str, float]] = {}
        """By worker type: a due job that does not say since when, and when it was seen first."""
        self._ask_at = 0.0
        self._asking = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.Response:
        """GET /metrics: in the text format of Prometheus."""
        api = request.app[API]
        request[CALLER].check("GET", "metrics")
        async with self._asking:
            if asyncio.get_running_loop().time() >= self._ask_at:
                await self._ask(api)
        registry = CollectorRegistry(auto_describe=False)
        present = asyncio.get_running_loop().time()
        undated = {worker: present - since for worker, (_, since) in self._undated.items()}
        registry.register(_Scrape(api, self._rows, self._daemons, undated))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _ask(self, api: Api) -> None:
        self._rows, self._daemons = [], None
        rows: list[dict[str, Any]] = []
        try:
            with suppress(NotFound):  # a daemon of many tenants, none of which is without a prefix
                rows, _ = await api.freshness.read(partial(queues, api.connection, api.db), _PATIENCE_S)
            await self._look_for_undated(api, [row["worker"] for row in rows if row["due"]])
            documents = await api.connection.control.with_prefix(DAEMON)
            self._rows, self._daemons = rows, sum(api.serves(one) for one in documents)
        except CouchError:
            self._rows = self._daemons = None
        self._ask_at = asyncio.get_running_loop().time() + _KEPT_S

    async def _look_for_undated(self, api: Api, workers: Sequence[str]) -> None:
        """Note since when jobs are seen to be due that do not say it themselves: nobody else tells that they wait."""
        found = await asyncio.gather(*(first_undated(api.connection, api.db, worker) for worker in workers))
        present, before = asyncio.get_running_loop().time(), self._undated
        ids = {worker: job_id for worker, job_id in zip(workers, found, strict=True) if job_id is not None}
        self._undated = {
            worker: known if (known := before.get(worker, ("", 0.0)))[0] == job_id else (job_id, present)
            for worker, job_id in ids.items()
        }
