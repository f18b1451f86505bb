"""Structured logs: text on a terminal, a line of JSON each elsewhere; never a credential in them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_USERINFO = re.compile(r"(?i)\b([a-z]{1,10}://)[^\s\"'<>]{1,500}@")
"""All before the last @ of a URL: a password may hold any of `@:/` as well."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_HEADER = re.compile(r"(?i)\b(basic|bearer)\s{1,9}[a-z0-9+/=._~-]{6,}")
_COOKIE = re.compile(r"(?i)(AuthSession=)[^;\s'\"]+")
_LONGEST = 20_000


def redact(text: str) -> str:
    """Return `text`, cut where it is endless, without the credentials of URLs, headers and session cookies."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text):,} characters)"
    return _COOKIE.sub(r"\1***", _HEADER.sub(r"\1 ***", _USERINFO.sub(r"\1***@", text)))


def plain(text: str) -> str:
    """Return `text` with what would steer a terminal (escape sequences, changes of direction) made visible."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _redact_event(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event


def _plain_event(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Whatever was read from a document may stand in a line of the log."""
    return {plain(key): plain(value if isinstance(value, str) else repr(value)) for key, value in event.items()}


class _RedactingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_AS_JSON = structlog.processors.JSONRenderer(default=str)


def configure_logging(level: str = "info") -> None:
    """Send the logs of this process to stderr, from `level` up (debug, info, warning, error)."""
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RedactingFilter())
    logging.basicConfig(
        level=max(number, logging.INFO), handlers=[handler], format="%(levelname)s %(name)s: %(message)s"
    )
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_event,
            *([_plain_event, structlog.dev.ConsoleRenderer()] if terminal else [_AS_JSON]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module or of a job."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name=name)
    return logger
