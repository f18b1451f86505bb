"""Fields of documents that look like a known one, misspelt: `sheduled_at`. They are kept, like all fields, and told.

In `options` nobody has fields of his own: whatever is not known there is told.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Any

from pydantic import BaseModel

from couchjobs.jobs.job import JobOptions

_ALIKE = 0.85
_HARDLY_ALIKE = 0.5
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
            close = difflib.get_close_matches(name, known, 1, _HARDLY_ALIKE)
            meant = f"did you mean options.{close[0]}?" if close else f"there are {', '.join(known)}"
            told.append(f"options.{name} is no option: {meant}")
    return told


def _in(fields: dict[str, Any], model: type[BaseModel]) -> list[str]:
    known = {field.alias or name for name, field in model.model_fields.items()}
    return [
        f"{name} is no field: did you mean {close[0]}?"
        for name in islice(fields, _MOST_NAMES)
        if name not in known
        and not name.startswith("_")
        and (close := difflib.get_close_matches(name, known, 1, _ALIKE))
    ]
