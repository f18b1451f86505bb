"""The long forms of the attacks: `outages` (the matrix), `rest`, `poison`, or `all`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LONG = {"rest": ("test_at_rest.py", {"COUCHJOBS_TEST_AT_REST": "200"}), "poison": ("test_poison.py", {})}


def main() -> int:
    """Run what the first argument names, with the other arguments; return the worst exit code."""
    name, *arguments = sys.argv[1:] or ["all"]
    if name not in ("all", "outages", *LONG):
        print(f"{__doc__}\nusage: scripts/attacks [outages|rest|poison|all] [options of the part]")
        return 2
    worst = 0
    for part, (file, environment) in LONG.items():
        if name in (part, "all"):
            command = [sys.executable, "-m", "pytest", "-q", "-s", "--timeout", "1200", str(HERE / file)]
            worst = max(worst, subprocess.call([*command, *arguments], env={**os.environ, **environment}))
    if name in ("outages", "all"):
        worst = max(worst, subprocess.call([sys.executable, str(HERE / "outages.py"), *arguments]))
    return worst


if __name__ == "__main__":
    sys.exit(main())
