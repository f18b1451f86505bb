"""Loggers whose lines never raise, whatever they are given: the log decides about nothing, least of all about a job.

Arguments that do not fit their text stand behind it, fields with a name that is taken get another one, and what the
processors, filters or handlers of a program raise is left at that. Methods that are awaited do the same at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import structlog

_METHODS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "warn": logging.WARNING,
    "exception": logging.ERROR,
    "fatal": logging.CRITICAL,
    "msg": logging.INFO,
}
_BY_LEVEL = {_METHODS[name]: name for name in ("critical", "error", "warning", "info", "debug")}
_TAKEN = frozenset({"self", "event", "method_name"})
"""Names of fields that are names of arguments on the way of a line."""


def _text(given: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    """Return the text of a line; arguments that do not fit it stand behind it."""
    if len(given) == 1:
        return given[0]
    if not given:
        return fields.pop("event", "")
    text, arguments = given[0], given[1:]
    try:
        return text % (arguments[0] if len(arguments) == 1 and isinstance(arguments[0], dict) else arguments)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001
        return f"{text if isinstance(text, str) else told(text)} {told(arguments)}"


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields under names that a line may have."""
    if _TAKEN.isdisjoint(fields):
        return fields
    return {f"{name}_" if name in _TAKEN else name: value for name, value in fields.items()}


def _method_of(level: object) -> str:
    """Return the method for lines of a level, whatever is given for it: that of the next lower one that there is."""
    if isinstance(level, int) and level in _BY_LEVEL:
        return _BY_LEVEL[level]
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO) if isinstance(level, str) else level
    return next((name for one, name in _BY_LEVEL.items() if isinstance(number, int) and number >= one), "debug")


class _Forgiving:
    """What a logger has beside the methods of its class: `log`, and methods to await, which wait for nothing."""

    def log(self, level: Any = logging.INFO, /, *given: Any, **fields: Any) -> Any:
        """Write a line of that level."""
        return getattr(self, _method_of(level))(*given, **fields)

    async def alog(self, level: Any = logging.INFO, /, *given: Any, **fields: Any) -> Any:
        """Do the same."""
        return self.log(level, *given, **fields)


def _writes(write: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method of a logger that writes a line, and never raises."""

    def method(self: Any, /, *given: Any, **fields: Any) -> Any:
        try:
            return write(self, _text(given, fields), **_named(fields))
        except KeyboardInterrupt:  # of whoever sits there
            raise
        except BaseException:  # noqa: BLE001  a filter, a handler or a value of somebody's own may raise anything
            return None

    return method


def _writes_soon(name: str) -> Callable[..., Any]:
    async def method(self: Any, /, *given: Any, **fields: Any) -> Any:
        return getattr(self, name)(*given, **fields)

    return method


def _lines(write_of: Callable[[str], Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the methods of a logger by name, and those to await; `write_of`: what writes a line of that name."""
    methods = {name: _writes(write_of(name)) for name in _METHODS}
    return methods | {f"a{name}": _writes_soon(name) for name in methods}


def bound_logger(level: int) -> Any:
    """Return the class of loggers from that level up."""
    plain_class = structlog.make_filtering_bound_logger(level)
    return type("BoundLogger", (_Forgiving, plain_class), _lines(lambda name: getattr(plain_class, name)))


class _Shielded(_Forgiving):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def is_enabled_for(self, level: int) -> bool:
        """Return whether lines of that level are written; yes, where the program's logger does not say."""
        ask = getattr(type(self._logger), "is_enabled_for", None)  # an attribute of the logger may be a line
        try:
            return bool(ask is None or ask(self._logger, level))
        except Exception:  # noqa: BLE001
            return True

    def _with(self, method: str, *names: str, **fields: Any) -> Any:
        try:
            return type(self)(getattr(self._logger, method)(*names, **fields))
        except Exception:  # noqa: BLE001
            return self

    def bind(self, /, **fields: Any) -> Any:
        """Return a logger with these fields too."""
        return self._with("bind", **_named(fields))

    def new(self, /, **fields: Any) -> Any:
        """Return a logger with these fields alone."""
        return self._with("new", **_named(fields))

    def unbind(self, *names: str) -> Any:
        """Return a logger without these fields."""
        return self._with("unbind", *names)

    def try_unbind(self, *names: str) -> Any:
        """Return a logger without those of these fields that it has."""
        return self._with("try_unbind", *names)


def _passed_on(name: str) -> Callable[..., Any]:
    return lambda self, *given, **fields: getattr(self._logger, name)(*given, **fields)


SHIELDED: Any = type("ShieldedLogger", (_Shielded,), _lines(_passed_on))
"""The class of loggers around one of a program that has configured structlog for itself."""


def told(value: object) -> str:
    """Return what a value says of itself, or its type where it does not."""
    try:
        return repr(value)
    except BaseException:  # noqa: BLE001
        return f"<{type(value).__name__}>"
