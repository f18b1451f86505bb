"""Checks of the documents that name tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator

from couchjobs.doctor.finding import Finding, Patient
from couchjobs.errors import ConfigurationError
from couchjobs.tenants.named import DOCUMENT, read_tenant


async def check_tenants(patient: Patient) -> AsyncIterator[Finding]:
    """Find documents `tenant:<domain>` that name nobody, or somebody whom another one names already."""
    named: dict[str, str] = {}
    for document in await patient.control.with_prefix(DOCUMENT):
        try:
            db = read_tenant(document, patient.connection.settings)
        except ConfigurationError as error:
            yield Finding("tenant", document["_id"], f"it names no tenant, and nobody serves it: {error}")
            continue
        other = named.setdefault(db.key, document["_id"])
        if other != document["_id"]:
            yield Finding("tenant", document["_id"], f"its databases are those of {other}: one of both is left out")
