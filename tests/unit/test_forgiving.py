"""Lines of the log never raise, whatever they are given, and whatever the program's own logging does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from couchjobs import log
from couchjobs.log import get_logger


class Odd:
    """Cannot be told."""

    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


LINES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a number that is none": (lambda one: one.warning("rate %d", float("inf")), "rate %d (inf,)"),
    "a character that is none": (lambda one: one.warning("%c", 10**9), "%c (1000000000,)"),
    "text that is none": (lambda one: one.warning("%s", Odd()), "%s <tuple>"),
    "a field of a document": (lambda one: one.warning("got", event="paid"), "got event_=paid"),
    "another one": (lambda one: one.warning("got", self=1, method_name=2), "got method_name_=2 self_=1"),
    "no text": (lambda one: one.warning(), ""),
    "a level between two": (lambda one: one.log(35, "here"), "here"),
    "a level by its name": (lambda one: one.log("warning", "%d", "x"), "%d ('x',)"),
    "a field of that name": (lambda one: one.log(30, "x", level="odd"), "[odd      ] x"),
    "a level and no text": (lambda one: one.log(30), ""),
    "names and no mapping": (lambda one: one.warning("%(a)s", {"b": 1}), "%(a)s ({'b': 1},)"),
    "a bound field": (lambda one: one.bind(n=1).error("x"), "x n=1"),
}


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program that has configured nothing."""
    monkeypatch.setattr(log, "_own", [])
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("line", LINES)
def test_line_when_it_is_odd_then_written_all_the_same(
    unconfigured: None, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    """With what did not fit behind it."""
    structlog.reset_defaults()
    write, written = LINES[line]
    write(get_logger("odd"))
    assert [record.getMessage().strip() for record in caplog.records] == [written]


async def test_line_when_awaited_then_written_at_once(unconfigured: None, caplog: pytest.LogCaptureFixture) -> None:
    """With the same care."""
    structlog.reset_defaults()
    await get_logger("odd").awarning("took %d s", "x")
    await get_logger("odd").alog(40, "and %d", 1)
    assert [record.getMessage() for record in caplog.records] == ["took %d s ('x',)", "and 1"]


def test_line_when_a_filter_of_the_program_raises_then_nothing_else_happens(
    unconfigured: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads a field that only the program's own lines have, and raises whatever it likes."""
    structlog.reset_defaults()
    logger, asked = logging.getLogger("filtered"), []

    def needs_request(record: logging.LogRecord) -> bool:
        asked.append(record)
        raise SystemExit

    logger.addFilter(needs_request)
    get_logger("filtered").warning("once")
    assert len(asked) == 1
    assert not caplog.records


def test_line_when_structlog_of_the_program_raises_then_nothing_else_happens(unconfigured: None) -> None:
    """The program's lines are its own; ours are written where that works, by whatever methods its loggers have."""
    seen: list[dict[str, Any]] = []

    def needs_request(_: object, __: str, event: Any) -> Any:
        seen.append(dict(event))
        raise KeyError("request_id")

    structlog.configure(processors=[needs_request], wrapper_class=structlog.BoundLogger)
    logger = get_logger("ours").bind(n=1)
    logger.warning("%d of %d", 1, 2)
    logger.log(30, "level", event=3)
    assert logger.is_enabled_for(logging.INFO)
    assert [(one["event"], one["n"]) for one in seen] == [("1 of 2", 1), ("level", 1)]


class Boom(BaseException):
    """What a processor may raise, too."""


@pytest.mark.parametrize("broken", ["processor", "factory", "wrapper", "context"])
def test_logger_when_what_the_program_has_configured_does_not_work_then_nothing_else_happens(
    unconfigured: None, broken: str
) -> None:
    """Its log file cannot be opened any more, say; however the logger is bound."""

    def raises(*_: object, **__: object) -> Any:
        raise Boom if broken == "processor" else OSError("cannot open the log")

    structlog.configure(
        processors=[raises] if broken == "processor" else [],
        logger_factory=raises if broken == "factory" else None,
        wrapper_class=raises if broken == "wrapper" else None,  # type: ignore[arg-type]
        context_class=raises if broken == "context" else None,
    )
    logger = get_logger("ours").bind(job="1")
    logger.info("x %d", "a")
    for other in (logger.unbind("job"), logger.try_unbind("none"), logger.new(a=1)):
        other.warning("x %d", "a")
