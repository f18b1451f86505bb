"""Checks of schedules: what does not fire that should, and daemons that read clocks differently."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

from couchjobs.cluster.peers import PREFIX as DAEMON
from couchjobs.doctor.finding import Finding, Patient
from couchjobs.scheduler.states import States
from couchjobs.scheduler.store import TriggerStore
from couchjobs.timestamps import format_time, now
from couchjobs.triggers.event import EventRules
from couchjobs.triggers.life import AHEAD
from couchjobs.triggers.on_demand import OnDemand
from couchjobs.triggers.prospects import LATE, life_of
from couchjobs.triggers.zones import digest_of_zone_data

_TOGETHER = 500


async def check_schedules(patient: Patient) -> AsyncIterator[Finding]:
    """Find ticks that did not come, triggers that have ended without firing, and times of clocks that were ahead."""
    triggers = TriggerStore(patient.connection, patient.db)
    states = States(patient.connection, triggers.database.name)
    parsed = [one for one in await triggers.parsed() if not isinstance(one[1], EventRules | OnDemand)]
    for start in range(0, len(parsed), _TOGETHER):
        part = parsed[start : start + _TOGETHER]
        stored = await states.read(infos.id for infos, _ in part)
        for infos, schedule in part:
            if infos.id not in stored:
                yield Finding("schedule", infos.id, "CouchDB does not say now what its state is: look again")
            state, present = stored.get(infos.id), now()
            if infos.ended:
                yield Finding("schedule", infos.id, f"has ended, and never fired: {infos.ended}")
            if state is None or isinstance(schedule, EventRules | OnDemand):
                continue
            latest = max(state.last or state.anchor, state.passed, state.anchor)
            if latest > present + AHEAD:
                what = f"its state holds {format_time(latest)}, ahead of the clock: a daemon's clock is, or was, wrong"
                yield Finding("schedule", infos.id, what)
            overdue = life_of(schedule, infos, state, present).overdue(present)
            if overdue is not None and present - overdue > LATE:
                what = f"a tick did not come: {format_time(overdue)}: does a daemon run that can read the trigger?"
                yield Finding("schedule", infos.id, what)
            if state.note:
                yield Finding("schedule", infos.id, state.note)


async def check_zones(patient: Patient) -> AsyncIterator[Finding]:
    """Find daemons whose data of time zones differ from those of others, or from those here."""
    by_digest: defaultdict[str, list[str]] = defaultdict(list)
    for daemon in await patient.control.with_prefix(DAEMON):
        if daemon.get("zones") and (daemon.get("domain"), daemon.get("prefix")) == patient.tenant:
            by_digest[str(daemon["zones"])].append(daemon["_id"].removeprefix(DAEMON))
    if not by_digest:
        return
    by_digest[digest_of_zone_data()].append("this program")
    if len(by_digest) > 1:
        groups = "; ".join(f"{digest}: {', '.join(sorted(names))}" for digest, names in sorted(by_digest.items()))
        yield Finding("zones", "time zones", f"daemons have different data ({groups}): update tzdata on their hosts")
