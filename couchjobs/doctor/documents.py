"""Checks of jobs and triggers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.cluster.peers import Peers, taken_types
from couchjobs.couch.changes import pages_since
from couchjobs.couch.database import Database, Document
from couchjobs.couch.surely import Refusals
from couchjobs.doctor.finding import Finding, Patient
from couchjobs.errors import BadDocumentError, ConfigurationError, Conflict, NotFound, Refused, Unavailable
from couchjobs.jobs.ends import Ends
from couchjobs.jobs.job import CLIENT_WORKER, ENDED, State
from couchjobs.jobs.retention import stored_rules
from couchjobs.jobs.transitions import why_reduced
from couchjobs.recovery.conflicts import conflicted, is_run, settle_conflict
from couchjobs.recovery.dead_daemons import Rescuer, claimants
from couchjobs.recovery.lost import LostJobs
from couchjobs.remarks import Remarks, may_mean
from couchjobs.scheduler.store import TriggerStore
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.workers.config import WorkersList
from couchjobs.workers.failure import Failures

_LOOK_S = 0.2
_MOST_LOOKED_AT = 10_000
_MANY_FINISHED = 100_000


async def check_orphans(patient: Patient) -> AsyncIterator[Finding]:
    """Find running jobs that no living daemon owns. Daemons are watched for as long as one may be still."""
    names = await claimants(patient.store)
    peers = await _watch(patient, names)
    rescuer = Rescuer(LostJobs(patient.store, peers, Failures(WorkersList(), "doctor")))
    for name in names:
        if peers.is_dead(name):
            what = "has claimed jobs, and does not live: daemons with their workers take them, or --repair does now"
            yield Finding("orphans", name, what, partial(_rescue, patient, peers, rescuer, name))
    rows = await patient.store.database.view("queue/claimed", [None], [None, {}], limit=_MOST_LOOKED_AT)
    for document in (await patient.store.database.get_many(row["id"] for row in rows)).values():
        if document.get("worker") == CLIENT_WORKER:
            continue  # a client does it, and ends it
        what = "is running and names no daemon: daemons put it back, with a claim or no start soon, else after a day"
        yield Finding("orphans", document["_id"], what, partial(_put_back, patient, document))


async def _watch(patient: Patient, names: list[str]) -> Peers:
    peers = Peers("", patient.connection.settings.dead_after)
    moved: set[str] = set()
    first = {document["_id"]: document.get("beat") for document in await patient.control.with_prefix(DAEMON)}
    while True:
        documents = await patient.control.with_prefix(DAEMON)
        peers.note(documents, moved=True)
        moved |= {one["_id"].removeprefix(DAEMON) for one in documents if one.get("beat") != first.get(one["_id"])}
        if all(name in moved or peers.is_dead(name) for name in names):
            return peers
        await asyncio.sleep(_LOOK_S)


async def _look_again(patient: Patient, peers: Peers) -> None:
    """Take note of who lives by now: whoever examined may mend much later, or never."""
    peers.note(await patient.control.with_prefix(DAEMON), moved=True)


async def _rescue(patient: Patient, peers: Peers, rescuer: Rescuer, name: str) -> str:
    await _look_again(patient, peers)
    if not peers.is_dead(name):
        return "it lives again, and its jobs are left to it"
    rescued = await rescuer.rescue(name)
    if name in rescuer.left:
        raise Unavailable(f"{rescued} jobs are back in the queue, and some could not be taken from it")
    return f"{rescued} jobs are back in the queue"


async def _put_back(patient: Patient, document: Document) -> str:
    job = patient.store.read(document)
    moved = await _shortly(patient).rescue(job, again=True)
    if moved and why_reduced(job.document()):
        return f"errored, for CouchDB does not take it back in the queue: {job.error}"
    if moved and job.state is State.ERRORED:
        return "errored: it had failed for good"
    return "back in the queue" if moved else "it has moved on"


def _shortly(patient: Patient) -> Ends:
    """Return how jobs are mended: one that takes long is left, and the others are made."""
    return patient.store.ends.shortly(Refusals())


async def check_takers(patient: Patient) -> AsyncIterator[Finding]:
    """Find worker types with queued jobs that no daemon has, or that no daemon looks for in this database."""
    taken, settings = taken_types(await patient.control.with_prefix(DAEMON), patient.db), patient.connection.settings
    queued: Counter[str] = Counter()
    for row in await patient.store.database.reduced("jobs/by_state", [""], [{}], group_level=2):
        worker, state = row["key"]
        if state == State.QUEUED and isinstance(worker, str):
            queued[worker] += row["value"]
    for worker, count in queued.items():
        lane = patient.db.database(settings.lane_of(worker))
        if lane != patient.store.database.name:
            what = f"{count:,} queued jobs in {patient.store.database.name}, but COUCHJOBS_LANES has them in {lane}"
            yield Finding("takers", worker, f"{what}: write them there")
        elif worker not in taken:
            what = f"{count:,} queued jobs, and no daemon has this worker: start one{may_mean(worker, taken)}"
            yield Finding("takers", worker, what)


async def check_retention(patient: Patient) -> AsyncIterator[Finding]:
    """Find rules that cannot be understood, and many finished jobs that nothing removes."""
    where = patient.store.database.name
    try:
        rules = await stored_rules(patient.connection, patient.db)
    except ConfigurationError as error:
        yield Finding("retention", where, f"its rules cannot be understood, and nothing is removed: {error}")
        return
    rows = await patient.store.database.reduced("jobs/by_state", [""], [{}], group_level=2)
    kept = sum(
        row["value"] for row in rows if row["key"][1] in ENDED and rules.of(str(row["key"][0]), row["key"][1]) is None
    )
    if kept > _MANY_FINISHED:
        what = f"{kept:,} finished jobs are kept for ever: couchjobs retention set, or couchjobs purge"
        yield Finding("retention", where, what)


async def check_documents(patient: Patient) -> AsyncIterator[Finding]:
    """Find queued jobs that cannot be understood."""
    looked_at = 0
    async for rows in patient.store.database.view_pages("queue/due", [None], [{}]):
        documents = await patient.store.database.get_many(row["id"] for row in rows if row["key"][1] == "due")
        for document in documents.values():
            try:
                patient.store.check(document)
            except BadDocumentError as error:
                yield Finding("job", document["_id"], str(error), partial(_reject, patient, document, str(error)))
        looked_at += len(rows)
        if looked_at > _MOST_LOOKED_AT:
            break


async def check_triggers(patient: Patient) -> AsyncIterator[Finding]:
    """Find triggers that cannot be understood, that do not fire, or that may not mean what they say."""
    triggers = TriggerStore(patient.connection, patient.db)
    understood: list[tuple[TriggerInfos, Document]] = []
    async for documents_of_page in triggers.database.all_docs():
        for document in documents_of_page:
            try:
                infos = triggers.read(document)
                parse_trigger(infos)
            except Exception as error:  # noqa: BLE001  no document may hide the others
                yield Finding("trigger", document["_id"], f"never fires: {error}")
            else:
                understood.append((infos, document))
    remarks = await Remarks.of(patient.connection, patient.db, [infos for infos, _ in understood], surely=True)
    for infos, document in understood:
        for what in filter(None, [remarks.trouble(infos), *remarks.notes(infos, document)]):
            yield Finding("trigger", infos.id, what)


async def _reject(patient: Patient, document: Document, reason: str) -> str:
    if not await patient.store.ends.reject(document, reason):
        raise Unavailable("it may be marked or not: look again")
    present = await patient.store.database.find(document["_id"])
    if present is None or present.get("state") != document.get("state"):
        return "errored, with the reason"
    raise Refused("CouchDB does not take that; delete it, or mend it by hand")


async def check_conflicts(patient: Patient) -> AsyncIterator[Finding]:
    """Find jobs in conflict: the branch that counts stays."""
    peers = Peers("", patient.connection.settings.dead_after)
    peers.note(await patient.control.with_prefix(DAEMON), moved=False)
    for job_id in await conflicted(patient.store):
        what = "is in conflict: a cluster has taken two writes"
        yield Finding("conflict", job_id, what, partial(_reap, patient, peers, job_id))


async def check_trigger_conflicts(patient: Patient) -> AsyncIterator[Finding]:
    """Find triggers in conflict: the winner stays."""
    async for finding in _conflicts_in(TriggerStore(patient.connection, patient.db).database):
        yield finding


async def check_control_conflicts(patient: Patient) -> AsyncIterator[Finding]:
    """Find documents of the control database in conflict, whosever they are: the winner stays."""
    async for finding in _conflicts_in(patient.control):
        yield finding


async def _conflicts_in(database: Database) -> AsyncIterator[Finding]:
    async for page in pages_since(database, "0", leaves=True):
        for change in page.changes:
            if not change.in_conflict or change.deleted:
                continue
            losers = [leaf["_rev"] for leaf in (await database.leaves(change.doc_id))[1:]]
            if losers:
                mend = partial(_delete_losers, database, change.doc_id, losers)
                what = f"losing revisions: {', '.join(losers)}"
                yield Finding("conflict", f"{database.name}/{change.doc_id}", what, mend)


async def _reap(patient: Patient, peers: Peers, job_id: str) -> str:
    await _look_again(patient, peers)
    if await settle_conflict(_shortly(patient), peers, job_id):
        return "settled"
    if any(is_run(leaf, peers) for leaf in await patient.store.database.leaves(job_id)):
        raise Unavailable("a daemon runs a branch of it, whose end will win")
    raise Refused("CouchDB does not let one of its branches be deleted; the log says why")


async def _delete_losers(database: Database, doc_id: str, losers: list[str]) -> str:
    for rev in losers:
        try:
            await database.delete(doc_id, rev)
        except (Conflict, NotFound):
            continue
    return "losing revisions deleted, the winner stays"
