"""How figures are told."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return the value below which that share of the values lies, in milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and longest, in milliseconds."""
    return {
        "p50": percentile(seconds, 0.5),
        "p99": percentile(seconds, 0.99),
        "max": round(1000 * max(seconds), 2),
    }
