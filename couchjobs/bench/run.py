"""One run of all measurements, in databases of its own, which it removes."""

from __future__ import annotations

import resource
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from couchjobs.bench.cpu import server_cpu_s
from couchjobs.bench.engine import (
    FEW_SLOTS,
    SINGLE_JOBS,
    measure_bytes,
    measure_drain,
    measure_end_to_end,
    measure_enqueue,
    measure_half_load,
    until_quiet,
)
from couchjobs.bench.figures import percentile
from couchjobs.bench.growth import measure_burst, measure_growth, measure_one_by_one, measure_tenants
from couchjobs.bench.limit import measure_latency_limit, measure_limit, measure_limit_in_turns
from couchjobs.bench.scale import scale
from couchjobs.couch.connection import connect
from couchjobs.installation import install, install_control
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured; the ratios are shares of the limits."""

    server: str
    jobs: int
    limit_jobs_per_s: float
    """Each created, read once, claimed and ended by bare bulk requests."""
    drain_limit_jobs_per_s: float
    """The same without their creation."""
    drain_limit_at_100_slots_jobs_per_s: float
    """The same for 100 slots: each request ends a hundred jobs and claims the next hundred."""
    drain_jobs_per_s: float
    end_to_end_jobs_per_s: float
    latency_limit_ms: Percentiles
    """Of a job at rest, by bare requests: it is written, a feed that waits shows it, it is claimed."""
    latency_ms: Percentiles
    """Of a job at rest, from the request to the start of its function."""
    latency_at_half_load_ms: Percentiles
    """In the database in which `end_to_end_jobs_per_s` was measured, with its ended jobs."""
    drain_ratio: float
    """Of `drain_limit_jobs_per_s`."""
    drain_at_100_slots_jobs_per_s: float
    """With a concurrency of 100, where the other figures have one of 1,000."""
    drain_at_100_slots_ratio: float
    """Of `drain_limit_jobs_per_s`, too."""
    drain_ratio_at_100_slots: float
    """Of `drain_limit_at_100_slots_jobs_per_s`."""
    end_to_end_ratio: float
    """Of `limit_jobs_per_s`."""
    enqueue_jobs_per_s: dict[str, float]
    """`bulk` by `push_jobs`, `single` by 16 concurrent programs."""
    cpu_ms_per_job: float
    """Of the daemon, for jobs that are written and drained."""
    server_cpu_ms_per_job: float | None
    """The same of the server, where it runs on this machine."""
    bytes_per_job: float
    """On disk, after compaction; 0 where the server does not say."""
    memory_mb: float
    """The most that this process has had."""
    scale: dict[str, dict[str, float]] | None = None
    """Drain with 1, 2, 4, 8 `daemons` or child `processes`, as shares of one daemon that runs the functions itself;
    `busy_processes`: the same with 20 ms of CPU a job; `daemons_cpu`: what share of all cores' time daemons took."""

    def as_json(self) -> dict[str, object]:
        """Return the result as JSON has it."""
        return asdict(self)


async def run_bench(settings: Settings, jobs: int, *, scaled: bool = False) -> BenchResult:
    """Measure and return the result; `scaled`: with several processes and daemons too, which takes minutes."""
    name = f"bench-{secrets.token_hex(4)}"
    settings = settings.model_copy(update={"control_db": f"{name}-control"})
    tenants = [
        Prefixer("bench", f"{name}-{part}") for part in ("limit", "drain", "few", "end", "push", "turns", "rest")
    ]
    async with connect(settings) as connection:
        welcome = await connection.server.welcome()
        try:
            for tenant in tenants:
                await install(connection, tenant)
            await until_quiet(connection.server)
            bare = connection.database(tenants[0].database(settings.jobs_doctype))
            limit, drain_limit = await measure_limit(bare, jobs)
            await until_quiet(connection.server)
            [turns, rest] = [connection.database(tenant.database(settings.jobs_doctype)) for tenant in tenants[5:]]
            latency_limit = await measure_latency_limit(rest, SINGLE_JOBS)
            await until_quiet(connection.server)
            cpu, server_cpu = time.process_time(), server_cpu_s(connection.server.url)
            drain = await measure_drain(connection, tenants[1], jobs)
            cpu = time.process_time() - cpu
            if server_cpu is not None:
                server_cpu = (server_cpu_s(connection.server.url) or server_cpu) - server_cpu
            await until_quiet(connection.server)
            end_to_end, latencies = await measure_end_to_end(connection, tenants[3], jobs)
            await until_quiet(connection.server)
            at_half_load = await measure_half_load(connection, tenants[3], end_to_end / 2)
            await until_quiet(connection.server)
            bulk, single = await measure_enqueue(connection, tenants[4], jobs)
            await until_quiet(connection.server)
            drain_limit_few = await measure_limit_in_turns(turns, jobs, FEW_SLOTS)
            await until_quiet(connection.server)
            drain_few = await measure_drain(connection, tenants[2], jobs, FEW_SLOTS)  # after what older ones have, too
            on_disk = await measure_bytes(connection.database(tenants[1].database(settings.jobs_doctype)))
            shares = await scale(connection, name, jobs) if scaled else None
        finally:
            for tenant in tenants:
                for doctype in (settings.jobs_doctype, settings.triggers_doctype):
                    await connection.server.delete_database(tenant.database(doctype))
            await connection.server.delete_database(settings.control_db)
    vendor = welcome.get("vendor", {}).get("name", "")
    return BenchResult(
        server=f"{vendor} {welcome.get('version', '')}".strip(),
        jobs=jobs,
        limit_jobs_per_s=round(limit, 1),
        drain_limit_jobs_per_s=round(drain_limit, 1),
        drain_limit_at_100_slots_jobs_per_s=round(drain_limit_few, 1),
        drain_jobs_per_s=round(drain, 1),
        end_to_end_jobs_per_s=round(end_to_end, 1),
        latency_limit_ms=Percentiles(percentile(latency_limit, 0.5), percentile(latency_limit, 0.99)),
        latency_ms=Percentiles(percentile(latencies, 0.5), percentile(latencies, 0.99)),
        latency_at_half_load_ms=Percentiles(percentile(at_half_load, 0.5), percentile(at_half_load, 0.99)),
        drain_ratio=round(drain / drain_limit, 3),
        drain_at_100_slots_jobs_per_s=round(drain_few, 1),
        drain_at_100_slots_ratio=round(drain_few / drain_limit, 3),
        drain_ratio_at_100_slots=round(drain_few / drain_limit_few, 3),
        end_to_end_ratio=round(end_to_end / limit, 3),
        enqueue_jobs_per_s={"bulk": round(bulk, 1), "single": round(single, 1)},
        cpu_ms_per_job=round(1000 * cpu / jobs, 3),
        server_cpu_ms_per_job=None if server_cpu is None else round(1000 * server_cpu / jobs, 3),
        bytes_per_job=round(on_disk, 1),
        memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        scale=shares,
    )


@dataclass(frozen=True, slots=True)
class Growth:
    """Which measurements of growth are wanted."""

    growth: bool = False
    full: bool = False
    burst: bool = False
    tenants: int = 0
    one_by_one: bool = False

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return self.growth or self.burst or self.tenants > 0 or self.one_by_one


async def run_growth(settings: Settings, jobs: int, wanted: Growth) -> dict[str, Any]:
    """Measure what is wanted, with daemons in processes of their own, at the settings that everybody has.

    `jobs`: how many a burst has, and how many are pushed one by one.
    """
    name = f"bench-{secrets.token_hex(4)}"
    settings = settings.model_copy(update={"control_db": f"{name}-control"})
    found: dict[str, Any] = {}
    async with connect(settings) as connection:
        welcome = await connection.server.welcome()
        found["server"] = f"{welcome.get('vendor', {}).get('name', '')} {welcome.get('version', '')}".strip()
        await install_control(connection)
        try:
            if wanted.growth:
                found["growth"] = await measure_growth(connection, name, full=wanted.full)
            if wanted.one_by_one:
                found["one_by_one"] = await measure_one_by_one(connection, name, jobs)
            if wanted.burst:
                found["burst"] = await measure_burst(connection, name, jobs)
            if wanted.tenants:
                found["tenants"] = await measure_tenants(connection, name, wanted.tenants)
        finally:
            for database in await connection.server.databases_from(name):
                await connection.server.delete_database(database)
    return found
