"""Which triggers are known, and what those may mean that cannot be understood."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from couchjobs.couch.answers import Found
from couchjobs.couch.connection import connect
from couchjobs.scheduler.store import TriggerStore
from couchjobs.scheduler.trigger_set import TriggerSet
from couchjobs.settings import load_settings


@pytest.fixture
async def triggers() -> AsyncIterator[TriggerSet]:
    """No triggers yet."""
    async with connect(load_settings(url="http://127.0.0.1:9")) as connection:
        yield TriggerSet(TriggerStore(connection, connection.settings.tenant), 1.0)


async def test_unreadable_when_it_can_be_read_or_is_gone_then_all_is_known_again(triggers: TriggerSet) -> None:
    """Until then it may name any database, and no position is dropped."""
    document = {"_id": "t", "_rev": "2-b", "type": "@cron", "arguments": "often", "worker": "w", "message": None}
    for later in ([Found("t", None, document)], [Found("t", None, None, absent=True)], None):
        triggers._take_in_answers([Found("t", None, None, unreadable=True, reason="too deep")])
        assert not triggers.is_complete
        if later is None:
            triggers._forget_all()
        else:
            triggers._take_in_answers(later)
        assert triggers.is_complete


async def test_meant_when_a_trigger_cannot_be_understood_then_what_it_names_or_named(triggers: TriggerSet) -> None:
    """Its type may be what is wrong; a type of the clock names no database, and neither does a disabled one."""
    base = {"_id": "t", "worker": "w", "message": None}
    for fields, meant in (
        ({"type": "@event", "arguments": "orders:CREATED"}, set()),
        ({"type": "@evnt", "arguments": "customers:CREATED other"}, {"orders", "customers", "other"}),
        ({"type": ["@event"], "rules": [{"doctype": "invoices"}, 7]}, {"orders", "customers", "other", "invoices"}),
        ({"type": "@event", "arguments": "orders:CREATED"}, set()),
        ({"type": "@cron", "arguments": "* * often"}, {"orders"}),
    ):
        triggers.take_in([{**base, "_rev": "1-a", **fields}])
        assert triggers.meant == meant, fields
    triggers._take_in_answers([Found("t", None, None, absent=True)])
    triggers.take_in([{**base, "_rev": "3-a", "type": "@event", "arguments": "orders:NEVER", "disabled": True}])
    assert triggers.meant == set()
