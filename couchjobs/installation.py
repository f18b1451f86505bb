"""The databases that couchjobs needs, and what is in them before the first job."""

from __future__ import annotations

from couchjobs.couch.connection import Connection
from couchjobs.couch.design import install_design_document, read_design_document
from couchjobs.errors import Forbidden
from couchjobs.prefixer import Prefixer

JOBS_DESIGN = ("queue", "jobs")


async def install(connection: Connection, db: Prefixer) -> list[str]:
    """Create what is not there yet: databases and design documents; return what was changed, in words.

    Any number of processes may do this at once.

    Raises:
        Unauthorized: CouchDB wants other credentials.
        Forbidden: a database or view is missing, and only an administrator may make it.
    """
    settings = connection.settings
    jobs = db.database(settings.jobs_doctype)
    changed: list[str] = []
    try:
        for name in (jobs, db.database(settings.triggers_doctype), settings.control_db):
            changed += [f"created database {name}"] * await _create(connection, name)
        for name in JOBS_DESIGN:
            installed = await install_design_document(connection.database(jobs), read_design_document(name))
            changed += [f"installed _design/{name} in {jobs}"] * installed
    except Forbidden as error:
        raise Forbidden(f"{error.args[0].rstrip('.')}: run `couchjobs init` as an administrator", 403) from error
    return changed


async def _create(connection: Connection, name: str) -> bool:
    return not await connection.database(name).exists() and await connection.server.create_database(name)
