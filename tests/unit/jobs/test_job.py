"""The job document: read, moved, written."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from couchjobs.errors import BadDocumentError
from couchjobs.jobs import transitions
from couchjobs.jobs.job import Job, JobError, JobOptions, State, is_job
from couchjobs.jobs.request import JobRequest, new_job
from couchjobs.prefixer import Prefixer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DB = Prefixer("d.example", "p")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read(**fields: Any) -> Job:
    """A job as the shortest document gives it."""
    return Job.from_document({"_id": "j", "_rev": "1-a", "worker": "w", "message": None, "state": "queued", **fields})


def moved(job: Job, changes: dict[str, Any]) -> dict[str, Any]:
    """The next document; the job follows it."""
    document = job.document_with(changes)
    job.moved(changes, document, "2-b")
    return document


def test_new_job_when_requested_then_says_what_is_needed_and_no_more() -> None:
    """Short documents."""
    job = new_job(DB, JobRequest(worker_type="w", message={"a": 1}, queued_at=NOW, id="j"))
    assert job.document() == {
        "_id": "j",
        "domain": "d.example",
        "prefix": "p",
        "worker": "w",
        "message": {"a": 1},
        "state": "queued",
        "queued_at": "2026-01-01T00:00:00.000000Z",
    }


def test_claim_when_document_is_short_then_filled_in() -> None:
    """`exec_count` goes up at the claim."""
    job = read()
    document = moved(job, transitions.claimed(job, DB, "nonce", "daemon", NOW))
    time = "2026-01-01T00:00:00.000000Z"
    assert document == {
        "_id": "j",
        "_rev": "2-b",
        "worker": "w",
        "message": None,
        "state": "running",
        "domain": "d.example",
        "prefix": "p",
        "queued_at": time,
        "started_at": time,
        "exec_count": 1,
        "claim": {"id": "nonce", "daemon": "daemon", "at": time},
    }
    assert (job.state, job.exec_count, job.rev, job.started_at) == (State.RUNNING, 1, "2-b", NOW)


def test_life_when_tried_again_then_started_at_is_that_of_the_first_try() -> None:
    """What `max_exec_time` is counted from."""
    job = read()
    moved(job, transitions.claimed(job, DB, "n", "d", NOW))
    moved(job, transitions.retried(job, NOW, "E", NOW + timedelta(seconds=1)))
    assert (job.state, job.claim, job.exec_count) == (State.QUEUED, None, 1)
    document = moved(job, transitions.claimed(job, DB, "m", "d", NOW + timedelta(seconds=2)))
    assert document["started_at"] == "2026-01-01T00:00:00.000000Z"
    document = moved(job, transitions.done(NOW))
    assert document["state"] == "done"
    assert [error["error"] for error in document["errors"]] == ["E"]
    document = moved(job, transitions.requeued(job, NOW))
    assert not {"claim", "started_at", "finished_at", "scheduled_at"} & document.keys()
    assert document["exec_count"] == 0


def test_release_when_given_up_then_the_try_does_not_count() -> None:
    """Back as it was."""
    job = read()
    before = {**job.document()}
    moved(job, transitions.claimed(job, DB, "n", "d", NOW))
    document = moved(job, transitions.released(job))
    assert {key: document[key] for key in before if key != "_rev"} == {
        key: before[key] for key in before if key != "_rev"
    }
    assert document["exec_count"] == 0
    assert "claim" not in document


def test_errors_when_many_then_the_last_ten_are_kept() -> None:
    """Documents stay short."""
    job = read()
    for number in range(15):
        moved(job, transitions.retried(job, NOW, f"E{number}", NOW))
    assert [error["error"] for error in job.document()["errors"]] == [f"E{n}" for n in range(5, 15)]
    assert len(moved(job, transitions.errored(job, NOW, "x" * 50_000))["error"]) == 10_000


KNOWN = set(Job.model_fields) | {"_id", "_rev", "id", "rev"}
UNKNOWN = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name not in KNOWN and name[0] != "_"), JSON, max_size=4
)


@given(UNKNOWN, JSON)
def test_unknown_fields_when_job_lives_then_survive(unknown: dict[str, Any], message: Any) -> None:
    """Byte for byte in meaning, through every transition."""
    if isinstance(message, dict) and message.keys() == {"Type", "Data"}:
        return
    job = read(**unknown | {"message": message})
    for changes in (
        transitions.claimed(job, DB, "n", "d", NOW),
        transitions.retried(read(), NOW, "E", NOW),
        transitions.claimed(job, DB, "m", "d", NOW),
        transitions.errored(read(), NOW, "E"),
        transitions.requeued(job, NOW),
    ):
        document = moved(job, changes)
        assert {name: document[name] for name in unknown} == unknown
        assert document["message"] == message
    assert transitions.unreadable({**unknown, "_id": "j"}, NOW, "why").items() >= unknown.items()


def test_cozy_document_when_moved_then_its_own_form_stays() -> None:
    """The old message form, Go's zero times, fields of a cozy-stack."""
    document = {
        "_id": "j",
        "_rev": "1-a",
        "domain": "cozy.example",
        "worker": "w",
        "message": {"Type": "json", "Data": "eyJ0byI6ICJhbm4ifQ=="},
        "options": None,
        "state": "queued",
        "queued_at": "2026-01-01T00:00:00.123456789+01:00",
        "started_at": "0001-01-01T00:00:00Z",
        "finished_at": "0001-01-01T00:00:00Z",
        "couch_cluster": 3,
    }
    job = Job.from_document(document)
    assert job.message == {"to": "ann"}
    assert job.started_at is None
    running = job.document_with(transitions.claimed(job, DB, "n", "d", NOW))
    assert running["message"] == document["message"]
    assert running["queued_at"] == document["queued_at"]
    assert running["couch_cluster"] == 3
    assert running["domain"] == "cozy.example"


@given(st.dictionaries(st.sampled_from(sorted(KNOWN | {"message"})), JSON, max_size=12))
def test_document_when_it_holds_anything_then_a_job_or_a_reason(document: dict[str, Any]) -> None:
    """And reading for looking at never fails."""
    document = {"_id": "j", **document}
    try:
        Job.from_document(document)
    except BadDocumentError as error:
        assert str(error)
    assert Job.read(document).document() == document


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.sampled_from(["", "j"]),
            "prefix": st.sampled_from([None, "", "p"]),
            "message": JSON,
            "payload": JSON,
            "priority": st.sampled_from([None, 0, 3]),
            "manual_execution": st.booleans(),
            "queued_at": st.sampled_from([None, NOW, NOW.astimezone(timezone(timedelta(hours=2)))]),
            "options": st.sampled_from([None, JobOptions(), JobOptions(timeout=5)]),
            "errors": st.sampled_from([[], [JobError(at=NOW, error="e")]]),
            "trace_context": st.sampled_from([None, {"traceparent": "x"}]),
            "seconds": st.sampled_from([None, 0.0, 1.5]),
            "mine": JSON,
        },
    )
)
def test_document_when_of_a_new_job_then_what_its_model_says(fields: dict[str, Any]) -> None:
    """By the short way and by the long one: what is not its default, and the state and message always."""
    job = Job(worker="w", **fields)
    own = {name: fields[name] for name in ("message", "payload") if fields.get(name) is not None}
    dumped = job.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude_none=True, exclude={"message", "payload"}
    )
    assert job.document() == {**dumped, "state": "queued", "message": None, **own}


def test_clone_when_changed_then_the_original_stays() -> None:
    """Nothing is shared."""
    job = read(message={"a": [1]})
    twin = job.clone()
    twin.message["a"].append(2)
    twin.document()["message"]["a"].append(3)
    assert job.document()["message"] == {"a": [1]}
    assert job.match("worker", "w")
    assert job.match("state", "queued")
    assert not job.match("domain", "")
    assert (job.doc_type, job.domain_name, job.db_prefix) == ("jobs", "", "")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"worker": "w"}, True),
        ({"state": "queued"}, True),
        ({"state": "open"}, False),
        ({"_id": "_design/x", "worker": "w"}, False),
    ],
)
def test_is_job_when_somebody_meant_one_then_true(document: dict[str, Any], expected: bool) -> None:
    """It names a worker, or is queued."""
    assert is_job(document) is expected


def parts_of(value: Any) -> list[int]:
    """The identities of all dicts, lists and models in a value."""
    if isinstance(value, BaseModel):
        return [id(value), *(one for part in value.__dict__.values() for one in parts_of(part))]
    if isinstance(value, dict):
        return [id(value), *(one for part in value.values() for one in parts_of(part))]
    return [id(value), *(one for part in value for one in parts_of(part))] if isinstance(value, list) else []


def test_copy_for_a_function_when_it_is_changed_anywhere_then_the_job_and_its_document_stay() -> None:
    """It shares nothing that can be changed, whatever the field, a field of somebody else's too."""
    deep = {"of": [{"of": [1]}]}
    json = ("message", "event", "payload", "payload_headers", "progress", "result", "trace_context", "their_own")
    told = {"errors": [{"exec_count": 1, "error": "e"}], "payload_ids": ["a"], "options": {"max_exec_count": 2}}
    claim = {"id": "c", "daemon": "d"}
    document = {"_id": "j", "_rev": "1-a", "worker": "w", "state": "running", "claim": claim, **told}
    job = Job.from_document({**document, **{name: copy.deepcopy(deep) for name in json}})
    twin = job.for_function()
    assert set(parts_of(twin)[1:]).isdisjoint([*parts_of(job), *parts_of(job.document())])
    assert set(parts_of(twin.document())).isdisjoint([*parts_of(job), *parts_of(job.document())])
