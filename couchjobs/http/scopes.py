"""What a caller may do, as permission rules: `jobs:POST:sendmail:worker`.

A rule is `doctype:verbs:values:selector`. Verbs are HTTP methods with commas between, or ALL; values are what `match`
of a job or trigger is asked for the selector (`worker`, `type`), or ids where there is no selector. What is left out at
the end allows everything: `jobs` is `jobs:ALL`. `*` is every doctype.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from couchjobs.errors import ConfigurationError

DOCTYPES = ("jobs", "triggers", "queues", "daemons", "metrics")
_VERBS = ("GET", "POST", "PATCH", "DELETE")
KINDS_OF_POST = ("PUSH", "CANCEL", "RETRY")
"""What is done to jobs by POST. Rules of tokens allow all of it as POST; those of a role may name one of them alone."""
_SELECTORS = ("worker", "type", "state")
"""What `match` of a job or trigger answers."""
_ALL = "ALL"
_PARTS = 4


class Matcher(Protocol):
    """What a rule may be about: a job, a request for one, a trigger."""

    @property
    def doc_type(self) -> str:
        """The doctype that permissions name."""

    def match(self, key: str, value: str) -> bool:
        """Whether a rule on `key` allows this one."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One rule."""

    doctype: str
    verbs: frozenset[str] = frozenset(_VERBS)
    values: frozenset[str] = frozenset()
    selector: str = ""

    def is_about(self, verb: str, doctype: str) -> bool:
        """Return whether it allows that with anything of that doctype."""
        wanted = {verb, "POST"} if verb in KINDS_OF_POST else {verb}
        return self.doctype in ("*", doctype) and not wanted.isdisjoint(self.verbs)

    def allows(self, verb: str, doctype: str, thing: Matcher | None) -> bool:
        """Return whether that may be done with a thing; None: with all of that doctype."""
        if not self.is_about(verb, doctype):
            return False
        if not self.values:
            return True
        if thing is None:
            return False
        if self.selector:
            return any(thing.match(self.selector, value) for value in self.values)
        return getattr(thing, "id", None) in self.values


def read_scope(text: str) -> Scope:
    """Return the rule that is written so.

    Raises:
        ConfigurationError: it is none; the text says why.
    """
    parts = text.strip().split(":")
    if len(parts) > _PARTS:
        raise ConfigurationError(
            f"{text!r}: a rule is doctype:verbs:values:selector, such as jobs:POST:sendmail:worker"
        )
    doctype, verbs, values, selector = (*parts, *[""] * (_PARTS - len(parts)))
    if doctype != "*" and doctype not in DOCTYPES:
        raise ConfigurationError(f"{text!r}: {doctype!r} is none of {', '.join(DOCTYPES)} and *")
    wanted = frozenset(verb.strip().upper() for verb in verbs.split(",") if verb.strip()) or frozenset({_ALL})
    if wrong := wanted - {*_VERBS, _ALL}:
        raise ConfigurationError(f"{text!r}: {', '.join(sorted(wrong))} is none of {', '.join(_VERBS)} and {_ALL}")
    some = frozenset(value.strip() for value in values.split(",") if value.strip())
    if selector and not some:
        raise ConfigurationError(f"{text!r}: a selector without values")
    if selector and selector.strip() not in _SELECTORS:
        raise ConfigurationError(f"{text!r}: {selector!r} is none of {', '.join(_SELECTORS)}")
    return Scope(doctype, frozenset(_VERBS) if _ALL in wanted else wanted, some, selector.strip())


def read_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """Return the rules that are written so.

    Raises:
        ConfigurationError: one is none, or there is none.
    """
    scopes = tuple(read_scope(text) for text in texts)
    if not scopes:
        raise ConfigurationError("a token without rules allows nothing: give it one, such as jobs:POST:sendmail:worker")
    return scopes
