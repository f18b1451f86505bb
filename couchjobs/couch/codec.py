"""JSON as CouchDB has it: what is read and written again is the same, numbers of any size included.

orjson does nearly all of it. It reads a whole number of more than 64 bits as a float, which would be written back as
one, and refuses to write it, or what is nested deeper than 254 levels: there the standard library takes over.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from couchjobs.errors import BadRequest

_LONGEST_NUMBER = 4000
"""Digits; Python reads no longer ones (sys.int_info.default_max_str_digits)."""
_DIGITS = bytes.maketrans(b"123456789[, \t\r\n", b"000000000::::::")
_LONG_NUMBERS = (b":" + b"0" * 19, b":-" + b"0" * 19)
"""How a number of more than 18 digits begins, once all digits are 0, and all that may stand before it is `:`."""
_ALONE = (b"0" * 19, b"-" + b"0" * 19)
"""The same where nothing stands before it."""


def decode(text: bytes) -> Any:
    """Return the JSON.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deep to be read.
    """
    try:
        if not _has_long_numbers(text):
            return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # such as text with lone surrogates, which the standard library reads
    return json.loads(text, parse_int=_parse_int)


def _has_long_numbers(text: bytes) -> bool:
    """Return whether there may be a whole number that is too long for orjson. Costs 1 ns a byte."""
    digits = text.translate(_DIGITS)
    return digits.startswith(_ALONE) or any(number in digits for number in _LONG_NUMBERS)


def _parse_int(digits: str) -> int | str:
    """Return the number; one that is too long for Python to read stays text."""
    return int(digits) if len(digits) <= _LONGEST_NUMBER else digits


def encode(value: Any) -> bytes:
    """Return the value as JSON.

    Raises:
        BadRequest: it is none.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        try:
            return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            what = f"document {value.get('_id')!r}" if isinstance(value, dict) else "it"
            raise BadRequest(f"{what} is not JSON: {error}") from error


def _within_lists(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def _is_written(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


_WRITTEN_LEVELS = next(levels for levels in range(100, 10_000) if not _is_written(_within_lists(0, levels + 1)))
"""How many levels orjson writes: it looks at them a hundred times faster than this module can."""


def is_deeper(value: Any, most: int, text: bytes | None = None) -> bool:
    """Return whether lists and objects are nested in the value more than `most` levels deep.

    `text`: the value as JSON, where it is there already; most values are seen not to be by it.
    """
    if text is not None:
        if text.count(b"[") + text.count(b"{") <= most:
            return False
        if most < _WRITTEN_LEVELS and _is_written(_within_lists(value, _WRITTEN_LEVELS - most)):
            return False
    level = [value]
    for _ in range(most + 1):
        level = [
            part
            for outer in level
            if isinstance(outer, list | dict)
            for part in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(part, list | dict) for part in level)
