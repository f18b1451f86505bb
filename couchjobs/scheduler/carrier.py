"""Carrying out what is to be done about a schedule: jobs are stored, then states.

A job's id comes from trigger and tick, so that two daemons that fire the same tick make one document. A single tick is
marked in its trigger before its job is stored, at the revision that was read, and the trigger is deleted afterwards: an
edit comes either before, and counts, or too late, and is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from couchjobs.couch.answers import Written
from couchjobs.couch.database import generation
from couchjobs.couch.surely import write_or_raise
from couchjobs.couch.writer import GroupWriter
from couchjobs.jobs.ids import tick_id
from couchjobs.jobs.job import Job
from couchjobs.jobs.request import new_job
from couchjobs.jobs.transitions import tombstone
from couchjobs.log import get_logger
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.firing import Firing
from couchjobs.scheduler.states import States
from couchjobs.scheduler.trigger import ClockTrigger
from couchjobs.timestamps import format_time
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.life import Life, Plan, State

_logger = get_logger(__name__)
_AGREED_S = 3.0
"""Seconds in which all copies of a document on a cluster learn of all its branches."""


class Carrier:
    """Carries out plans for the triggers of one tenant.

    Args:
        triggers: the writer of the triggers' database.
        states: of their schedules.
        firing: stores jobs.
        db: whose jobs these are.
        others_differ: whether another daemon may have fired the same local time at a moment of its own.
    """

    def __init__(
        self,
        triggers: GroupWriter,
        states: States,
        firing: Firing,
        db: Prefixer,
        others_differ: Callable[[], bool] = lambda: False,
    ) -> None:
        self._others_differ = others_differ
        self._triggers = triggers
        self._states = states
        self._firing = firing
        self._db = db
        self._copies: int | None = None
        """Of each document; None: not known yet."""

    async def carry_out(self, trigger: ClockTrigger, life: Life, plan: Plan) -> bool:
        """Do what the plan says; False where somebody else has written the state, and it must be read again.

        Raises:
            CouchError: CouchDB does not take it now: the plan is to be made again.
        """
        infos, state = trigger.infos, life.state
        if plan.ended:
            await self._end(infos, plan.ended)
            return True
        if plan.tick is None:
            return await self._store_state(infos, life, plan.then)
        if trigger.ticks.once:
            await self._fire_single(infos, plan.tick)
            return True
        if plan.first is not None and not await self._store_state(infos, life, plan.first):
            return False
        if self._others_differ() and (await self._states.read([infos.id])).get(infos.id) != life.state:
            return False
        tick = plan.tick
        await self._firing.fire(infos, lambda: self._job(infos, tick, state.fired))
        if plan.then.missed > state.missed:
            count = plan.then.missed - state.missed
            _logger.warning("ticks were missed", trigger=infos.id, missed=count, tick=format_time(tick))
        return await self._store_state(infos, life, plan.then)

    async def _fire_single(self, infos: TriggerInfos, tick: datetime) -> None:
        """Fire the one tick of a trigger, and delete the trigger: whatever somebody writes to it, it fires once.

        Where it was edited meanwhile, the feed tells what it is now.
        """
        rev = infos.rev
        if infos.firing != tick:
            answer = await write_or_raise(self._triggers, {**infos.document(), "firing": format_time(tick)})
            if not answer.stored:
                return
            rev = answer.rev
            if answer.written is Written.ACCEPTED and not await self._counts(infos.id, rev):
                return
        await self._firing.fire(infos, lambda: self._job(infos, tick, None))
        gone = {"_id": infos.id, "_rev": rev, "_deleted": True}
        if (await write_or_raise(self._triggers, gone)).stored:
            await self._withdraw_late_edits(infos.id, rev)
            await self._states.drop(infos.id)

    async def _withdraw_late_edits(self, trigger_id: str, rev: str) -> None:
        """Remove the edits of a trigger that a copy of a cluster has taken beside the mark: it has fired by then."""
        if self._copies is None:
            info = await self._triggers.database.info()
            self._copies = int((info.get("cluster") or {}).get("n") or 1)
        if self._copies == 1:
            return
        for pause_s in (0.0, _AGREED_S):
            await asyncio.sleep(pause_s)
            for leaf in await self._triggers.database.leaves(trigger_id):
                if generation(leaf["_rev"]) <= generation(rev):  # what is made after the deletion is a new trigger
                    _logger.warning("an edit of a trigger came too late: it has fired", trigger=trigger_id)
                    await write_or_raise(self._triggers, tombstone(leaf))

    async def _counts(self, trigger_id: str, rev: str) -> bool:
        """Return whether a mark that not all copies of a cluster took is what the trigger is, once they agree.

        It may have taken an edit of the same revision too. What loses is withdrawn: our mark, or an edit too late.
        """
        await asyncio.sleep(_AGREED_S)
        leaves = await self._triggers.database.leaves(trigger_id)
        ours = bool(leaves) and leaves[0]["_rev"] == rev
        for leaf in leaves[1:]:
            if ours or leaf["_rev"] == rev:
                await write_or_raise(self._triggers, tombstone(leaf))
        return ours

    async def _end(self, infos: TriggerInfos, reason: str) -> None:
        """Disable a trigger whose single tick never fires, and say why where people look."""
        _logger.warning("a trigger never fires, and is disabled", trigger=infos.id, reason=reason)
        await write_or_raise(self._triggers, {**infos.document(), "disabled": True, "ended": reason})

    async def _store_state(self, infos: TriggerInfos, life: Life, state: State) -> bool:
        if state == life.state:
            return True
        if not await self._states.write(infos, state):
            return False
        life.state = state
        return True

    def _job(self, infos: TriggerInfos, tick: datetime, previous: datetime | None) -> Job:
        request = infos.job_request(id=tick_id(infos.id, tick), queued_at=tick, tick=tick, previous_tick=previous)
        return new_job(self._db, request)
