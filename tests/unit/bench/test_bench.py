"""The arithmetic of the bench."""

from __future__ import annotations

from couchjobs.bench.compare import ratios
from couchjobs.bench.figures import percentile


def test_ratios_when_runs_vary_then_of_the_medians_and_of_common_figures_alone() -> None:
    """One odd run does not count; what only one of the commits measures is left out."""
    theirs = [{"drain_jobs_per_s": rate, "latency_ms": {"p50": 10, "p99": 40}} for rate in (100, 1000, 110)]
    ours = [{"drain_jobs_per_s": rate, "latency_ms": {"p50": 5, "p99": 40}, "memory_mb": 50} for rate in (220, 210, 1)]
    assert ratios(theirs, ours) == {"drain_jobs_per_s": 1.909, "latency_ms.p50": 0.5, "latency_ms.p99": 1.0}


def test_percentile_when_given_seconds_then_milliseconds() -> None:
    """The value below which that share lies."""
    assert percentile([0.001 * number for number in range(1, 101)], 0.5) == 51
    assert percentile([0.001], 0.99) == 1
