"""The one owner of what a daemon knows of jobs, and of those that it runs.

Feeds and sweepers hand it rows and ids; it reads what is to be read, and makes candidates of the jobs that this daemon
can run. Whenever there are candidates and free slots it takes as many as fit, and starts an execution for each: see
`executor`. Claims and ends of many jobs travel together, for each database has one group-commit writer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress

from couchjobs.broker.classify import (
    Changed,
    Foreign,
    GiveUp,
    Ignore,
    Meaning,
    Offer,
    Refuse,
    classify,
)
from couchjobs.broker.executor import Executor
from couchjobs.broker.lane import Execution, Lane, Phase
from couchjobs.broker.marks import Marks
from couchjobs.broker.type_queue import Candidate
from couchjobs.cluster.presence import Presence
from couchjobs.couch.changes import Change
from couchjobs.couch.database import Document, generation
from couchjobs.errors import BadDocumentError, CouchError
from couchjobs.jobs.job import Job
from couchjobs.log import get_logger
from couchjobs.timestamps import Moment, moment
from couchjobs.workers.boundary import GRACE_S
from couchjobs.workers.slots import Slot, Slots
from couchjobs.workers.worker import TASKS

_logger = get_logger(__name__)
_LONGEST_WAIT_S = 5.0
"""Seconds within which a step of the wall clock is noticed, by which jobs become due."""
_LOOK_AGAIN_S = 1.0
"""Seconds until a document is read again of which nothing was answered."""
_LOST_LOOK_S = 1.0
"""Seconds until a daemon that could not beat looks whether it does so again."""
_LAST_LOOK_S = 2.0
"""Seconds between two looks whether somebody cancels jobs that may still go on, as the daemon ends."""
_LAST_WRITES_S = 10.0
"""Seconds that the last ends may take to be stored, and then their tasks to end."""
_URGENT_GRACE_S = 4.5
"""Seconds that functions have to end where others are about to take their jobs, or the daemon ends: fewer than usual,
so that a child which is blocked is not asked only after them."""
_MOST_UNSTORED = 1000
"""Ends beyond the number of slots that may wait for CouchDB before nothing more is claimed."""
_FEW = 50
"""Rows of a page up to which all documents are looked at, whosever they are: at rest nobody waits for another."""
_NAMED = 1000
"""Worker types that are named once in the log as left to other daemons."""


class Producer:
    """Takes candidates from all lanes of one daemon, and has them run: who claims, starts and ends is said here alone.

    Args:
        presence: that of this daemon.
        slots: its slots.
        executor: what is done with a job that is taken.
        marks: what is written to jobs that are not.
    """

    def __init__(self, presence: Presence, slots: Slots, executor: Executor, marks: Marks) -> None:
        self._presence = presence
        self.slots = slots
        self._executor = executor
        self._marks = marks
        self.lanes: OrderedDict[Lane, None] = OrderedDict()
        """Those from which nothing has been taken for longest come first."""
        self.is_open = True
        """Whether jobs are claimed; no longer once the daemon stops."""
        self._reading: set[asyncio.Task[None]] = set()
        self._foreign_types: set[str] = set()
        self._loop: asyncio.AbstractEventLoop
        self._news = slots.news
        presence.pauses.listeners.append(self._news.set)

    def add(self, lane: Lane) -> None:
        """Take jobs from one more lane; what its lines of the log name beside them is what those of the caller do."""
        lane.context = self._executor.new_context()
        self.lanes[lane] = None

    # --- what there is to do: called by feeds and sweepers ---

    async def take_rows(self, lane: Lane, changes: Sequence[Change]) -> tuple[int, int]:
        """Look at rows of the feed; return how many documents that took, and how many rows are of others' jobs."""
        documents: list[Document] = []
        unread: list[str] = []
        others, present, is_small = 0, time.monotonic(), len(changes) <= _FEW
        for job_id, rev, deleted, document, in_conflict in changes:
            if not in_conflict and (rev in lane.claims.revisions or lane.backlog.knows(job_id, rev)):
                continue
            lane.backlog.forget(job_id)
            lane.unread.forget_row(job_id)
            execution = lane.executions.get(job_id)
            if in_conflict and execution is not None:  # its end looks at that
                lane.note_conflict(job_id)
            if deleted or job_id.startswith("_design/") or (execution is not None and execution.note_row(rev)):
                continue
            is_own = execution is not None or lane.daemon.partition.may_have(job_id)
            if in_conflict:
                lane.note_conflict(job_id)
                if is_own and execution is None:
                    self._marks.settle(lane, job_id)
                    continue
            if document is not None and (is_own or is_small) and not in_conflict:
                documents.append(document)
            elif is_own:
                unread.append(job_id)
                lane.expect(job_id, rev)
            else:
                lane.unread.set_aside(job_id, rev, present)
                others += 1
        await self.take_documents(lane, documents)
        await self.read(lane, unread)
        return len(documents) + len(unread), others

    async def read(self, lane: Lane, ids: Iterable[str]) -> None:
        """Look at the documents with these ids, as they are now."""
        async for answers in lane.store.database.revisions([(job_id, None) for job_id in ids]):
            documents: list[Document] = []
            for one in answers:
                if one.unreadable:
                    lane.forget_seen(one.doc_id)
                    self._marks.reject_unread(lane, one.doc_id, one.reason)
                elif lane.is_older(one) or (one.document is None and not one.absent):
                    lane.read_again(one.doc_id, _LOOK_AGAIN_S)
                elif one.document is not None:
                    documents.append(one.document)
            await self.take_documents(lane, documents)

    async def take_documents(self, lane: Lane, documents: Iterable[Document]) -> None:
        """Look at documents, and make candidates of the queued jobs that this daemon can run."""
        for document in documents:
            try:
                await self._apply(lane, document, classify(document, lane, self._presence.id))
            except CouchError as error:
                _logger.info("job is looked at again", job=document["_id"], reason=str(error))
                lane.read_again(document["_id"], _LOOK_AGAIN_S)
            except Exception:  # one document must never hold up the others
                _logger.exception("job cannot be looked at", job=document["_id"])
        self._news.set()

    async def _apply(self, lane: Lane, document: Document, meaning: Meaning) -> None:
        match meaning:
            case Offer(job, keep):
                if lane.workers.get(job.worker).admin_only and not await lane.admin_proof.holds(document):
                    reason = f"worker {job.worker!r} takes only jobs that were pushed with admin=True"
                    self._marks.write(lane, document, Refuse(job, reason))
                else:
                    self._offer(lane, job, keep=keep)
            case Changed():
                lane.executions[document["_id"]].note(document)
            case GiveUp():
                lane.claims.note_found(document["_id"])
            case Foreign(job):
                self._note_foreign(job)
            case Ignore():
                pass
            case _:
                self._marks.write(lane, document, meaning)

    def _offer(self, lane: Lane, job: Job, *, keep: bool) -> None:
        not_before = job.scheduled_at.timestamp() if job.scheduled_at else 0.0
        due = not_before or (job.queued_at.timestamp() if job.queued_at else 0.0)
        priority = job.priority if job.priority is not None else int(job.manual_execution)
        assigned = lane.daemon.partition.has(job.id, job.worker)
        kept = job if keep else None
        lane.backlog.offer(Candidate(job.id, job.rev, job.worker, due, priority, kept, not_before, assigned), moment())

    def _note_foreign(self, job: Job) -> None:
        if job.worker not in self._foreign_types and len(self._foreign_types) < _NAMED:
            self._foreign_types.add(job.worker)
            _logger.info("jobs of this type are left to other daemons", worker=job.worker, job=job.id)

    def settle(self, lane: Lane, job_id: str) -> None:
        """Look at all leaves of a job in conflict, unless it runs here."""
        if job_id not in lane.executions:
            self._marks.settle(lane, job_id)

    async def watch_partition(self, lane: Lane) -> None:
        """Look again at rows of others' jobs, at the start and whenever the partition has changed."""
        partition = lane.daemon.partition
        while True:
            version = partition.version()
            lane.unread.reassign(partition.may_have, time.monotonic())
            lane.backlog.reassign(partition.has, moment())
            lane.to_read.set()
            self._news.set()
            await lane.daemon.partition_changes(version)

    def spare_slots(self, lane: Lane) -> int:
        """Return how many free slots have no candidate."""
        free = self._free(lane).items()
        return sum(slots for name, slots in free if name in lane.workers and not lane.backlog.ready(name))

    def may_help(self, lane: Lane) -> bool:
        """Return whether more slots are free, of some type, than candidates are known, those of other daemons too."""
        free = self._free(lane).items()
        return any(slots > lane.backlog.runnable(name) for name, slots in free if name in lane.workers)

    def _free(self, lane: Lane) -> dict[str, int]:
        """Return how many more jobs of each type may be claimed from that lane now."""
        free, paused = self.slots.free(lane.slots_used), lane.daemon.paused
        return {name: count for name, count in free.items() if name not in paused} if paused else free

    # --- doing it ---

    async def run(self) -> None:
        """Take candidates for free slots, and start them, until this is cancelled."""
        self._loop = asyncio.get_running_loop()  # which takes as long to ask for as all the rest of a start
        while True:
            wait: float | None = None
            if self._presence.is_lost:
                wait = _LOST_LOOK_S
            elif self.is_open:
                self._start_some(moment())
                wait = self._next_in(moment())
            for lane in self._lanes_at_work():  # what is spare, ready or in reserve may be so no longer
                if lane.unread or lane.backlog.has_reserve:
                    lane.to_read.set()
                if lane.backlog.has_overflow:
                    lane.to_sweep.set()
            await self._news.within(None if wait is None else min(wait, _LONGEST_WAIT_S))

    def _lanes_at_work(self) -> list[Lane]:
        """Return the lanes that may have something to do: of a thousand tenants, few."""
        return [lane for lane in self.lanes if not lane.rests]

    def _open_lanes(self) -> list[Lane]:
        """Return the lanes from which something may be taken: not those of which too much waits to be stored."""
        most = self.slots.count + _MOST_UNSTORED
        at_work = self._lanes_at_work()
        return [lane for lane in at_work if lane.is_open and lane.backlog and len(lane.executions) < most]

    def _next_in(self, present: Moment) -> float | None:
        """Return in how many seconds a candidate can be taken; None: something must happen first."""
        waits = [
            wait for lane in self._open_lanes() if (wait := lane.backlog.next_in(self._free(lane), present)) is not None
        ]
        return min(waits, default=None)

    def _start_some(self, present: Moment) -> None:
        """Start as many jobs as there are candidates and free slots; those that are to be read first, beside others."""
        for lane in self._open_lanes():
            unread: dict[str, tuple[Candidate, Slot]] = {}
            for one in self._take(lane, present):
                slot = self.slots.take(one.worker)
                if one.job is not None:
                    self._start(lane, one.job, slot)
                else:
                    unread[one.job_id] = one, slot
            if unread:
                lane.reading += len(unread)
                task = asyncio.create_task(self._read_and_start(lane, unread), name="read jobs to claim")
                self._reading.add(task)
                task.add_done_callback(self._reading.discard)

    def _take(self, lane: Lane, present: Moment) -> list[Candidate]:
        """Take as many candidates of a lane as there are free slots of their types."""
        free = self._free(lane)
        room = self.slots.room_for(lane.slots_used)
        taken: list[Candidate] = []
        for name in sorted(free, key=lambda _: random.random()):  # noqa: S311  where there is room for few, whoever
            if name in lane.workers:
                taken += lane.backlog.take(name, min(free[name], room - len(taken)), present)
        if taken:
            lane.taken.set()
            self.lanes.move_to_end(lane)
        return taken

    async def _read_and_start(self, lane: Lane, unread: dict[str, tuple[Candidate, Slot]]) -> None:
        """Read the documents of candidates that were not kept, and start them; where one has changed, its row tells."""
        taken = len(unread)
        try:
            answers = await lane.store.database.read({job_id: one.rev for job_id, (one, _) in unread.items()})
            for answer in answers if self.is_open and lane.is_open else ():
                one, slot = unread[answer.doc_id]
                document = answer.document
                if document is not None and document["_rev"] == one.rev:
                    job = lane.store.check(document)
                    del unread[answer.doc_id]
                    self._start(lane, job, slot)
                    continue
                del unread[answer.doc_id]
                slot.free(None)
                if document is None or generation(document["_rev"]) < generation(one.rev):  # its row has come
                    lane.expect(answer.doc_id, one.rev)
                    lane.read_again(answer.doc_id, _LOOK_AGAIN_S)
        except Exception as error:
            if isinstance(error, CouchError | BadDocumentError):
                _logger.info("jobs are read again", jobs=len(unread), reason=str(error))
            else:  # no document may take others along
                _logger.exception("jobs cannot be read, and are tried again", jobs=len(unread))
            for job_id in unread:
                lane.read_again(job_id, _LOOK_AGAIN_S)
        finally:
            lane.reading -= taken
            for _, slot in unread.values():
                slot.free(None)

    def _start(self, lane: Lane, job: Job, slot: Slot) -> None:
        if job.id in lane.executions:  # an older revision is being claimed, which cannot succeed
            slot.free(None)
            lane.read_again(job.id)
            return
        execution = lane.executions[job.id] = Execution(lane, job, slot)
        context = None if lane.context is None else lane.context.copy()
        task = self._loop.create_task(self._execute(execution), name=f"{TASKS} {job.id}", context=context)
        if job.id in lane.executions:  # an eager task may have ended already
            lane.tasks[job.id] = task

    async def _execute(self, execution: Execution) -> None:
        lane, job = execution.lane, execution.job
        again_in = None
        try:
            again_in = await self._executor.run(execution)
        finally:
            del lane.executions[job.id]
            lane.tasks.pop(job.id, None)
            if job.id in lane.in_conflict:
                self._marks.settle(lane, job.id)
            elif execution.is_to_be_read():
                lane.read_again(job.id)
            elif again_in is not None:
                lane.read_again(job.id, again_in)
            self._news.set()

    # --- ending it ---

    async def mind_own_beats(self) -> None:
        """Interrupt the running jobs where this daemon cannot beat: the others are about to take them over."""
        while True:
            if await self._presence.lost_or_found():
                _logger.error("this daemon cannot beat and stops its jobs: the others take it for dead")
                self._interrupt([*self.lanes], _URGENT_GRACE_S, cut_off=True)
            else:
                _logger.warning("this daemon beats again")
                self._news.set()

    def interrupt(self, grace_s: float) -> None:
        """Interrupt all jobs here: their tries do not count, and they go back to the queue.

        `grace_s`: seconds that their functions have to end, before they are left behind.
        """
        self._interrupt([*self.lanes], grace_s)

    @staticmethod
    def _interrupt(lanes: Iterable[Lane], grace_s: float, *, cut_off: bool = False) -> None:
        for lane in lanes:
            for execution in lane.executions.values():
                execution.interrupt(grace_s, cut_off=cut_off)

    async def idle(self) -> None:
        """Return as soon as no job runs here."""
        while tasks := self._running(self.lanes):
            await asyncio.wait(tasks)

    @staticmethod
    def _running(lanes: Iterable[Lane]) -> list[asyncio.Task[None]]:
        return [task for lane in lanes for task in lane.tasks.values() if not task.done()]

    async def close(self, timeout: float) -> None:
        """Let running jobs go on for `timeout` seconds, interrupt the others, and store what became of all of them."""
        reading = [*self._reading]
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        await self.close_lanes([*self.lanes], timeout, _URGENT_GRACE_S)

    async def _look_whether_cancelled(self, lanes: Iterable[Lane]) -> None:
        """Read the documents of running jobs whose feeds nobody reads any more."""
        with suppress(CouchError, TimeoutError):
            async with asyncio.timeout(_LAST_LOOK_S):
                for lane in lanes:
                    for answer in await lane.store.database.read([*lane.executions]):
                        if answer.document is not None and (execution := lane.executions.get(answer.doc_id)):
                            execution.note(answer.document)

    async def close_lanes(self, lanes: Sequence[Lane], timeout: float, grace_s: float = GRACE_S) -> None:
        """Let jobs of these lanes go on for `timeout` seconds, interrupt the others, store what became of all of them.

        The lanes are forgotten. `grace_s`: seconds that functions have, once interrupted.
        """
        await self._marks.close(lanes)
        for lane in lanes:
            lane.is_open = False
            for execution in lane.executions.values():
                execution.interrupted |= execution.phase is Phase.CLAIMING
        deadline = time.monotonic() + timeout
        while (tasks := self._running(lanes)) and (left_s := deadline - time.monotonic()) > 0:
            await asyncio.wait(tasks, timeout=min(left_s, _LAST_LOOK_S))
            await self._look_whether_cancelled(lanes)
        self._interrupt(lanes, grace_s)
        if tasks := self._running(lanes):
            _, left = await asyncio.wait(tasks, timeout=_LAST_WRITES_S)
            for task in left:
                task.cancel()
            if left:
                _, stuck = await asyncio.wait(left, timeout=_LAST_WRITES_S)
                for task in stuck:
                    _logger.error("does not end, and is left to itself", task=task.get_name())
        for lane in lanes:
            self.lanes.pop(lane, None)
