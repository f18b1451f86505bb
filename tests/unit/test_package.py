"""The package as its users import it."""

from __future__ import annotations

import couchjobs
from couchjobs.couch.design import read_design_document
from couchjobs.installation import JOBS_DESIGN

NAMES = """
Couchjobs JobFailedError PushResult Resources current_context current_job on_failed
AbortJob AdminOnlyError BadDocumentError BadTriggerError Broker ClosedError ConfigurationError Connection CouchBroker
CouchScheduler CouchjobsError Event Job JobNotFoundError JobOptions JobRequest JobStore JobSystem MalformedTriggerError
Message MessageNilError MessageUnmarshalError Prefixer QueueClosedError Scheduler Settings State TriggerInfos
TriggerNotFoundError UnknownTriggerError UnknownWorkerError WORKER_TYPE Worker WorkerConfig WorkerContext WorkersList
add_worker connect get_job get_jobs get_jobs_before_date get_lasts_jobs get_queued_jobs get_workers_list
get_workers_names_list iter_jobs_before_date iter_queued_jobs load_settings new_job new_message system_start unmarshal
wait worker MemBroker MemScheduler Trigger EventTrigger TriggerState get_trigger_state new_trigger
"""


def test_all_when_compared_then_these_names() -> None:
    """Adding or removing one is on purpose."""
    assert set(couchjobs.__all__) == set(NAMES.split())
    assert len(couchjobs.__all__) == len(set(couchjobs.__all__))
    for name in couchjobs.__all__:
        assert getattr(couchjobs, name) is not None


def test_views_when_shipped_then_read() -> None:
    """One file a view; a first line names the reduce function."""
    for name in JOBS_DESIGN:
        document = read_design_document(name, 1)
        assert document["_id"] == f"_design/{name}"
        assert all(view["map"].startswith("function") for view in document["views"].values())
    assert read_design_document("queue", 1)["views"]["due"]["reduce"] == "_count"
