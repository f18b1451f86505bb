"""Secrets that services sign their webhooks with: `secret:webhook:<tenant>:<name>` = `{value}`.

They are in the control database, which producers must not be able to read.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from couchjobs.couch.connection import Connection
from couchjobs.errors import Conflict, MalformedTriggerError
from couchjobs.prefixer import Prefixer
from couchjobs.triggers.delivery import RefusedDelivery, read_delivery
from couchjobs.triggers.infos import TriggerInfos

_PREFIX = "secret:webhook:"


def _id_of(db: Prefixer, name: str) -> str:
    return f"{_PREFIX}{db.key}:{name}"


async def read_secret(connection: Connection, db: Prefixer, name: str) -> str:
    """Return the secret of that name.

    Raises:
        RefusedDelivery: there is none: nothing can be checked.
    """
    document = await connection.control.find(_id_of(db, name))
    value = None if document is None else document.get("value")
    if not isinstance(value, str) or not value:
        raise RefusedDelivery(f"there is no secret {name!r}: couchjobs secrets set {name}")
    return value


async def without_secret(connection: Connection, db: Prefixer, triggers: Iterable[TriggerInfos]) -> dict[str, str]:
    """Return what to tell of each @webhook whose secret is not stored, by the id of the trigger.

    Raises:
        Forbidden: the control database is not for this user.
    """
    named: dict[str, str] = {}
    for infos in triggers:
        with suppress(MalformedTriggerError):  # which is told elsewhere
            if name := read_delivery(infos).secret:
                named[infos.id] = name
    stored = await connection.control.get_many({_id_of(db, name) for name in named.values()})
    return {
        trigger_id: f"there is no secret {name!r}, so nothing that is sent is taken: couchjobs secrets set {name}"
        for trigger_id, name in named.items()
        if _id_of(db, name) not in stored
    }


async def write_secret(connection: Connection, db: Prefixer, name: str, value: str | None) -> None:
    """Store a secret, or remove it where there is no value.

    Raises:
        Forbidden: the control database is not for this user.
    """
    while True:
        present = await connection.control.find(_id_of(db, name))
        try:
            if value is not None:
                await connection.control.put({**(present or {}), "_id": _id_of(db, name), "value": value})
            elif present is not None:
                await connection.control.delete(present["_id"], present["_rev"])
        except Conflict:
            continue
        return
