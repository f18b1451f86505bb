"""Fields that are nearly known ones."""

from __future__ import annotations

from typing import Any

import pytest

from couchjobs.jobs.job import Job
from couchjobs.jobs.names import near_misses
from couchjobs.triggers.infos import TriggerInfos


@pytest.mark.parametrize(
    ("document", "model", "meant"),
    [
        ({"sheduled_at": "2026-01-01T00:00:00Z"}, Job, "scheduled_at"),
        ({"options": {"max_execcount": 3}}, Job, "options.max_exec_count"),
        ({"time_zone": "Europe/Paris"}, TriggerInfos, "timezone"),
        ({"argument": "1h"}, TriggerInfos, "arguments"),
        ({"order": 1, "note": "mine", "_attachments": {}, "customer_id": 5}, Job, ""),
        ({"description": "mine", "owner": "ann"}, TriggerInfos, ""),
    ],
)
def test_field_when_nearly_a_known_one_then_told(document: dict[str, Any], model: Any, meant: str) -> None:
    """One's own fields are none."""
    found = near_misses(document, model)
    assert found == ([] if not meant else found)
    assert not meant or found[0].endswith(f"did you mean {meant}?")


async def test_plugin_when_its_fixture_is_asked_for_then_a_system_in_memory(couchjobs: Any) -> None:
    """As in the tests of users."""
    async with couchjobs() as system:
        assert await system.run_pending() == 0
