"""A fixture for pytest, there once couchjobs is installed: `couchjobs`, which makes systems in memory.

async def test_greet(couchjobs):
async with couchjobs(greet) as system:
job = await system.push("greet", {"name": "Ann"})
await system.run_pending()
"""

from __future__ import annotations

import pytest


@pytest.fixture
def couchjobs() -> type[object]:
    """Return `couchjobs.testing.TestSystem`: workers, a broker, a scheduler and databases in memory."""
    from couchjobs.testing import TestSystem  # noqa: PLC0415  only where a test asks for it

    return TestSystem
