"""The order of JSON values, as CouchDB has it.

Text is ordered without regard to case first; other letters than those of ASCII by their code points, where CouchDB asks
ICU. Source: CouchDB documentation, "Views Collation".
"""

from __future__ import annotations

import unicodedata
from typing import Any

_SYMBOLS = "_-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$"
_ORDER = {symbol: number for number, symbol in enumerate(_SYMBOLS)}
TYPES = ("null", "boolean", "number", "string", "array", "object")
"""In their order."""


def compare(one: Any, other: Any) -> int:
    """Return -1, 0 or 1, by CouchDB's order of JSON: null, false, true, numbers, text, lists, objects."""
    kinds = type_number(one), type_number(other)
    if kinds[0] != kinds[1]:
        return -1 if kinds[0] < kinds[1] else 1
    match TYPES[kinds[0]]:
        case "string":
            return _compare_texts(one, other)
        case "array":
            return _compare_lists(one, other)
        case "object":
            pairs = ([*one.items()], [*other.items()])
            return _compare_lists(
                [part for pair in pairs[0] for part in pair], [part for pair in pairs[1] for part in pair]
            )
    return 0 if one is None else _sign(one, other)


def raw_order(one: Any, other: Any) -> int:
    """Return the order of ids: by their bytes, and after all that is no text."""
    if not isinstance(one, str) or not isinstance(other, str):
        return 1
    return _sign(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _compare_lists(one: list[Any], other: list[Any]) -> int:
    for left, right in zip(one, other, strict=False):
        if (found := compare(left, right)) != 0:
            return found
    return _sign(len(one), len(other))


def _compare_texts(one: str, other: str) -> int:
    """Return their order: by letters without case and accents, then by accents, then by case."""
    if one == other:
        return 0
    if not (one.isascii() and other.isascii()):
        one, other = unicodedata.normalize("NFD", one), unicodedata.normalize("NFD", other)
    plain = one, other
    if not (one.isascii() and other.isascii()):
        plain = _without_accents(one), _without_accents(other)
    for left, right in zip(*plain, strict=False):
        if left != right and (found := _sign(_letter(left), _letter(right))) != 0:
            return found
    if (found := _sign(len(plain[0]), len(plain[1]))) != 0:
        return found
    if (found := _sign(_accents(one), _accents(other))) != 0:
        return found
    for left, right in zip(*plain, strict=True):
        if left != right:
            return -1 if right.isupper() else 1
    return 0


def _without_accents(text: str) -> str:
    return "".join(one for one in text if not unicodedata.combining(one))


def _accents(text: str) -> list[str]:
    return [] if text.isascii() else [one for one in text if unicodedata.combining(one)]


def _letter(one: str) -> tuple[int, int, str]:
    if one in _ORDER:
        return 1, _ORDER[one], ""
    if one.isspace() or ord(one) < 32:
        return 0, ord(one), ""
    return (2, int(one), "") if one.isdigit() and one.isascii() else (3, 0, one.lower())


def type_number(value: Any) -> int:
    """Return the place of a value's type in `TYPES`."""
    if value is None:
        return 0
    if isinstance(value, bool):
        return 1
    if isinstance(value, int | float):
        return 2
    return 3 if isinstance(value, str) else 4 if isinstance(value, list) else 5


def _sign(one: Any, other: Any) -> int:
    return -1 if one < other else int(one > other)
