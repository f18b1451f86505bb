"""All checks, one after another."""

from __future__ import annotations

from couchjobs.couch.connection import Connection
from couchjobs.doctor.documents import (
    check_conflicts,
    check_control_conflicts,
    check_documents,
    check_orphans,
    check_retention,
    check_takers,
    check_trigger_conflicts,
    check_triggers,
)
from couchjobs.doctor.finding import Check, Finding, Patient
from couchjobs.doctor.schedules import check_schedules, check_zones
from couchjobs.doctor.setup import (
    check_checkpoints,
    check_clock,
    check_lanes,
    check_security,
    check_versions,
    check_views,
)
from couchjobs.doctor.tenants import check_tenants
from couchjobs.errors import CouchError, NotFound
from couchjobs.prefixer import Prefixer

_OF_ALL_TENANTS: tuple[Check, ...] = (
    check_versions,
    check_clock,
    check_control_conflicts,
    check_tenants,
)
_OF_THE_TENANT: tuple[Check, ...] = (
    check_lanes,
    check_security,
    check_checkpoints,
    check_trigger_conflicts,
    check_triggers,
    check_schedules,
    check_zones,
)
_OF_EACH_LANE: tuple[Check, ...] = (
    check_views,
    check_conflicts,
    check_orphans,
    check_documents,
    check_takers,
    check_retention,
)


async def examine(connection: Connection, db: Prefixer, *, repair: bool = False, of_all: bool = True) -> list[Finding]:
    """Return what is wrong with the databases of the tenant; with `repair`, after mending what can be mended.

    `of_all`: also what concerns all tenants: the server, the control database, daemons, whosever they are.

    Jobs of daemons that do not live are found by watching, for as long as `dead_after` where one is still.

    Raises:
        NotFound: the databases do not exist; `couchjobs init` makes them.
    """
    checks = (*(_OF_ALL_TENANTS if of_all else ()), *_OF_THE_TENANT)
    findings = await _run(checks, Patient(connection, db), repair=repair)
    for lane in connection.settings.all_lanes:
        findings += await _run(_OF_EACH_LANE, Patient(connection, db, lane), repair=repair)
    return findings


async def _run(checks: tuple[Check, ...], patient: Patient, *, repair: bool) -> list[Finding]:
    findings: list[Finding] = []
    for check in checks:
        try:
            found = [finding async for finding in check(patient)]
        except NotFound:
            if not any(finding.kind == "views" for finding in findings):
                raise
            found = []  # without views there is nothing to look at
        for finding in found:
            if repair and finding.mend is not None:
                try:
                    finding.done = await finding.mend()
                except CouchError as error:  # the others can be mended all the same
                    finding.what += f" (it cannot be mended now: {error})"
        findings += found
    return findings
