"""Where a daemon goes on reading the feed of a database, as it stands in the control database.

`checkpoint:<database>` = `{domain, prefix, doctype, seq, instance, last, lost?, loops?}`: the position, which database
that is (`instance_start_time`), some rows before the position, by which an older copy is told from the database, when
and why the position was found to mean nothing (that stays until somebody has seen it: `couchjobs doctor --repair`),
and, by trigger, for which document it has fired again and again.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document, Witness
from couchjobs.errors import Forbidden, NotFound, Unauthorized
from couchjobs.prefixer import Prefixer
from couchjobs.timestamps import now, parse_time

CHECKPOINT = "checkpoint:"
_IS_REV = re.compile(r"^[1-9]\d{0,17}-[0-9a-f]{1,64}$")
LOST = "lost"
LOOPS = "loops"
_TOLD_FOR = timedelta(days=1)
LOOP = "does its worker write the document that fires it?"
BACKFILL = "documents of before that may have fired nothing: couchjobs triggers backfill"


def new_position(db: Prefixer, doctype: str) -> Document:
    """Return the document of a position that has not been written yet."""
    return {
        "_id": CHECKPOINT + db.followed_as(doctype),
        "domain": db.domain,
        "prefix": db.db_prefix,
        "doctype": doctype,
    }


def doctype_of(position: Document, db: Prefixer) -> str | None:
    """Return the doctype of a position of this tenant; None where it is another's, or no position."""
    doctype = position.get("doctype")
    own = (position.get("domain"), position.get("prefix")) == (db.domain, db.db_prefix)
    return doctype if own and isinstance(doctype, str) else None


def witnesses_of(position: Document) -> list[Witness]:
    """Return what a database must know that has come as far as the position; nothing where that is not told."""
    last: Any = position.get("last")
    found = last if isinstance(last, list) else []
    return [
        Witness(one["id"], one["rev"], one.get("deleted") is True, _number(one.get("purges")))
        for one in found
        if isinstance(one, dict) and isinstance(one.get("id"), str) and _IS_REV.match(str(one.get("rev")))
        if one["id"] and (not one["id"].startswith("_") or one["id"].startswith("_design/"))
    ]


def written(witness: Witness) -> Document:
    """Return a witness as it stands in a position."""
    deleted = {"deleted": True} if witness.deleted else {}
    purges = {"purges": witness.purges} if witness.purges else {}
    return {"id": witness.doc_id, "rev": witness.rev, **deleted, **purges}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def loss_of(position: Document) -> str:
    """Return when and why the position was lost, and what to do; empty where it was not."""
    lost = position.get(LOST)
    if not isinstance(lost, dict):
        return ""
    return f"position in the feed lost at {lost.get('at')} ({lost.get('reason')}): {BACKFILL}"


def loops_of(position: Document) -> dict[str, str]:
    """Return, by trigger, what is to be said of those that fired again and again for one document, since yesterday."""
    found: Any = position.get(LOOPS)
    told = {}
    for trigger_id, one in found.items() if isinstance(found, dict) else ():
        try:
            at = parse_time(str(one["at"]))
        except (KeyError, TypeError, ValueError):
            continue
        if at is not None and now() - at < _TOLD_FOR:
            told[trigger_id] = f"fired again and again for {one.get('document')!s:.100} at {one['at']}: {LOOP}"
    return told


async def read_positions(connection: Connection, db: Prefixer) -> dict[str, Document]:
    """Return the positions of the tenant by doctype; nothing where one may not know."""
    try:
        positions = await connection.control.with_prefix(CHECKPOINT)
    except (Forbidden, NotFound, Unauthorized):
        return {}
    return {doctype: one for one in positions if (doctype := doctype_of(one, db)) is not None}
