"""All checks, one after another."""

from __future__ import annotations

from couchjobs.couch.connection import Connection
from couchjobs.doctor.documents import check_conflicts, check_documents, check_orphans, check_takers
from couchjobs.doctor.finding import Check, Finding, Patient
from couchjobs.doctor.setup import check_checkpoints, check_clock, check_security, check_versions, check_views
from couchjobs.errors import NotFound
from couchjobs.prefixer import Prefixer

_CHECKS: tuple[Check, ...] = (
    check_versions,
    check_clock,
    check_security,
    check_views,
    check_checkpoints,
    check_conflicts,
    check_orphans,
    check_documents,
    check_takers,
)


async def examine(connection: Connection, db: Prefixer, *, repair: bool = False) -> list[Finding]:
    """Return what is wrong with the databases of the tenant; with `repair`, after mending what can be mended.

    Jobs of daemons that do not live are found by watching, for as long as `dead_after` where one is still.

    Raises:
        NotFound: the databases do not exist; `couchjobs init` makes them.
    """
    patient = Patient(connection, db)
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            found = [finding async for finding in check(patient)]
        except NotFound:
            if not any(finding.kind == "views" for finding in findings):
                raise
            found = []  # without views there is nothing to look at
        for finding in found:
            if repair and finding.mend is not None:
                finding.done = await finding.mend()
        findings += found
    return findings
