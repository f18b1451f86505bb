"""What tests of what daemons do share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from couchjobs.cluster.daemon import Daemon
from couchjobs.couch.connection import Connection
from couchjobs.prefixer import Prefixer


@pytest.fixture
async def neighbour(connection: Connection, db: Prefixer) -> AsyncIterator[Daemon]:
    """A daemon that lives, and does nothing else."""
    daemon = Daemon(connection, db)
    await daemon.join()
    yield daemon
    await daemon.leave()
