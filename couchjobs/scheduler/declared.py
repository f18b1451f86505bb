"""Schedules that a program declares in code: `@worker("report", cron="0 3 * * *", timezone="Europe/Paris")`.

A daemon writes them as trigger documents when it starts, and again where they are gone, one a worker type, with the id
`code:<worker type>` and the mark `declared_in_code`. They are changed and removed as the code is, once no other living
daemon declares them: two versions may run beside one another for a while. A document without the mark is somebody
else's, and left alone; so is what people add to one that has it, such as `disabled`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from couchjobs.couch.database import Document
from couchjobs.errors import Conflict, CouchError, CouchjobsError, Forbidden
from couchjobs.log import get_logger
from couchjobs.scheduler.store import TriggerStore
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.workers.config import WorkerConfig

_logger = get_logger(__name__)
MARK = "declared_in_code"
FIELDS = frozenset({"type", "arguments", "timezone", "worker"})
"""Those that the code says."""
_OF_A_SCHEDULE = ("anchor", "starts", "ends", "misfire", "misfire_limit", "grace", "debounce")


def declared_by(config: WorkerConfig) -> Document | None:
    """Return the trigger document that the worker declares; None where it declares none."""
    if config.every is None and config.cron is None:
        return None
    kind, arguments = ("@every", config.every) if config.every is not None else ("@cron", config.cron)
    document: Document = {
        "_id": f"code:{config.worker_type}",
        "type": kind,
        "arguments": arguments,
        "worker": config.worker_type,
        "message": None,
        MARK: True,
    }
    if config.timezone is not None:
        document["timezone"] = config.timezone
    return document


def ids_declared_by(workers: Iterable[WorkerConfig]) -> frozenset[str]:
    """Return the ids of the triggers that these workers declare."""
    return frozenset(f"code:{one.worker_type}" for one in workers if one.every is not None or one.cron is not None)


async def declare(
    store: TriggerStore, workers: Iterable[WorkerConfig], elsewhere: Collection[str] = (), *, changes: bool = True
) -> None:
    """Make the triggers of these worker types be what the code says.

    `elsewhere`: the ids of those that other daemons declare: they are not removed. `changes`: whether those that are
    there are changed; else what is gone is written again.

    Raises:
        CouchError: CouchDB does not answer.
    """
    for config in workers:
        wanted = declared_by(config)
        if wanted is None and f"code:{config.worker_type}" in elsewhere:
            continue
        try:
            await _declare(store, f"code:{config.worker_type}", wanted, changes=changes)
        except Forbidden as error:
            _logger.error("a schedule in code may not be written", worker=config.worker_type, reason=str(error))  # noqa: TRY400


def _merged(store: TriggerStore, present: Document, wanted: Document) -> Document:
    """Return what the code says, with what people have added, but for what does not go together with it any more."""
    kept = {name: value for name, value in present.items() if name not in FIELDS}
    for left_out in ((), _OF_A_SCHEDULE):
        merged = {**{name: value for name, value in kept.items() if name not in left_out}, **wanted}
        try:
            parse_trigger(store.read(merged))
        except CouchjobsError as error:
            _logger.warning(
                "what was added to a schedule in code does not fit it", trigger=present["_id"], reason=str(error)
            )
        else:
            break
    return merged


async def _declare(store: TriggerStore, trigger_id: str, wanted: Document | None, *, changes: bool) -> None:
    while True:
        present = await store.database.find(trigger_id)
        if present is not None and present.get(MARK) is not True:
            if wanted is not None:
                _logger.warning("a trigger of somebody else's has the id of a schedule in code", trigger=trigger_id)
            return
        try:
            if wanted is None:
                if present is not None:
                    await store.database.delete(trigger_id, present["_rev"])
                    _logger.info("a schedule is no longer in code, and removed", trigger=trigger_id)
                return
            if present is None:
                domain = {"domain": store.db.domain, **({"prefix": store.db.prefix} if store.db.prefix else {})}
                await store.database.put({**domain, **wanted})
                return
            if not changes or all(present.get(name) == wanted.get(name) for name in FIELDS):
                return
            await store.database.put(_merged(store, present, wanted))
        except Conflict:
            continue
        except CouchError:
            raise
        return
