"""What a daemon has seen of a database, kept over its end: `seen:<database>` in the control database.

A feed shows of each document the last change alone. Of one that has changed while nobody followed, it does not tell
whether it is new, nor which of its changes have fired. So what has been seen is written down at the start and the end
of a daemon, and now and then: 16 bytes a document, as an attachment, with the position up to which that is. After a
kill it is some minutes old, or, of a large database, a quarter of its changes: of what has changed since and was not
known then, nobody says that it is new. Whoever begins reads what has changed since, and not all of the feed: of a
million documents that took 20 to 40 s.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from couchjobs.couch.database import Database
from couchjobs.couch.identity import Known
from couchjobs.errors import Conflict, CouchError, NotFound
from couchjobs.log import get_logger
from couchjobs.scheduler.positions import witnesses_of, written
from couchjobs.scheduler.seen import Seen

_logger = get_logger(__name__)
PREFIX = "seen:"
_NAME = "seen"
_BEFORE = "before"
"""What had been seen before the database was made anew."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What was written down."""

    seen: Seen
    up_to: Known
    """What the database had come as far as, all of which had been seen; without witnesses where that is not known."""


async def remember(control: Database, database: str, instance: str, what: Remembered) -> bool:
    """Write down what has been seen of a database, told from one made anew by its instance; return whether it is."""
    seen, up_to = what.seen, what.up_to
    position = {"instance": instance, "seq": up_to.position, "last": [written(one) for one in up_to.witnesses]}
    doc_id = PREFIX + database
    parts = {_NAME: seen} if seen.before is None else {_NAME: seen, _BEFORE: seen.before}
    attachments = {
        name: {"content_type": "application/octet-stream", "data": base64.b64encode(part.as_bytes()).decode()}
        for name, part in parts.items()
    }
    try:
        present = await control.find(doc_id)
        rev = {} if present is None else {"_rev": present["_rev"]}
        await control.put({"_id": doc_id, **rev, **position, "_attachments": attachments})
    except Conflict:
        _logger.debug("another daemon has written down what was seen", database=database)
        return False
    except CouchError as error:
        _logger.info("what was seen is not written down", database=database, reason=str(error))
        return False
    return True


async def remembered(control: Database, database: str, instance: str | None) -> Remembered | None:
    """Return what was written down of a database; None where nothing was, or of another one of that name.

    `instance`: of the database as it is now; None: of whichever there was.

    Raises:
        CouchError: it cannot be read.
    """
    document = await control.find(PREFIX + database)
    if document is None or instance not in (None, document.get("instance")):
        return None
    try:
        rev = document["_rev"]  # another daemon may write meanwhile
        seen = Seen.from_bytes(await control.attachment(PREFIX + database, _NAME, rev))
        if _BEFORE in (document.get("_attachments") or {}):
            seen.before = Seen.from_bytes(await control.attachment(PREFIX + database, _BEFORE, rev))
    except (NotFound, ValueError) as error:
        _logger.warning("what was seen cannot be used", database=database, reason=str(error))
        return None
    up_to = Known(str(document.get("seq") or "0"), str(document.get("instance", "")), witnesses_of(document))
    return Remembered(seen, up_to)


async def forget(control: Database, database: str) -> None:
    """Remove what was written down."""
    document = await control.find(PREFIX + database)
    if document is not None:
        try:
            await control.delete(document["_id"], document["_rev"])
        except Conflict:
            _logger.debug("it is gone, or another daemon has written it", database=database)
