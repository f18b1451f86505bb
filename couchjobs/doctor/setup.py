"""Checks of the server and of what was set up on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib.metadata import version

from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.cluster.peers import told_other_lanes
from couchjobs.couch.access import is_open
from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document
from couchjobs.couch.design import is_installed, outdated, read_design_document, unindexed
from couchjobs.couch.identity import Known, is_another_than
from couchjobs.couch.positions import changes_after, current_sequence
from couchjobs.doctor.finding import Finding, Patient
from couchjobs.errors import BadRequest, Conflict, NotFound
from couchjobs.installation import JOBS_DESIGN, VERSIONS, install, roles_of, secure
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.positions import BACKFILL, CHECKPOINT, LOST, doctype_of, loss_of, witnesses_of

_OLDEST_MAJOR = 3
_SKEW_S = 5.0
_NTP = "schedules, delays and time limits go by it; have all hosts use NTP"
_MANY = 1000


async def check_versions(patient: Patient) -> AsyncIterator[Finding]:
    """Find a server that is too old, and daemons of another version than this program."""
    welcome = await patient.connection.server.welcome()
    server = str(welcome.get("version"))
    major = server.partition(".")[0]
    if not major.isdecimal() or int(major) < _OLDEST_MAJOR:
        yield Finding("version", patient.connection.server.url, f"CouchDB {server} is older than 3.0: upgrade it")
    for daemon in await patient.control.with_prefix(DAEMON):
        if daemon.get("version") != version("couchjobs"):
            what = f"runs couchjobs {daemon.get('version')}, this is {version('couchjobs')}: bring all to one version"
            yield Finding("version", daemon["_id"], what)


async def check_lanes(patient: Patient) -> AsyncIterator[Finding]:
    """Find daemons that look for some worker's jobs in another database than this program."""
    lanes = patient.connection.settings.lanes
    for daemon in told_other_lanes(await patient.control.with_prefix(DAEMON), patient.db, lanes):
        yield Finding("lanes", daemon, f"has other lanes than this program ({lanes}): set COUCHJOBS_LANES alike")


async def check_clock(patient: Patient) -> AsyncIterator[Finding]:
    """Find clocks that differ from the server's: this one, and those of daemons, which told of them when they began."""
    ahead = await patient.connection.server.clock_ahead_s()
    if ahead is not None and abs(ahead) > _SKEW_S:
        yield Finding(
            "clock", patient.connection.server.url, f"the clock here is {ahead:+.0f} s off the server's: {_NTP}"
        )
    for daemon in await patient.control.with_prefix(DAEMON):
        told = daemon.get("clock_ahead_s")
        if isinstance(told, int | float) and abs(told) > _SKEW_S:
            yield Finding("clock", daemon["_id"], f"its clock is {told:+.0f} s off the server's: {_NTP}")


async def check_security(patient: Patient) -> AsyncIterator[Finding]:
    """Find databases that anybody may use."""
    mend = partial(_mend, secure, patient)
    for name in roles_of(patient.connection, patient.db):
        if await is_open(patient.connection.database(name)):
            yield Finding("security", name, "anybody who reaches the server may read and write it", mend)


async def check_views(patient: Patient) -> AsyncIterator[Finding]:
    """Find design documents that are missing or old, and indexes that are far behind."""
    mend = partial(_mend, install, patient)
    database = patient.store.database
    for name in JOBS_DESIGN:
        wanted = read_design_document(name, VERSIONS[name])
        if not await is_installed(database, wanted):
            yield Finding("views", f"{database.name}/{wanted['_id']}", "is missing, or of another version", mend)
            continue
        for old in await outdated(database, wanted):
            what = "is what an older version of couchjobs needed: its index is kept up to date for nobody"
            yield Finding("views", f"{database.name}/{old['_id']}", what, partial(_drop, database, old))
        if (pending := await unindexed(database, wanted["_id"]) or 0) > _MANY:
            build = partial(_build, database, f"{name}/{next(iter(wanted['views']))}")
            yield Finding(
                "views", f"{database.name}/{wanted['_id']}", f"{pending:,} changes are not indexed yet", build
            )


async def check_checkpoints(patient: Patient) -> AsyncIterator[Finding]:
    """Find positions in feeds that no longer exist, or that have been left far behind."""
    for checkpoint in await patient.control.with_prefix(CHECKPOINT):
        doctype = doctype_of(checkpoint, patient.db)
        if doctype is None:
            continue
        if loss := loss_of(checkpoint):
            yield Finding("checkpoint", checkpoint["_id"], loss, partial(_note_seen, patient, checkpoint))
        database = patient.connection.database(patient.db.database(doctype))
        seq = str(checkpoint.get("seq"))
        try:
            known = Known(seq, str(checkpoint.get("instance", "")), witnesses_of(checkpoint))
            is_another = await is_another_than(database, known)
            behind = await changes_after(database, seq)
        except NotFound:
            continue  # it is waited for
        except BadRequest:
            what = f"{seq[:40]!r} is no position of this server's feed"
            yield Finding("checkpoint", checkpoint["_id"], what, partial(_go_on_from_present, patient, checkpoint))
            continue
        if is_another:
            what = "the database was made anew, or restored from an older copy"
            yield Finding("checkpoint", checkpoint["_id"], what, partial(_go_on_from_present, patient, checkpoint))
        elif behind > _MANY:
            what = f"{behind:,} changes are not looked at yet: does a daemon run?"
            yield Finding("checkpoint", checkpoint["_id"], what)


async def _go_on_from_present(patient: Patient, checkpoint: Document) -> str:
    database = patient.connection.database(patient.db.database(str(checkpoint["doctype"])))
    present = {"seq": await current_sequence(database), "instance": "", "last": []}
    try:
        await patient.control.put({**checkpoint, **present})
    except Conflict:
        return "a daemon has moved it meanwhile"
    return f"goes on from the present; {BACKFILL}"


async def _note_seen(patient: Patient, checkpoint: Document) -> str:
    while True:
        present = await patient.control.get(checkpoint["_id"])
        try:
            await patient.control.put({name: value for name, value in present.items() if name != LOST})
        except Conflict:  # with a daemon, which moves it
            continue
        return "seen: not told again"


async def _mend(what: Callable[[Connection, Prefixer], Awaitable[list[str]]], patient: Patient) -> str:
    changed = await what(patient.connection, patient.db)
    return "; ".join(changed) or "done by somebody else"


async def _drop(database: Database, old: Document) -> str:
    await database.delete(old["_id"], old["_rev"])
    return "deleted; a daemon of that version makes it again"


async def _build(database: Database, view: str) -> str:
    await database.view(view, None, None, limit=1)
    return "built"
