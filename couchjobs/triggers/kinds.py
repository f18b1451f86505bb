"""The kinds of trigger, by the name that documents give them."""

from __future__ import annotations

from collections.abc import Callable

from couchjobs.errors import UnknownTriggerError
from couchjobs.triggers.event import EventRules, parse_event
from couchjobs.triggers.every import parse_every
from couchjobs.triggers.infos import TriggerInfos
from couchjobs.triggers.once import parse_at, parse_in
from couchjobs.triggers.schedule import Schedule

_KINDS: dict[str, Callable[[str], EventRules | Schedule]] = {
    "@at": parse_at,
    "@event": parse_event,
    "@every": parse_every,
    "@in": parse_in,
}


def parse_trigger(infos: TriggerInfos) -> EventRules | Schedule:
    """Return what makes the trigger fire: rules for events, or a schedule.

    Raises:
        UnknownTriggerError: no such type.
        MalformedTriggerError: the arguments cannot be parsed.
    """
    parse = _KINDS.get(infos.type)
    if parse is None:
        raise UnknownTriggerError(f"{infos.type!r} is no type of trigger: {', '.join(sorted(_KINDS))}")
    return parse(infos.arguments)
