"""Messages: any JSON value, read into the model that a worker asks for."""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from couchjobs.couch.codec import decode, is_deeper
from couchjobs.errors import MessageNilError, MessageUnmarshalError

Message = Any
"""Any JSON value: None, bool, int, float, str, list, dict."""

MAX_DEPTH = 200
"""How deep a job's document may be nested. orjson writes 254 levels, of which couchjobs itself needs a few: in
requests, and on the way to child processes."""

T = TypeVar("T")


def new_message(obj: Any) -> Message:
    """Return `obj` as a message: a pydantic model, a dataclass, or any value that JSON can hold.

    Raises:
        MessageUnmarshalError: JSON cannot hold it.
    """
    try:
        return orjson.loads(orjson.dumps(obj.model_dump(mode="json") if isinstance(obj, BaseModel) else obj))
    except (TypeError, ValueError) as error:
        raise MessageUnmarshalError(f"it is no JSON: {error}") from error


def decode_message(value: Message) -> Message:
    """Return the JSON that `value` stands for: itself, unless it is in the old form `{"Type": "json", "Data": base64}`.

    Raises:
        MessageUnmarshalError: it is in the old form, and its data is not base64 of JSON.
    """
    if not (isinstance(value, dict) and value.keys() == {"Type", "Data"} and isinstance(value["Data"], str)):
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
        MessageUnmarshalError: it does not fit; the text holds pydantic's reasons.
    """
    if value is None:
        raise MessageNilError("there is no message, event or payload to read")
    decoded = decode_message(value)
    try:
        if isinstance(model, type) and issubclass(model, BaseModel):
            return model.model_validate(decoded)
        return TypeAdapter(model).validate_python(decoded)
    except ValidationError as error:
        raise MessageUnmarshalError(f"it does not fit {getattr(model, '__name__', model)}: {reasons(error)}") from None


def reasons(error: ValidationError) -> str:
    """Return pydantic's reasons in one line: `field.path: what is wrong; ...`."""
    lines = (
        f"{'.'.join(map(str, one['loc'])) or 'value'}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors()
    )
    return "; ".join(lines)
