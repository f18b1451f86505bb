"""Two commits of couchjobs, measured in turn on the same server: what one of them is worth in units of the other.

Machines are noisy, and two runs an hour apart say little. So the runs of both commits alternate, and medians are
compared. The other commit is checked out into a folder of its own, which is removed afterwards.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

import couchjobs
from couchjobs.errors import ConfigurationError
from couchjobs.settings import Settings

Result = dict[str, Any]
"""What `couchjobs bench --json` prints."""

_COMPARED = ("limit_jobs_per_s", "drain_jobs_per_s", "end_to_end_jobs_per_s", "cpu_ms_per_job", "memory_mb")
_LATENCIES = ("latency_ms", "latency_at_half_load_ms")


def compare(ref: str, settings: Settings | None, jobs: int, rounds: int) -> dict[str, Any]:
    """Run the bench of this checkout and of commit `ref` in turn; return all results and the ratios of their medians.

    Args:
        ref: what git knows a commit by.
        settings: of the server; None: each run starts an embedded one.
        jobs: how many each measurement takes.
        rounds: how many runs of each.

    Raises:
        ConfigurationError: this is no git checkout, there is no such commit, or one of the two cannot be measured.
    """
    here = Path(couchjobs.__file__).parent.parent
    with _checkout(here, ref) as there:
        runs = [(_run(there, settings, jobs), _run(here, settings, jobs)) for _ in range(rounds)]
    theirs, ours = [run[0] for run in runs], [run[1] for run in runs]
    return {"ref": ref, "rounds": rounds, "ratios": ratios(theirs, ours), "theirs": theirs, "ours": ours}


def ratios(theirs: list[Result], ours: list[Result]) -> dict[str, float]:
    """Return for each figure the median of ours as a multiple of the median of theirs; figures of both alone."""
    before = {name: statistics.median(values) for name, values in _figures(theirs).items()}
    after = {name: statistics.median(values) for name, values in _figures(ours).items()}
    return {name: round(value / before[name], 3) for name, value in after.items() if before.get(name)}


def _figures(results: list[Result]) -> dict[str, list[float]]:
    figures = {name: [one[name] for one in results] for name in _COMPARED if all(name in one for one in results)}
    for name in _LATENCIES:
        for percentile in ("p50", "p99"):
            if all(name in one for one in results):
                figures[f"{name}.{percentile}"] = [one[name][percentile] for one in results]
    return figures


@contextmanager
def _checkout(here: Path, ref: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="couchjobs-compare-") as folder:
        there = Path(folder) / "tree"
        _git(here, "worktree", "add", "--quiet", "--detach", str(there), ref)
        try:
            (there / "couchjobs" / "design_docs").symlink_to(there / "design_docs")
            yield there
        finally:
            _git(here, "worktree", "remove", "--force", str(there))


def _git(here: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607  git of the user
    except FileNotFoundError:
        raise ConfigurationError("--compare needs git") from None
    if done.returncode:
        raise ConfigurationError(f"--compare needs a git checkout of couchjobs: {done.stderr.strip()}")


def _run(tree: Path, settings: Settings | None, jobs: int) -> Result:
    environment = {name: value for name, value in os.environ.items() if name != "COUCHJOBS_URL"}
    environment["PYTHONPATH"] = str(tree)
    if settings is not None:
        environment["COUCHJOBS_URL"] = settings.url
    command = [sys.executable, "-m", "couchjobs", "bench", "--jobs", str(jobs), "--json"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise ConfigurationError(f"the bench of {tree} fails: {done.stderr.decode(errors='replace')[-2000:]}")
    result: Result = orjson.loads(done.stdout)
    return result
