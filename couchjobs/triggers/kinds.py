"""The kinds of trigger, by the name that documents give them."""

from __future__ import annotations

from collections.abc import Callable

from couchjobs.errors import MalformedTriggerError, UnknownTriggerError
from couchjobs.triggers.cron import parse_cron
from couchjobs.triggers.delivery import read_delivery
from couchjobs.triggers.event import EventRules, parse_event
from couchjobs.triggers.every import parse_every
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.on_demand import OnDemand, parse_client, parse_webhook
from couchjobs.triggers.once import parse_at, parse_in
from couchjobs.triggers.periodic import parse_periodic
from couchjobs.triggers.schedule import Schedule
from couchjobs.triggers.structured import parse_rules
from couchjobs.triggers.zones import parse_zone

_LONGEST_ARGUMENTS = 100_000
_LONGEST_REASON = 1000

ParsedTrigger = EventRules | Schedule | OnDemand

_KINDS: dict[str, Callable[[TriggerInfos], ParsedTrigger]] = {
    "@at": lambda infos: parse_at(infos.arguments),
    "@client": parse_client,
    "@cron": lambda infos: parse_cron(infos.arguments, infos.timezone),
    "@daily": parse_periodic,
    "@event": lambda infos: parse_event(infos.arguments, parse_rules([] if infos.rules is None else infos.rules)),
    "@every": lambda infos: parse_every(infos.arguments, infos.anchor),
    "@hourly": parse_periodic,
    "@in": lambda infos: parse_in(infos.arguments),
    "@monthly": parse_periodic,
    "@webhook": parse_webhook,
    "@weekly": parse_periodic,
}


def may_be_event(kind: object) -> bool:
    """Return whether a trigger with that type fires by events, or might be meant to: the type is none."""
    return kind == "@event" or not isinstance(kind, str) or kind not in _KINDS


def parse_trigger(infos: TriggerInfos) -> ParsedTrigger:
    """Return what makes the trigger fire: rules for events, a schedule, or nothing but being asked.

    Raises:
        UnknownTriggerError: no such type.
        MalformedTriggerError: the arguments cannot be parsed.
    """
    parse = _KINDS.get(infos.type)
    if parse is None:
        raise UnknownTriggerError(f"{infos.type!r} is no type of trigger: {', '.join(sorted(_KINDS))}")
    if len(infos.arguments) > _LONGEST_ARGUMENTS:
        raise MalformedTriggerError(
            f"arguments have {len(infos.arguments):,} characters; {_LONGEST_ARGUMENTS:,} may be"
        )
    try:
        parsed = parse(infos)
    except MalformedTriggerError:
        raise
    except Exception as error:
        raise MalformedTriggerError(
            f"it cannot be understood: {type(error).__name__}: {error}"[:_LONGEST_REASON]
        ) from error
    if infos.rules is not None and not isinstance(parsed, EventRules):
        raise MalformedTriggerError(f"rules: are for @event, and this is a trigger of type {infos.type}")
    read_delivery(infos)
    _check_bounds(infos, clock=not isinstance(parsed, EventRules | OnDemand))
    return parsed


def parse_new_trigger(infos: TriggerInfos) -> ParsedTrigger:
    """Return the same of a trigger that is about to be written: a mistake that does not matter is refused, too.

    Raises: as `parse_trigger`.
    """
    parsed = parse_trigger(infos)
    if not isinstance(parsed, EventRules | OnDemand):
        parse_zone(infos.timezone)
    return parsed


def _check_bounds(infos: TriggerInfos, *, clock: bool) -> None:
    for name in ("starts", "ends", "grace", "misfire_limit"):
        if getattr(infos, name) is not None and not clock:
            raise MalformedTriggerError(f"{name}: is for triggers that fire by the clock, and {infos.type} does not")
    if infos.anchor is not None and infos.type != "@every":
        raise MalformedTriggerError(f"anchor: is for @every, and this is a trigger of type {infos.type}")
    if infos.starts is not None and infos.ends is not None and infos.ends < infos.starts:
        raise MalformedTriggerError("ends is before starts: it would never fire")
