"""That a database is gone: a fact only after two looks, some seconds apart, with the server itself as a witness.

A proxy answers 404 while what is behind it restarts; a database is deleted and made again within a second; a node that
has just come back does not know all databases yet. What is forgotten for such an answer (a position in a feed, the
state of a schedule, the result of a job) is lost, so that whoever would forget something asks here first.
"""

from __future__ import annotations

import asyncio

from couchjobs.couch.database import Database
from couchjobs.errors import CouchError, NotFound

_FOR_S = 5.0
"""Seconds between the first look and the last: longer than a proxy's restart of three seconds that was seen."""
_LOOK_S = 1.0
"""Between two looks: so late is a database noticed that somebody makes."""


async def is_surely_gone(database: Database) -> bool:
    """Return whether CouchDB says, for some seconds on end, that the database does not exist. Takes these seconds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _FOR_S
    while True:
        if not await is_absent(database):
            return False
        if loop.time() >= until:
            return True
        await asyncio.sleep(_LOOK_S)


async def is_absent(database: Database) -> bool:
    """Return whether the server, which shows that it is CouchDB, says now that the database does not exist."""
    try:
        await database.info()
    except NotFound:
        try:
            await database.server.welcome()
        except CouchError:
            return False
        return True
    except CouchError:
        return False
    return False
