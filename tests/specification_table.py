"""Runs the tests of the specification and prints row, test and result."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "integration" / "test_specification.py"


class Results:
    """Which test has passed."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test."""
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" or report.outcome == "failed":
            self.outcomes[name] = report.outcome


def main() -> int:
    """Print the table and return the exit code."""
    results = Results()
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main([str(TESTS)], plugins=[results])
    module = sys.modules["test_specification"]
    for row in module.ROWS:
        test = module.covered.get(row, "-")
        print(f"{row:70} {test:28} {results.outcomes.get(test, 'missing')}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
