"""Values on their way into documents: messages, payloads, events, progress, results. What goes in comes out.

A value becomes JSON as CouchDB keeps it, or is refused by the path to what JSON cannot say:

| value | as JSON |
|---|---|
| None, text, bool, int of any size, float, list, dict with keys of text | itself |
| tuple | a list |
| pydantic model | all its fields, by alias; refused where it would not be read back as it was |
| dataclass | its fields |
| datetime, date, time | ISO 8601 |
| UUID, Enum | its text, its value |
| NaN, infinity, half a character, another key than text, set, bytes, Decimal, anything else | refused |
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError
from pydantic_core import PydanticSerializationError

from couchjobs.errors import MessageUnmarshalError

MAX_DEPTH = 200
"""How deep a job's document may be nested. orjson writes 254 levels, of which couchjobs itself needs a few: in
requests, and on the way to child processes."""

_INSTEAD: tuple[tuple[type, str], ...] = (
    (Decimal, "write str(it), or float(it)"),
    (bytes, "write it as base64, or store it as an attachment"),
    (bytearray, "write it as base64, or store it as an attachment"),
    (AbstractSet, "a set has no order: write sorted(it)"),
    (SecretStr, "a document is no place for a secret: name it, and let the worker look it up"),
    (SecretBytes, "a document is no place for a secret: name it, and let the worker look it up"),
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
    if value is None or kind is bool or kind is int:
        return value
    if kind is str:
        return _checked(value, where)
    if kind is float:
        if isfinite(value):
            return value
        raise MessageUnmarshalError(f"{where}: {value}: JSON has no such number")
    if kind is dict:
        return {_key(key, where): _converted(part, f"{where}.{key}", depth + 1) for key, part in value.items()}
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


def _key(key: Any, where: str) -> str:
    if isinstance(key, Enum) and isinstance(key.value, str):
        return key.value
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
    for path, secret in _secrets(model, where):
        raise MessageUnmarshalError(f"{path}: {type(secret).__name__} is not JSON: {_INSTEAD[-1][1]}")
    try:
        dumped = model.model_dump(mode="json", by_alias=True, round_trip=True)
        text = model.model_dump_json(by_alias=True, round_trip=True)
    except (PydanticSerializationError, ValueError, TypeError) as error:
        raise MessageUnmarshalError(f"{where}: {type(model).__name__} cannot be written as JSON: {error}") from error
    try:
        again = type(model).model_validate_json(text)
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise MessageUnmarshalError(f"{where}: {type(model).__name__} cannot be read again: {reason}") from None
    for name in type(model).model_fields:
        if getattr(again, name) != getattr(model, name):
            before, after = getattr(model, name), getattr(again, name)
            raise MessageUnmarshalError(f"{where}.{name}: {before!r:.100} would come back as {after!r:.100}")
    return dumped


def _secrets(model: BaseModel, where: str) -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, SecretStr | SecretBytes) and _is_masked(model, name):
            yield f"{where}.{name}", value
        elif isinstance(value, BaseModel):
            yield from _secrets(value, f"{where}.{name}")


def _is_masked(model: BaseModel, name: str) -> bool:
    """Return whether the secret is written as stars: a model may have a serializer of its own for it."""
    return "**********" in str(model.model_dump(mode="json", include={name}))
