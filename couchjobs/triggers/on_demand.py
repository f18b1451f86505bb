"""@webhook and @client: triggers that fire only when they are asked to.

The id of a @webhook trigger is its secret. The jobs of a @client trigger have the worker `client`, which no daemon
runs: a client does the work, and ends the job by writing its state.
"""

from __future__ import annotations

from dataclasses import dataclass

from couchjobs.triggers.infos import TriggerInfos


@dataclass(frozen=True, slots=True)
class OnDemand:
    """A trigger without ticks and without rules."""

    type: str


def parse_webhook(infos: TriggerInfos) -> OnDemand:
    """Return what makes a @webhook trigger fire: nothing by itself."""
    return OnDemand(infos.type)


def parse_client(infos: TriggerInfos) -> OnDemand:
    """Return what makes a @client trigger fire: nothing by itself."""
    return OnDemand(infos.type)
