"""Whatever people write: each parser answers or raises its own error, and never takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couchjobs.durations import parse_duration, read_seconds
from couchjobs.errors import BadDocumentError, CouchjobsError, MalformedTriggerError
from couchjobs.jobs.job import Job
from couchjobs.jobs.message import decode_message
from couchjobs.timestamps import parse_time
from couchjobs.triggers.cron import parse_cron
from couchjobs.triggers.event import parse_event
from couchjobs.triggers.every import parse_every
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.kinds import parse_trigger
from couchjobs.triggers.once import parse_at, parse_in

LONGEST_S = 0.05
WORDS = "@every @cron @at @in @event TZ=Europe/Paris on the between and am pm mon-fri 1-5 */3 ? , : . != h m s ms 2026-"
TEXTS = (
    st.text(max_size=200)
    | st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join)
    | st.lists(st.sampled_from([*WORDS.split(), "9" * 50, "0", "(((", "::::"]), max_size=60).map("".join)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
JOB_FIELDS = [*(field.alias or name for name, field in Job.model_fields.items()), "unknown"]
TRIGGER_FIELDS = [*(field.alias or name for name, field in TriggerInfos.model_fields.items()), "unknown"]
PARSERS: list[tuple[Callable[[Any], object], type[Exception]]] = [
    (parse_event, MalformedTriggerError),
    (parse_every, MalformedTriggerError),
    (parse_at, MalformedTriggerError),
    (parse_in, MalformedTriggerError),
    (lambda text: parse_cron(text, None), MalformedTriggerError),
    (lambda text: parse_cron("@hourly", text), MalformedTriggerError),
    (parse_duration, ValueError),
    (read_seconds, ValueError),
    (parse_time, ValueError),
    *(
        (lambda text, kind=kind: parse_trigger(TriggerInfos(type=kind, worker="w", arguments=text)), CouchjobsError)
        for kind in ("@hourly", "@daily", "@weekly", "@monthly", "@nothing")
    ),
]


def answers(parse: Callable[[Any], object], given: Any, error: type[Exception]) -> None:
    """Check one answer; the faster of two, for the garbage collector is nobody's input."""
    seconds = []
    for _ in range(2):
        began = time.thread_time()
        try:
            parse(given)
        except error:
            pass
        seconds.append(time.thread_time() - began)
        if seconds[-1] < LONGEST_S:
            return
    raise AssertionError(f"{min(seconds):.3f} s for {given!r}")


@pytest.mark.parametrize(("parse", "error"), PARSERS)
@given(text=TEXTS)
@settings(deadline=None)
def test_parser_when_any_text_then_answers_or_its_own_error_in_no_time(
    parse: Callable[[Any], object], error: type[Exception], text: str
) -> None:
    """Times, durations, the arguments of each kind of trigger."""
    answers(parse, text, error)


@given(fields=st.dictionaries(st.sampled_from(JOB_FIELDS), JSON, max_size=8))
@settings(deadline=None)
def test_job_when_any_document_then_a_job_or_the_reason_in_no_time(fields: dict[str, Any]) -> None:
    """Looking at it never fails."""
    document = {"worker": "w", "message": None, "state": "queued", **fields}
    answers(Job.from_document, document, BadDocumentError)
    assert isinstance(Job.read(document), Job)


@given(fields=st.dictionaries(st.sampled_from(TRIGGER_FIELDS), JSON, max_size=8))
@settings(deadline=None)
def test_trigger_when_any_document_then_a_trigger_or_the_reason_in_no_time(fields: dict[str, Any]) -> None:
    """And what it says is parsed or refused."""
    document = {"type": "@cron", "worker": "w", "arguments": "@daily", **fields}
    answers(lambda given: parse_trigger(TriggerInfos.from_document(given)), document, CouchjobsError)


@given(value=JSON | st.fixed_dictionaries({"Type": JSON, "Data": JSON}))
@settings(deadline=None)
def test_message_when_any_value_then_decoded_or_its_own_error_in_no_time(value: Any) -> None:
    """The old form included."""
    answers(decode_message, value, CouchjobsError)
