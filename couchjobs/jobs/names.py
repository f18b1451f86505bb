"""Fields of documents that look like a known one, misspelt, or named as others name it: `sheduled_at`, `delay`, `tz`.

They are kept, like all fields, and told. In `options` nobody has fields of his own: all that are not known are told.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any

from pydantic import BaseModel

from couchjobs.jobs.job import JobOptions

_ALIKE = 0.85
"""From which a name is taken for a slip of another: `time_out` and `timeout`, not `import` and `export`."""
_HARDLY_ALIKE = 0.5
"""The same among the options of jobs, where a name that is none of them is a mistake in any case."""
_ELSEWHERE = {
    **dict.fromkeys(("delay", "run_at", "run_in", "eta", "countdown", "not_before", "start_at"), "scheduled_at"),
    **dict.fromkeys(
        ("max_retries", "retries", "max_tries", "tries", "max_attempts", "attempts", "retry"), "options.max_exec_count"
    ),
    **dict.fromkeys(("time_limit", "max_runtime"), "options.timeout"),
    **dict.fromkeys(("backoff", "retry_backoff", "retry_after"), "options.retry_delay"),
    **{name: f"options.{name}" for name in JobOptions.model_fields},
    **dict.fromkeys(("enabled", "active", "paused"), "disabled"),
    **dict.fromkeys(("tz", "time_zone", "zone"), "timezone"),
    **dict.fromkeys(("schedule", "crontab"), "arguments"),
    **dict.fromkeys(("args", "kwargs", "data", "body", "params"), "message"),
}
"""What other engines call it, and where it is here."""
_MOST_NAMES = 200
"""Fields that are compared, each of which takes 0.03 ms: whoever writes a document may write a million."""


def near_misses(document: dict[str, Any], model: type[BaseModel]) -> list[str]:
    """Return a sentence for each field of the document, and of its options, that is nearly one that the model knows."""
    found = _in(document, model)
    options = document.get("options")
    return found + (unknown_options(options) if isinstance(options, dict) else [])


def unknown_options(options: Iterable[str]) -> list[str]:
    """Return a sentence for each name that is no option of a job."""
    known = sorted(JobOptions.model_fields)
    told = []
    for name in islice(options, _MOST_NAMES):
        if name not in known:
            close = meant_by(name, known, _HARDLY_ALIKE)
            meant = f"did you mean options.{close}?" if close else f"there are {', '.join(known)}"
            told.append(f"options.{name} is no option: {meant}")
    return told


def meant_by(name: str, known: Collection[str], alike: float = 0.6) -> str:
    """Return which of the known names somebody may have meant; empty where none comes to mind."""
    if (other := _ELSEWHERE.get(name, "").rpartition(".")[-1]) in known:
        return other
    return next(iter(difflib.get_close_matches(name, known, 1, alike)), "")


def _in(fields: dict[str, Any], model: type[BaseModel]) -> list[str]:
    known = {field.alias or name for name, field in model.model_fields.items()}
    return [
        f"{name} is no field: did you mean {meant}?"
        for name in islice(fields, _MOST_NAMES)
        if name not in known and not name.startswith("_") and (meant := _meant(name, known))
    ]


def _meant(name: str, known: Collection[str]) -> str:
    where, _, other = _ELSEWHERE.get(name, "").rpartition(".")
    if where and where in known and other in JobOptions.model_fields:
        return f"{where}.{other}"
    return meant_by(name, known, _ALIKE)
