"""Mango selectors, as CouchDB's `_find` reads them, asked of one document.

    {"status": "paid", "lines": {"$elemMatch": {"price": {"$gt": 100}}}}

A field that is absent matches nothing but `{"$exists": false}`; `$not` and `$nor` are moved down to the fields, so that
this holds for them, too. `a.b` looks into `a`, a number into a list, and a backslash makes a dot one of the name.
Values are ordered by `collation`. Source: CouchDB documentation, /db/_find, "Selector Syntax".
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any

import regex

from couchjobs.couch.codec import is_deeper
from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.collation import TYPES, compare, raw_order, type_number
from couchjobs.triggers.effort import effort

Test = Callable[[Any], bool]

_ABSENT = object()
_MOST_CONDITIONS = 1000
"""Of one selector: each change of a document is held against them."""
_MOST_LETTERS = 10_000
"""Of regular expressions: longer ones take seconds to be read."""
_DEEPEST = 50
_REGEX_S = 0.05
"""Seconds that a regular expression may take; one that takes longer does not match."""
_NEGATED = {
    "$eq": "$ne",
    "$ne": "$eq",
    "$lt": "$gte",
    "$gte": "$lt",
    "$gt": "$lte",
    "$lte": "$gt",
    "$in": "$nin",
    "$nin": "$in",
}


def compile_selector(selector: Any) -> Test:
    """Return what says of a document whether a selector matches it.

    Raises:
        MalformedTriggerError: it is no selector; the text says where.
    """
    if is_deeper(selector, _DEEPEST):
        raise MalformedTriggerError(f"a selector is nested too deep: more than {_DEEPEST} levels")
    if not isinstance(selector, dict):
        raise MalformedTriggerError(f"a selector is an object such as {{'status': 'paid'}}, not {selector!r:.100}")
    return _Compiler(_Size()).all_of(selector, (), negated=False) if selector else lambda _: True


class _Size:
    """How large a selector is, with all that is in it."""

    def __init__(self) -> None:
        self._conditions = 0
        self._letters = 0

    def add(self, name: str, value: Any) -> None:
        """Take note of one more condition.

        Raises:
            MalformedTriggerError: it is one too many, or its regular expressions are too long together.
        """
        self._conditions += 1 + (len(value) if isinstance(value, list) and name in ("$all", "$in", "$nin") else 0)
        if self._conditions > _MOST_CONDITIONS:
            raise MalformedTriggerError(f"a selector has more than {_MOST_CONDITIONS:,} conditions")
        self._letters += len(value) if isinstance(value, str) and name == "$regex" else 0
        if self._letters > _MOST_LETTERS:
            raise MalformedTriggerError(f"the $regex of a selector have more than {_MOST_LETTERS:,} letters together")


class _Compiler:
    """Makes tests of selectors. `inner`: of those for the elements of a list, in which CouchDB moves no negation."""

    def __init__(self, size: _Size, *, inner: bool = False) -> None:
        self._inner = inner
        self._size = size

    def all_of(self, selector: dict[str, Any], path: tuple[str, ...], *, negated: bool) -> Test:
        tests = [self._one(name, value, path, negated=negated) for name, value in selector.items()]
        return tests[0] if len(tests) == 1 else partial(_any if negated else _all, tests)

    def _one(self, name: str, value: Any, path: tuple[str, ...], *, negated: bool) -> Test:
        self._size.add(name, value)
        if name == "$nor" and self._inner:
            raise MalformedTriggerError("$nor is not understood within the elements of a list: write $not and $or")
        if name in ("$and", "$or", "$nor"):
            _check(name, value, isinstance(value, list) and bool(value), "a list of selectors, at least one")
            inner = negated != (name == "$nor")
            tests = [self._condition(one, path, negated=inner) for one in value]
            together = (name == "$and") == (not negated) if name != "$nor" else not negated
            return partial(_all if together else _any, tests)
        if name == "$not":
            _check(name, value, isinstance(value, dict), "a selector")
            if self._inner:
                return partial(_not, self._condition(value, path, negated=False))
            return self._condition(value, path, negated=not negated)
        if name.startswith("$"):
            return self._operator(name, value, path, negated=negated)
        return self._condition(value, (*path, *_names(name)), negated=negated)

    def _condition(self, value: Any, path: tuple[str, ...], *, negated: bool) -> Test:
        if isinstance(value, dict) and value:
            return self.all_of(value, path, negated=negated)
        return self._operator("$eq", value, path, negated=negated)

    def _operator(self, name: str, value: Any, path: tuple[str, ...], *, negated: bool) -> Test:
        if name == "$exists":
            _check(name, value, isinstance(value, bool), "true or false")
            wanted = value != negated
            return partial(_exists, path, wanted)
        if negated and name in _NEGATED:
            name, negated = _NEGATED[name], False
        if name in _INNER:
            _check(name, value, isinstance(value, dict), "a selector")
            inner = _Compiler(self._size, inner=True)
            test: Test = partial(
                _INNER[name], inner.all_of(value, (), negated=False) if value else partial(_equals, {})
            )
        else:
            test = _test_of(name, value, raw=path == ("_id",))
        return partial(_at, path, test, negated)


def _at(path: tuple[str, ...], test: Test, negated: bool, doc: Any) -> bool:
    effort.step()
    found = _find(doc, path)
    return found is not _ABSENT and test(found) != negated


def _exists(path: tuple[str, ...], wanted: bool, doc: Any) -> bool:
    effort.step()
    return (_find(doc, path) is not _ABSENT) == wanted and (wanted or _is_missing(doc, path))


def _not(test: Test, doc: Any) -> bool:
    return not test(doc)


def _all(tests: list[Test], doc: Any) -> bool:
    return all(test(doc) for test in tests)


def _any(tests: list[Test], doc: Any) -> bool:
    return any(test(doc) for test in tests)


def _check(name: str, value: Any, is_right: bool, wanted: str) -> None:
    if not is_right:
        raise MalformedTriggerError(f"{name} takes {wanted}, not {value!r:.100}")


Order = Callable[[Any, Any], int]

_COMPARED: dict[str, Callable[[int], bool]] = {
    "$lt": lambda order: order < 0,
    "$lte": lambda order: order <= 0,
    "$gt": lambda order: order > 0,
    "$gte": lambda order: order >= 0,
}


def _test_of(name: str, value: Any, *, raw: bool) -> Test:
    """Return the test of a value that an operator makes."""
    order = raw_order if raw else compare
    if name in ("$eq", "$ne"):
        is_one = _Among([value], raw=raw)
        return is_one if name == "$eq" else lambda found: not is_one(found)
    if name in _COMPARED:
        return lambda found: _COMPARED[name](order(found, value))
    if name in ("$in", "$nin"):
        _check(name, value, isinstance(value, list), "a list")
        return partial(_is_in, _Among(value, raw=raw), name == "$in")
    if name not in _OTHERS:
        raise MalformedTriggerError(f"{name} is no operator of a selector")
    is_right, wanted, make = _OTHERS[name]
    _check(name, value, is_right(value), wanted)
    return make(value)


class _Among:
    """Whether a value is equal to one of some: texts and numbers are looked up, for a rule is asked of each change."""

    def __init__(self, values: list[Any], *, raw: bool) -> None:
        self._raw = raw
        self._texts = {one if raw else _composed(one) for one in values if isinstance(one, str)}
        self._numbers = {one for one in values if TYPES[type_number(one)] == "number"}
        self._others = [one for one in values if TYPES[type_number(one)] not in ("string", "number")]

    def __call__(self, found: Any) -> bool:
        if isinstance(found, str):
            return found in self._texts or (not self._raw and not found.isascii() and _composed(found) in self._texts)
        if TYPES[type_number(found)] == "number":
            return found in self._numbers
        for one in self._others:
            effort.step()
            if compare(found, one) == 0:
                return True
        return False


def _composed(text: str) -> str:
    """Return the form that texts have in common which are the same to a reader."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


_ESCAPES = re.compile(r"\\(?:[^\W\d_]|.)", re.DOTALL)
_CLASSES = re.compile(r"\[\^?\]?[^\]]*\]")
_ONLY_HERE = {"\\m", "\\M", "\\L", "\\N"}
"""Where words begin and end, named lists, names of characters."""
_MISTAKES = r"(?:\d+\s*<=?\s*)?\d*[eisd](?:\s*\+\s*\d*[eisd])*(?:\s*<=?\s*\d+)?"
_BRACES = re.compile(rf"\{{\s*{_MISTAKES}(?:\s*,\s*{_MISTAKES})*\s*(?::[^}}]*)?\}}|\{{,\d+\}}")
"""So many mistakes may be made; no lower bound."""


def _odd_in(pattern: str) -> str:
    """Return what in a pattern means something else to Erlang's `re`, which is PCRE; nothing where all is the same."""
    escapes = [found[0] for found in _ESCAPES.finditer(pattern)]
    if odd := next((one for one in escapes if one in _ONLY_HERE), ""):
        return odd
    found = _BRACES.search(_CLASSES.sub("x", _ESCAPES.sub("x", pattern)))
    return "" if found is None else found[0]


def _regex(value: Any) -> Test:
    try:
        pattern = regex.compile(value)
    except (regex.error, ValueError, OverflowError) as error:
        raise MalformedTriggerError(f"$regex: {value!r:.100} is no regular expression: {error}") from None
    if odd := _odd_in(value):
        raise MalformedTriggerError(f"$regex: {odd!r} in {value!r:.100} means something else in CouchDB")

    def test(found: Any) -> bool:
        if not isinstance(found, str):
            return False
        began = time.thread_time()
        while True:
            try:
                return pattern.search(found, timeout=min(_REGEX_S, effort.left_s())) is not None
            except TimeoutError:  # by the clock of the wall: it was not working if it stood still
                if time.thread_time() - began > _REGEX_S / 2:
                    return False

    return test


def _is_in(wanted: _Among, is_in: bool, found: Any) -> bool:
    return (any(map(wanted, found)) if isinstance(found, list) else wanted(found)) == is_in


def _holds_all(wanted: list[Any], found: Any) -> bool:
    if not isinstance(found, list) or not wanted:
        return False
    plain = {(type(value), value) for value in found if not isinstance(value, list | dict)}
    nested = [value for value in found if isinstance(value, list | dict)]

    def is_there(one: Any) -> bool:
        effort.left_s()
        if isinstance(one, list | dict):
            return any(_is_identical(one, value) for value in nested)
        return (type(one), one) in plain

    if all(map(is_there, wanted)):
        return True
    return len(wanted) == 1 and isinstance(wanted[0], list) and _equals(wanted[0], found)


def _is_identical(one: Any, other: Any) -> bool:
    """Return whether two values are the same, 1 and 1.0 being two."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_identical, one, other))
    if isinstance(one, dict):
        return [*one] == [*other] and all(_is_identical(part, other[name]) for name, part in one.items())
    return bool(one == other)


def _equals(wanted: Any, found: Any) -> bool:
    return compare(found, wanted) == 0


def _is_divisor_and_remainder(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_int, value)) and value[0] != 0


_OTHERS: dict[str, tuple[Test, str, Callable[[Any], Test]]] = {
    "$all": (lambda value: isinstance(value, list), "a list", lambda value: partial(_holds_all, value)),
    "$type": (
        lambda value: value in TYPES,
        f"one of {', '.join(TYPES)}",
        lambda value: lambda found: TYPES[type_number(found)] == value,
    ),
    "$size": (
        lambda value: _is_int(value) and value >= 0,
        "a whole number from 0",
        lambda value: lambda found: isinstance(found, list) and len(found) == value,
    ),
    "$mod": (
        _is_divisor_and_remainder,
        "two whole numbers, divisor and remainder",
        lambda value: lambda found: _is_int(found) and _remainder(found, value[0]) == value[1],
    ),
    "$beginsWith": (
        lambda value: isinstance(value, str),
        "text",
        lambda value: lambda found: isinstance(found, str) and found.startswith(value),
    ),
    "$regex": (lambda value: isinstance(value, str), "a regular expression", _regex),
}


_INNER: dict[str, Callable[[Test, Any], bool]] = {
    "$elemMatch": lambda test, found: isinstance(found, list) and any(map(test, found)),
    "$allMatch": lambda test, found: isinstance(found, list) and bool(found) and all(map(test, found)),
    "$keyMapMatch": lambda test, found: isinstance(found, dict) and any(map(test, found)),
}


def _names(field: str) -> list[str]:
    names = [name.replace("\\", "") for name in re.split(r"(?<!\\)\.", field)]
    if not all(names):
        raise MalformedTriggerError(f"{field!r} is no name of a field")
    return names


def find(doc: Any, field: str) -> Any:
    """Return what a field such as `lines.0.sku` holds, None where it is absent."""
    found = _find(doc, tuple(_names(field)))
    return None if found is _ABSENT else found


def _find(doc: Any, path: tuple[str, ...]) -> Any:
    value = doc
    for name in path:
        if isinstance(value, dict):
            value = value.get(name, _ABSENT)
        elif isinstance(value, list) and re.fullmatch(r"\+?\d{1,9}|-0+", name, re.ASCII) and int(name) < len(value):
            value = value[int(name)]
        else:
            return _ABSENT
        if value is _ABSENT:
            break
    return value


def _is_missing(doc: Any, path: tuple[str, ...]) -> bool:
    """Return whether the way to an absent field ends in an object: what no field can be of is not said to lack it."""
    value = doc
    for name in path:
        if not isinstance(value, dict):
            value = _find(value, (name,))
            if value is _ABSENT:
                return False
        elif name not in value:
            return True
        else:
            value = value[name]
    return False


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _remainder(number: int, divisor: int) -> int:
    """Return the remainder with the sign of the number, as Erlang has it."""
    rest = abs(number) % abs(divisor)
    return -rest if number < 0 else rest
