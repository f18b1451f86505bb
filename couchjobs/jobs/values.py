"""Values on their way into documents: messages, payloads, events, progress, results. What goes in comes out.

A value becomes JSON as CouchDB keeps it, or is refused by the path to what JSON cannot say:

| value | as JSON |
|---|---|
| None, text, bool, int, float, list, dict with keys of text | itself |
| tuple | a list |
| pydantic model | all its fields, by alias; refused where it would not be read back as it was |
| dataclass | its fields |
| datetime, date, time | ISO 8601 |
| UUID, Enum | its text, its value |
| an int of more than 308 digits, which CouchDB does not take | refused |
| NaN, infinity, half a character, another key than text, set, bytes, Decimal, anything else | refused |
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from couchjobs.errors import MessageUnmarshalError
from couchjobs.reasons import reasons

MAX_DEPTH = 200
"""How deep a job's document may be nested. orjson writes 254 levels, of which couchjobs itself needs a few: in
requests, and on the way to child processes."""

_LONGEST = 1000
"""Characters of an error that quotes what cannot be JSON."""
_LARGEST_INT = 10**308
"""CouchDB answers 500 to a document with an integer of more digits than a float can be read from (measured, 3.5)."""
_NO_SECRETS = "a document is no place for a secret: name it, and let the worker look it up"
_INSTEAD: tuple[tuple[type, str], ...] = (
    (Decimal, "write str(it), or float(it)"),
    (bytes, "write it as base64, or store it as an attachment"),
    (bytearray, "write it as base64, or store it as an attachment"),
    (AbstractSet, "a set has no order: write sorted(it)"),
    (Coroutine, "it was called and not awaited: write await before it"),
    (asyncio.Future, "it was not awaited: write await before it"),
    (Generator, "write list(it)"),
    (AsyncGenerator, "write [one async for one in it]"),
    (SecretStr, _NO_SECRETS),
    (SecretBytes, _NO_SECRETS),
)

_CONVERTED: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: value.value),
    (datetime, lambda value: value.isoformat()),
    (date, lambda value: value.isoformat()),
    (time, lambda value: value.isoformat()),
    (uuid.UUID, str),
    (Mapping, dict),
    (str, str),
    (int, int),
    (float, float),
)


def to_json(value: Any, where: str = "value") -> Any:
    """Return the value as JSON, sharing nothing that can be changed with it.

    Args:
        value: what somebody gave.
        where: what it is, for the path in an error: `message`.

    Raises:
        MessageUnmarshalError: JSON cannot hold it; the text begins with the path: `message.items[3].price: NaN`.
    """
    return _converted(value, where, 0)


def _converted(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise MessageUnmarshalError(f"{where[:100]}: nested too deep: more than {MAX_DEPTH} levels")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        if -_LARGEST_INT < value < _LARGEST_INT:
            return value
        raise MessageUnmarshalError(f"{where}: an int of more than 308 digits, which CouchDB does not take: write text")
    if kind is str:
        return _checked(value, where)
    if kind is float:
        if isfinite(value):
            return value
        raise MessageUnmarshalError(f"{where}: {value}: JSON has no such number")
    if kind is dict:
        return _object(value, where, depth)
    if kind is list or isinstance(value, list | tuple):
        return [_converted(part, f"{where}[{number}]", depth + 1) for number, part in enumerate(value)]
    return _converted(_plain(value, where), where, depth)


def _plain(value: Any, where: str) -> Any:
    """Return what stands for a value that is none of JSON."""
    for kind, instead in _INSTEAD:
        if isinstance(value, kind):
            raise MessageUnmarshalError(f"{where}: {type(value).__name__} is not JSON: {instead}")
    if isinstance(value, BaseModel):
        return _dumped(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    for kind, convert in _CONVERTED:
        if isinstance(value, kind):
            return convert(value)
    raise MessageUnmarshalError(f"{where}: {type(value).__name__} is not JSON: {str(value)[:100]}")


def _object(value: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
    found = {_key(key, where): _converted(part, f"{where}.{key}", depth + 1) for key, part in value.items()}
    if len(found) < len(value):
        raise MessageUnmarshalError(f"{where}: two of its keys are the same as text")
    return found


def _key(key: Any, where: str) -> str:
    if isinstance(key, Enum) and isinstance(key.value, str):
        key = key.value
    if not isinstance(key, str):
        raise MessageUnmarshalError(f"{where}: the key {key!r:.100} is not text")
    return _checked(str(key), where)


def _checked(text: str, where: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise MessageUnmarshalError(f"{where}: it holds text that is none: a half of a character") from None
    return text


def _dumped(model: BaseModel, where: str) -> Any:
    """Return a model as JSON: all of it, by alias, and only where it can be read again."""
    try:
        _check_parts(model, where, 0)
        dumped = model.model_dump(mode="json", by_alias=True, round_trip=True)
        again = type(model).model_validate_json(model.model_dump_json(by_alias=True, round_trip=True))
        _check_same(model, again, where)
    except MessageUnmarshalError:
        raise
    except ValidationError as error:
        what = f"{where}: {type(model).__name__} cannot be read again: {reasons(error)}"
        raise MessageUnmarshalError(what[:_LONGEST]) from None
    except Exception as error:  # a serializer of the user's may raise anything
        what = f"{where}: {type(model).__name__} cannot be written as JSON: {type(error).__name__}: {error}"
        raise MessageUnmarshalError(what[:_LONGEST]) from error
    return dumped


def _check_parts(value: Any, where: str, depth: int) -> None:
    """Refuse secrets, and what further fields of a model hold that JSON cannot say: pydantic writes something."""
    if depth > MAX_DEPTH:
        raise MessageUnmarshalError(f"{where[:100]}: nested too deep: more than {MAX_DEPTH} levels")
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            part = getattr(value, name)
            if isinstance(part, SecretStr | SecretBytes) and _is_masked(value, name):
                raise MessageUnmarshalError(f"{where}.{name}: {type(part).__name__} is not JSON: {_NO_SECRETS}")
            _check_parts(part, f"{where}.{name}", depth + 1)
        for name, part in (value.__pydantic_extra__ or {}).items():
            _converted(part, f"{where}.{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _check_parts(part, f"{where}[{number}]", depth + 1)
    elif isinstance(value, dict):
        for name, part in value.items():
            _check_parts(part, f"{where}.{name}", depth + 1)


def _check_same(before: Any, after: Any, where: str) -> None:
    """Refuse what does not come back as it was: each field is compared; what a model keeps for itself is its own."""
    if isinstance(before, BaseModel) and type(before) is type(after):
        for name in type(before).model_fields:
            _check_same(getattr(before, name), getattr(after, name), f"{where}.{name}")
    elif isinstance(before, list | tuple) and type(before) is type(after) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            _check_same(one, other, f"{where}[{number}]")
    elif isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for name, part in before.items():
            _check_same(part, after[name], f"{where}.{name}")
    elif not bool(before == after):
        raise MessageUnmarshalError(f"{where}: {before!r:.100} would come back as {after!r:.100}")


def _is_masked(model: BaseModel, name: str) -> bool:
    """Return whether the secret is written as stars: a model may have a serializer of its own for it."""
    return "**********" in str(model.model_dump(mode="json", include={name}))
