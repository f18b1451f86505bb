"""What pydantic finds wrong with a value, in the words of who writes JSON and Python, not of who knows pydantic."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_OBJECT, _LIST, _TEXT = "must be an object", "must be a list", "must be text"
_WHOLE, _NUMBER, _BOOLEAN = "must be a whole number", "must be a number", "must be true or false"
_KINDS = {
    "bool_parsing": _BOOLEAN,
    "bool_type": _BOOLEAN,
    "dict_type": _OBJECT,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "list_type": _LIST,
    "model_attributes_type": _OBJECT,
    "model_type": _OBJECT,
    "string_type": _TEXT,
}
"""Errors that say of which kind a value must be: what it is instead is told, too."""
_TOLD = {
    "enum": "must be {expected}",
    "extra_forbidden": "there is no such field",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "it is missing",
    "none_required": "must be null",
    "string_too_long": "is longer than {max_length} characters",
    "string_too_short": "is shorter than {min_length} characters",
}
_NAMES = {str: "text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


def reasons(error: ValidationError) -> str:
    """Return what is wrong in one line: `field.path: what is wrong; ...`, of the whole without a path.

    Values are not repeated: some are secrets.
    """
    told = [(".".join(map(str, one["loc"])), reason(one)) for one in error.errors()]
    return "; ".join(f"{where}: {what}" if where else what for where, what in told)


def reason(error: ErrorDetails) -> str:
    """Return what is wrong in one place, without the place."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _KINDS:
        if kind == "int_from_float" or (_KINDS[kind] is _WHOLE and isinstance(value, float)):
            return f"{_WHOLE}, and has a fraction"
        name = "null" if value is None else _NAMES.get(type(value), f"of type {type(value).__name__}")
        return f"{_KINDS[kind]}, and is {name}"
    if kind == "string_too_short" and context.get("min_length") == 1:
        return "must not be empty"
    if kind in _TOLD:
        return _TOLD[kind].format_map(context)
    return error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
