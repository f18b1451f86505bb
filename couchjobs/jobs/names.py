"""Fields of documents that look like a known one, misspelt: `sheduled_at`. They are kept, like all fields, and told."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel

from couchjobs.jobs.job import JobOptions

_ALIKE = 0.85


def near_misses(document: dict[str, Any], model: type[BaseModel]) -> list[str]:
    """Return a sentence for each field of the document, and of its options, that is nearly one that the model knows."""
    found = _in(document, model, "")
    options = document.get("options")
    return found + (_in(options, JobOptions, "options.") if isinstance(options, dict) else [])


def _in(fields: dict[str, Any], model: type[BaseModel], where: str) -> list[str]:
    known = {field.alias or name for name, field in model.model_fields.items()}
    return [
        f"{where}{name} is no field: did you mean {where}{close[0]}?"
        for name in fields
        if name not in known
        and not name.startswith("_")
        and (close := difflib.get_close_matches(name, known, 1, _ALIKE))
    ]
