"""What a daemon and its child processes say to each other: JSON, each message with its length before it."""

from __future__ import annotations

import asyncio
from typing import Any

from couchjobs.couch.codec import decode, encode
from couchjobs.workers.outcome import Cancelled, Done, Failed, Interrupted, Outcome, Retry

_LENGTH = 4
"""Bytes before a message that say how long it is."""
_KINDS: dict[str, type[Outcome]] = {kind.__name__: kind for kind in (Done, Failed, Retry, Cancelled, Interrupted)}


def send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """Send a message; what cannot be sent now is kept by the writer, and dropped where it is closed.

    Raises:
        BadRequest: the message is not JSON.
    """
    body = encode(message)
    if not writer.is_closing():
        writer.write(len(body).to_bytes(_LENGTH, "big") + body)


async def receive(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next message, None where the other side is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
        message: dict[str, Any] = decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return message


def pack(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON."""
    fields = {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}
    return {"kind": type(outcome).__name__, **fields}


def unpack(packed: dict[str, Any]) -> Outcome:
    """Return the outcome that `pack` packed."""
    fields = {name: value for name, value in packed.items() if name != "kind"}
    return _KINDS[packed["kind"]](**fields)
