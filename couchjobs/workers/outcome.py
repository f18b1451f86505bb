"""What can become of one try of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Done:
    """It succeeded, or was aborted without error. `result` is stored where it is not None."""

    result: Any = None
    lost: str = ""
    """Why the result cannot be stored; empty where it can."""
    seconds: float | None = field(default=None, compare=False)
    """How long the try took."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed for good. `bad_trigger`: the trigger that made the job is to be deleted."""

    error: str
    bad_trigger: bool = False
    worker_lost: bool = False
    """Whether the process that ran it has ended."""
    traceback: str = field(default="", compare=False)
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed, and is to be tried again not before `delay_s` seconds from now."""

    error: str
    delay_s: float
    traceback: str = field(default="", compare=False)
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody cancelled it."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The daemon stops, or is no longer the owner: the try does not count."""


Outcome = Done | Failed | Retry | Cancelled | Interrupted
