"""What may be said of changes that came while nobody followed, by what was written down before."""

from __future__ import annotations

import pytest
from triggering import orders_of

from couchjobs.couch.changes import Change
from couchjobs.couch.connection import Connection
from couchjobs.couch.identity import Known
from couchjobs.couch.positions import current_sequence
from couchjobs.prefixer import Prefixer
from couchjobs.scheduler.past import Beginning, Past
from couchjobs.scheduler.remembered import Remembered
from couchjobs.scheduler.seen import Seen


@pytest.mark.parametrize(("is_complete", "verbs"), [(True, ("CREATED", "UPDATED")), (False, ("UPDATED",))])
async def test_document_when_it_is_not_in_what_was_written_down_then_new_only_if_that_was_complete(
    connection: Connection, db: Prefixer, is_complete: bool, verbs: tuple[str, ...]
) -> None:
    """After a kill it is older than the position: the document may have been there, and have fired, by then."""
    orders = await orders_of(connection, db)
    if not is_complete:
        await orders.put({"_id": "x"})
    position = await current_sequence(orders)
    before = position if is_complete else "0"
    rev = await orders.put({"_id": "x"} if is_complete else await orders.get("x"))
    if is_complete:
        rev = await orders.put({"_id": "x", "_rev": rev})
    past = Past()
    known = Remembered(Seen(), Known(before))
    await past.look_back(orders, Beginning(position, [], known), None)
    change = Change("x", rev, deleted=False)
    assert not past.has(change)
    assert past.verbs(change) == verbs
