"""One run of all measurements, in databases of its own, which it removes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from couchjobs.bench.engine import measure_drain, measure_end_to_end
from couchjobs.bench.limit import measure_limit
from couchjobs.couch.connection import connect
from couchjobs.installation import install
from couchjobs.prefixer import Prefixer
from couchjobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured; the ratios are shares of the limit."""

    server: str
    jobs: int
    limit_jobs_per_s: float
    drain_jobs_per_s: float
    end_to_end_jobs_per_s: float
    latency_ms: Percentiles
    drain_ratio: float
    end_to_end_ratio: float

    def as_json(self) -> dict[str, object]:
        """Return the result as JSON has it."""
        return asdict(self)


async def run_bench(settings: Settings, jobs: int) -> BenchResult:
    """Measure and return the result."""
    name = f"bench-{secrets.token_hex(4)}"
    settings = settings.model_copy(update={"control_db": f"{name}-control"})
    tenants = [Prefixer("bench", f"{name}-{part}") for part in ("limit", "drain", "end")]
    async with connect(settings) as connection:
        welcome = await connection.server.welcome()
        try:
            for tenant in tenants:
                await install(connection, tenant)
            limit = await measure_limit(connection.database(tenants[0].database(settings.jobs_doctype)), jobs)
            drain = await measure_drain(connection, tenants[1], jobs)
            end_to_end, latencies = await measure_end_to_end(connection, tenants[2], jobs)
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
        drain_jobs_per_s=round(drain, 1),
        end_to_end_jobs_per_s=round(end_to_end, 1),
        latency_ms=Percentiles(percentile(latencies, 0.5), percentile(latencies, 0.99)),
        drain_ratio=round(drain / limit, 3),
        end_to_end_ratio=round(end_to_end / limit, 3),
    )


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return the value below which that share of the values lies, in milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
