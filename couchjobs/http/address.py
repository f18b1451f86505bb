"""Where to listen, as people write it."""

from __future__ import annotations

from couchjobs.errors import ConfigurationError

Address = tuple[str, int]
"""Host and port."""


def read_address(text: str) -> Address:
    """Return host and port of `HOST:PORT`, `[::1]:8080`, or of a port alone, which is one of this machine.

    Raises:
        ConfigurationError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"--http {text!r}: HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)
