"""Structured logs: text on a terminal, a line of JSON each elsewhere; never a credential in them.

A line of the log decides about nothing: it never raises, whatever it is given and whatever became of stderr, and never
waits for who reads that. What cannot be written now is kept for a moment, then dropped, and counted.
"""

from __future__ import annotations

import copy
import fcntl
import logging
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TextIO

import structlog

from couchjobs.errors import ConfigurationError
from couchjobs.forgiving import SHIELDED, bound_logger, told

_USERINFO = re.compile(r"(?i)\b([a-z]{1,10}://)[^\s]{1,2000}@")
"""All before the last @ of a URL: a password may hold any of `@:/` as well."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_HEADER = re.compile(r"(?i)\b(basic|bearer)\s{1,9}[a-z0-9+/=._~-]{6,}")
_COOKIE = re.compile(r"(?i)(AuthSession=)[^;\s'\"]+")
_LONGEST = 20_000
"""Characters of one text in a line: collectors cut long lines off, or drop them."""
_MOST_KEPT = 1000
"""Lines that wait for somebody to read them."""
_PIECE = 4096
"""Bytes that a pipe takes without waiting where it says that it takes any (PIPE_BUF)."""


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
    return {plain(key): plain(value if isinstance(value, str) else told(value)) for key, value in event.items()}


def _without_name(logger: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if event.get("name") == logger.name:
        del event["name"]
    return event


_OWN_DESCRIPTORS = 10
"""The lowest descriptor for the log."""


class _Stderr:
    """The stream of a process's log lines: it takes them at once, and writes what can be written without waiting."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._kept: deque[bytes] = deque()
        self._dropped = 0
        try:  # a descriptor of its own: a function may close that of the process, which then is something else's
            self._handle: int | None = fcntl.fcntl(stream.fileno(), fcntl.F_DUPFD_CLOEXEC, _OWN_DESCRIPTORS)
        except (OSError, ValueError, AttributeError):  # closed, or a stand-in that a test has put there
            self._handle = None

    def write(self, text: str) -> None:
        """Take some text."""
        if self._handle is None:
            with suppress(Exception):
                self._stream.write(text)
            return
        self._kept.append(text.encode("utf-8", "backslashreplace"))
        while len(self._kept) > _MOST_KEPT:
            self._kept.popleft()
            self._dropped += 1
        self.let_out(0.0)

    def flush(self) -> None:
        """Do nothing: what could be written is written."""

    def let_out(self, seconds: float) -> None:
        """Write what has been kept, as far as that is possible within so many seconds."""
        deadline = time.monotonic() + seconds
        with suppress(IndexError):  # another thread was quicker
            while self._kept and self._handle is not None and self._may_write(deadline):
                if self._dropped:
                    self._kept.appendleft(
                        f"({self._dropped} lines of the log were dropped: nobody read them)\n".encode()
                    )
                    self._dropped = 0
                line = self._kept.popleft()
                try:
                    written = os.write(self._handle, line[:_PIECE])
                except BlockingIOError:
                    written = 0
                except OSError:
                    self._kept.clear()  # closed: there is nobody to tell
                    return
                if written < len(line):
                    self._kept.appendleft(line[written:])

    def _may_write(self, deadline: float) -> bool:
        try:
            poll = select.poll()
            poll.register(self._handle or 0, select.POLLOUT)
            return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        except OSError:
            return True  # the write says what is wrong


class _Handler(logging.Handler):
    """Writes records of the logging module, credentials left out, and leaves them as they are for other handlers."""

    def __init__(self, stream: _Stderr, *, as_json: bool) -> None:
        super().__init__()
        self._stream = stream
        self._redact = (lambda text: text) if as_json else redact  # of JSON, before it is made: else it may be none
        self.setFormatter(_json() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; one whose arguments do not fit its text is written with both."""
        own = copy.copy(record)
        try:
            text = self.format(own)
        except BaseException:  # noqa: BLE001  whoever logs nonsense has another purpose
            own = copy.copy(record)
            own.msg, own.args, own.exc_info = f"{told(record.msg)} {told(record.args)}", (), None
            text = self.format(own)
        self._stream.write(self._redact(text) + "\n")


def _render_safely(render: Any) -> Any:
    def rendered(logger: Any, name: str, event: MutableMapping[str, Any]) -> Any:
        try:
            return render(logger, name, event)
        except BaseException:  # noqa: BLE001  a value that cannot be told must not stop what tells of it
            return render(
                logger, name, {key: value if isinstance(value, str) else told(value) for key, value in event.items()}
            )

    return rendered


_AS_TEXT: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.filter_by_level,
    structlog.processors.format_exc_info,
    _redact_event,
    _without_name,
    _plain_event,
    structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0),
]
"""What makes of a line what the logging module is given."""
_OF_PROGRAMS = bound_logger(logging.DEBUG)
_AS_JSON = structlog.processors.JSONRenderer(default=str)
_handlers: list[_Handler] = []
_streams: list[_Stderr] = []
_own: list[Callable[[dict[str, Any]], Any]] = []
"""What makes a logger of this process, once that is configured."""
_NONE = object()
_LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str = "info") -> None:
    """Send the logs of this process to stderr, from `level` up.

    Raises:
        ConfigurationError: there is no such level.
    """
    if level.lower() not in (*_LEVELS, "critical"):
        raise ConfigurationError(f"--log-level {level!r}: {', '.join(_LEVELS[:-1])} or {_LEVELS[-1]}")
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = _Stderr(sys.stderr)
    _streams[:] = [stream]
    logging.raiseExceptions = False  # nor may the handlers of others
    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed
        terminal = False
    _handlers[:] = [_Handler(stream, as_json=not terminal)]
    logging.basicConfig(level=max(number, logging.INFO), handlers=_handlers)
    shown: list[Any] = [_plain_event, structlog.dev.ConsoleRenderer()] if terminal else [_render_safely(_AS_JSON)]
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_event,
        *shown,
    ]
    bound = bound_logger(number)
    _own[:] = [partial(bound, structlog.PrintLogger(stream), processors)]  # type: ignore[arg-type]
    structlog.configure(  # for functions that have not done so
        processors=processors,
        wrapper_class=bound,
        logger_factory=structlog.PrintLoggerFactory(stream),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


def _json() -> logging.Formatter:
    """Return what writes records of the logging module as couchjobs writes its own lines."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            _add_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_event,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render_safely(_AS_JSON)],
    )


def _add_name(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["name"] = event["_record"].name
    return event


@contextmanager
def own_configuration() -> Iterator[None]:
    """Let a program that is imported meanwhile configure the logging module for itself; if it does, that stays."""
    root = logging.getLogger()
    level = root.level
    for handler in _handlers:
        root.removeHandler(handler)
    try:
        yield
    finally:
        if not root.handlers:
            root.setLevel(level)
            for handler in _handlers:
                root.addHandler(handler)


def let_out(seconds: float = 1.0) -> None:
    """Write the lines that nobody has read yet, as far as that is possible within so many seconds."""
    for stream in _streams:
        stream.let_out(seconds)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module or of a job.

    Its lines are written as `configure_logging` has it, however functions configure structlog. In programs that do not
    call that they go where the program has structlog write, if it has configured that, else to the logging module, by
    the name of the module: warnings are on stderr then, unless the program says otherwise.
    """
    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        _NONE,
        processors=[],
        wrapper_class=_bind,  # type: ignore[arg-type]
        context_class=dict,
        cache_logger_on_first_use=False,
        name=name,
    )
    return logger


def _bind(logger: object, processors: object, context: dict[str, Any]) -> Any:  # noqa: ARG001  structlog's
    if _own:
        return _own[0](context)
    if structlog.is_configured():
        with suppress(Exception):  # what the program has configured may not work, or no longer
            return SHIELDED(structlog.get_logger(**context).bind())
    return _OF_PROGRAMS(logging.getLogger(context.get("name")), _AS_TEXT, context)
