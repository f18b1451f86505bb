"""Messages: any JSON value, read into the model that a worker asks for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from couchjobs.couch.codec import decode, encode, is_deeper
from couchjobs.errors import MessageNilError, MessageUnmarshalError
from couchjobs.jobs.values import MAX_DEPTH, to_json
from couchjobs.reasons import reasons

Message = Any
"""Any JSON value: None, bool, int, float, str, list, dict."""

T = TypeVar("T")


def new_message(obj: Any) -> Message:
    """Return `obj` as a message: a pydantic model, a dataclass, or any value that JSON can hold.

    Raises:
        MessageUnmarshalError: JSON cannot hold it.
    """
    return to_json(obj, "message")


def decode_message(value: Message) -> Message:
    """Return the JSON that `value` stands for: itself, unless it is in the old form `{"Type": "json", "Data": base64}`.

    Raises:
        MessageUnmarshalError: it is in the old form, and its data is not base64 of JSON.
    """
    if not (isinstance(value, dict) and value.keys() == {"Type", "Data"} and isinstance(value["Data"], str)):
        return value
    if value["Type"] != "json":
        return value
    try:
        decoded = decode(base64.b64decode(value["Data"], validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise MessageUnmarshalError(f'"Data" is not the base64 of JSON: {error}') from error
    if is_deeper(decoded, MAX_DEPTH):
        raise MessageUnmarshalError(f'"Data" is nested too deep: more than {MAX_DEPTH} levels')
    return decoded


def unmarshal(value: Message, model: type[T]) -> T:
    """Return `value` as an instance of `model`: a pydantic model, or any type that pydantic can read.

    Raises:
        MessageNilError: there is no value.
        MessageUnmarshalError: it does not fit; the text holds the reasons.
    """
    decoded = decode_message(value)
    try:
        adapter = _adapter_of(cast("Hashable", model))
    except TypeError:
        adapter = TypeAdapter(model)
    try:
        found: T = adapter.validate_json(encode(decoded))
    except ValidationError as error:
        if value is None:
            raise MessageNilError(
                f"there is no message, event or payload to read, and {getattr(model, '__name__', model)} is wanted:"
                " what a message, an event and a webhook bring are ctx.job.message, ctx.job.event and ctx.job.payload"
            ) from None
        raise MessageUnmarshalError(f"it does not fit {getattr(model, '__name__', model)}: {reasons(error)}") from None
    return found


@lru_cache(maxsize=256)
def _adapter_of(model: Any) -> TypeAdapter[Any]:
    """Return what reads JSON as that type: as JSON, so that strict models read what they have written."""
    return TypeAdapter(model)
