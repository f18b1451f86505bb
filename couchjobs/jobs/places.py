"""How CouchDB sorts the keys of views: of jobs by time, whatever somebody has written for a time.

Lists that are put together from several ranges of a view go by the very order that CouchDB gives each of them: where
they did not, a page would leave out jobs, or never end. Source: CouchDB docs, ddocs/views/collation; of text that is
the root collation of ICU, and here the part of it that ASCII needs.
"""

from __future__ import annotations

from typing import Any

HIGHEST: Any = {"\uffff": {}}
"""What comes after all of them; a queued job that no daemon has seen yet has `{}`."""
_PUNCTUATION = " _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$"
_DIGIT, _LETTER, _OTHER = 100, 200, 300
_WEIGHTS = {char: number + 1 for number, char in enumerate(_PUNCTUATION)}


def order_of(value: Any) -> tuple[Any, ...]:
    """Return what sorts JSON as the keys of a view are sorted."""
    match value:
        case None | False | True:
            return (0 if value is None else 1 + value,)
        case int() | float():
            return 3, value
        case str():
            return 4, *_order_of_text(value)
        case list():
            return 5, tuple(order_of(one) for one in value)
        case _:
            return 6, tuple((_order_of_text(name), order_of(one)) for name, one in value.items())


def _order_of_text(text: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Letters alone count at first; where those are the same, small ones come before large ones."""
    kept = [char for char in text if char >= " "]
    return tuple(_weight(char) for char in kept), tuple(char.isupper() for char in kept)


def _weight(char: str) -> int:
    if char.isascii() and char.isdigit():
        return _DIGIT + int(char)
    if char.isascii() and char.isalpha():
        return _LETTER + ord(char.lower()) - ord("a")
    return _WEIGHTS.get(char, _OTHER + ord(char))
