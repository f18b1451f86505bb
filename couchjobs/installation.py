"""The databases that couchjobs needs, what is in them before the first job, and who may use them."""

from __future__ import annotations

from collections.abc import Collection

from couchjobs.couch.access import admit
from couchjobs.couch.connection import Connection
from couchjobs.couch.design import install_design_document, read_design_document
from couchjobs.errors import Forbidden
from couchjobs.prefixer import Prefixer

JOBS_DESIGN = ("queue", "jobs")
JOBS_GUARD = "guard-jobs"
TRIGGERS_GUARD = "guard-triggers"
VERSIONS = {"queue": 2, "jobs": 2, JOBS_GUARD: 5, TRIGGERS_GUARD: 1}
"""Raised by one with each change of a design document: daemons of two versions then do not replace each other's."""
WORKER_ROLE = "couchjobs-worker"
PRODUCER_ROLE = "couchjobs-producer"
"""Of producers of all tenants."""


async def install(connection: Connection, db: Prefixer) -> list[str]:
    """Create what is not there yet: databases and design documents; return what was changed, in words.

    Any number of processes may do this at once.

    Raises:
        Unauthorized: CouchDB wants other credentials.
        Forbidden: a database or view is missing, and only an administrator may make it.
    """
    settings = connection.settings
    lanes = [db.database(lane) for lane in settings.all_lanes]
    changed: list[str] = []
    try:
        for name in (*lanes, db.database(settings.triggers_doctype), settings.control_db):
            changed += [f"created database {name}"] * await _create(connection, name)
        for jobs in lanes:
            for name in JOBS_DESIGN:
                changed += await _install(connection, jobs, name)
    except Forbidden as error:
        raise Forbidden(f"{error.args[0].rstrip('.')}: run `couchjobs init` as an administrator", 403) from error
    return changed


async def install_control(connection: Connection) -> list[str]:
    """Create the control database, if it is not there; return what was changed, in words.

    Raises:
        Forbidden: only an administrator may make it.
    """
    name = connection.settings.control_db
    return [f"created database {name}"] * await _create(connection, name)


async def secure(connection: Connection, db: Prefixer, *, own_producers: bool = False) -> list[str]:
    """Leave no database open: workers may use all, producers those of jobs and triggers; return what was changed.

    `own_producers`: producers of this tenant alone may use them as well.

    Raises:
        Forbidden: only an administrator may.
    """
    changed: list[str] = []
    for name, roles in roles_of(connection, db, own_producers=own_producers).items():
        if await admit(connection.database(name), roles):
            changed.append(f"database {name} is for the roles {' and '.join(roles)}")
    return changed


def roles_of(connection: Connection, db: Prefixer, *, own_producers: bool = False) -> dict[str, tuple[str, ...]]:
    """Return which roles may use which database. The control database holds what producers must not read."""
    settings = connection.settings
    own = (producer_role(db),) if own_producers else ()
    roles = tuple(dict.fromkeys((WORKER_ROLE, PRODUCER_ROLE, *own)))
    return {
        **{db.database(lane): roles for lane in settings.all_lanes},
        db.database(settings.triggers_doctype): roles,
        settings.control_db: (WORKER_ROLE,),
    }


def producer_role(db: Prefixer) -> str:
    """Return the role of producers of that tenant alone; of the one without a prefix there is none but that of all."""
    return f"{PRODUCER_ROLE}:{db.key}" if db.key else PRODUCER_ROLE


def may_produce(db: Prefixer, roles: Collection[str]) -> bool:
    """Return whether these roles are those of a producer of that tenant."""
    return PRODUCER_ROLE in roles or producer_role(db) in roles


async def guard(connection: Connection, db: Prefixer) -> list[str]:
    """Have CouchDB check every write of jobs and triggers; return what was changed.

    Raises:
        Forbidden: only an administrator may.
    """
    settings = connection.settings
    changed = await _install(connection, db.database(settings.triggers_doctype), TRIGGERS_GUARD)
    for lane in settings.all_lanes:
        changed += await _install(connection, db.database(lane), JOBS_GUARD)
    return changed


async def _create(connection: Connection, name: str) -> bool:
    if await connection.database(name).exists():
        return False
    return await connection.server.create_database(name, connection.settings.shards)


async def _install(connection: Connection, database: str, name: str) -> list[str]:
    installed = await install_design_document(connection.database(database), read_design_document(name, VERSIONS[name]))
    return [f"installed _design/{name} in {database}"] * installed
