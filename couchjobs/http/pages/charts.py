"""Charts of the overview: bars of what has ended, a line of how long jobs waited; drawn here, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from couchjobs.figures import Bar, Figures
from couchjobs.http.pages.text import duration, number

WIDTH, HEIGHT = 720, 120
_GAP = 0.25


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What a template draws."""

    title: str
    summary: str
    """The chart in words, for who does not see it."""
    top: str
    """What its full height stands for."""
    boxes: list[Box]
    labels: list[tuple[float, str]]
    """What each bar says, and where it begins."""
    starts: tuple[str, str]
    """The times of the first and the last bar."""


def ended(bars: Sequence[Bar], title: str) -> Chart:
    """Return the chart of what has ended: well, and not."""
    total = Figures()
    for bar in bars:
        total.add(bar.figures)
    summary = f"{number(total.done)} done, {number(total.failed)} failed, {number(total.retried)} tried again"
    kinds: list[tuple[str, Callable[[Figures], float]]] = [
        ("done", lambda one: one.done),
        ("retried", lambda one: one.retried),
        ("failed", lambda one: one.failed),
    ]
    return _chart(bars, title, summary, kinds, lambda value: number(round(value)))


def waits(bars: Sequence[Bar], title: str) -> Chart:
    """Return the chart of how long jobs waited from when they were due, on average."""
    total = Figures()
    for bar in bars:
        total.add(bar.figures)
    mean, ran = _mean(total.waited_s, total.waited), _mean(total.ran_s, total.tries)
    summary = f"waited {duration(mean)} and ran {duration(ran)} on average" if total else "nothing has run"
    return _chart(bars, title, summary, [("waited", lambda one: _mean(one.waited_s, one.waited))], duration)


def _mean(total: float, count: int) -> float:
    return total / count if count else 0.0


def _chart(
    bars: Sequence[Bar],
    title: str,
    summary: str,
    kinds: list[tuple[str, Callable[[Figures], float]]],
    say: Callable[[float], str],
) -> Chart:
    top = max((sum(value(bar.figures) for _, value in kinds) for bar in bars), default=0.0)
    step = WIDTH / max(1, len(bars))
    boxes: list[Box] = []
    labels: list[tuple[float, str]] = []
    for place, bar in enumerate(bars):
        y = float(HEIGHT)
        parts: list[str] = []
        for kind, value in kinds:
            amount = value(bar.figures)
            if amount <= 0:
                continue
            height = HEIGHT * amount / top
            y -= height
            boxes.append(Box(round(place * step, 2), round(y, 2), round(step * (1 - _GAP), 2), round(height, 2), kind))
            parts.append(f"{say(amount)} {kind}")
        labels.append((round(place * step, 2), f"{bar.start:%H:%M} UTC: {', '.join(parts) or 'nothing'}"))
    starts = (bars[0].start.isoformat(), bars[-1].start.isoformat()) if bars else ("", "")
    return Chart(title, summary, say(top) if top else "", boxes, labels, starts)
