r"""@event: rules `type[:verbs[:values[:selector]]]`, several parted by white space.

orders                                every change of a document of doctype orders
orders:CREATED,UPDATED                those two verbs; none, or ALL, means every verb
orders:UPDATED:abc,def                the documents with these ids
orders:CREATED,UPDATED:paid:status    where status is paid; `a.b` looks into a
orders:UPDATED:!=:status              where an update changed status; creation and deletion always do
orders:CREATED,UPDATED:=>paid:status  where status became paid: before, it was something else, or there was none
orders:UPDATED:part\:7                 a backslash before : , . or a space makes it one of the name or value

Numbers and words are compared as text, 10.0 being 10; what has changed, as JSON: 1 is not true.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from couchjobs.couch.codec import encode
from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.effort import TakesTooLongError, effort

VERBS = ("CREATED", "UPDATED", "DELETED")
_EVERY = "ALL"
_CHANGED = "!="
_BECAME = "=>"
_MOST_RULES = 200
"""For one database in one trigger: each change is held against each of them."""
_DEEPEST_SELECTOR = 50
"""Names in a path."""
_LONGEST_NOTE = 300
"""Characters of a remark."""
_MOST_PARTS = 4
"""Of a rule: doctype, verbs, values, selector."""
_LONGEST_MEANT = 300
"""Characters: a longer name is none of a database."""
_MOST_ASKED = 10_000
"""Doctypes whose rules are remembered; then all are found again."""
_EXACT = 2.0**53
"""From which a double holds no longer every integer."""
_DOCTYPE = re.compile(r"_users|[a-z][a-z0-9_$()+/*-]*(\.[a-z0-9_$()+/*-]+)*")
_CAN_FIRE = (
    "write lower case letters, digits and _ $ ( ) + - /, beginning with a letter, parted by single dots; * is any "
    "text but a slash"
)


@dataclass(frozen=True, slots=True)
class EventRule:
    """One rule; empty `values` means every document."""

    doctype: str
    verbs: frozenset[str]
    values: tuple[str, ...]
    selector: str
    """As it is written, for people."""
    path: tuple[str, ...] = ()
    """The names in the selector."""
    text: str = ""
    """The rule as it is written."""
    wanted: frozenset[str] = frozenset()
    """The values, to be looked up."""
    wants_each: bool = False
    """Whether the selector must have become one of the values, so that each change counts, not only the last."""

    def may_match(self, verb: str, doc_id: str) -> bool:
        """Return whether the rule can match once the document is known."""
        return verb in self.verbs and (bool(self.selector) or not self.values or doc_id in self.wanted)

    @property
    def note(self) -> str:
        """Return what a person may not have meant by it; nothing where it means what it says."""
        if self.values and not self.selector:
            named = f"{self.doctype}:{','.join(sorted(self.verbs))}:{','.join(self.values)}"
            return f"{self.text} fires for documents with these ids alone: for a field, {named}:FIELD"[:_LONGEST_NOTE]
        return ""

    def matches(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None, *, lost: bool = False) -> bool:
        """Return whether the rule matches an event of its doctype.

        `old` is None where it cannot be had; `lost`: it was there, and compaction has taken it.
        """
        return not self.why_not(verb, doc, old, lost=lost)

    def why_not(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None, *, lost: bool = False) -> str:
        """Return why the rule does not match, nothing where it does."""
        if verb not in self.verbs:
            return f"the verb is {verb}"
        if not self.values:
            return ""
        if not self.selector:
            return "" if doc.get("_id") in self.wanted else f"the id is {doc.get('_id')!r}"
        if self.values == (_CHANGED,):
            changed = verb != "UPDATED" or old is None or not is_same(select(doc, self.path), select(old, self.path))
            return "" if changed else f"{self.selector} has not changed"
        if self.wants_each:
            return self._why_not_become(verb, doc, old)
        if self._selects(doc) or (old is not None and self._selects(old)):
            return ""
        if verb == "DELETED" and lost:
            return ""  # nobody can tell any more, and what is deleted has no other chance
        return f"{self.selector} is {_texts(select(doc, self.path)) or 'absent'}"

    def _why_not_become(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None) -> str:
        if verb == "DELETED":
            return "a deleted document becomes nothing"
        if not self._selects(doc):
            return f"{self.selector} is {_texts(select(doc, self.path)) or 'absent'}"
        return f"{self.selector} was one of these before" if old is not None and self._selects(old) else ""

    def _selects(self, doc: dict[str, Any]) -> bool:
        return any(text in self.wanted for text in _texts(select(doc, self.path)))


class Rule(Protocol):
    """What an event must be for a trigger to fire."""

    @property
    def doctype(self) -> str:
        """Return the doctype whose documents can fire."""

    @property
    def text(self) -> str:
        """Return the rule as it is written."""

    @property
    def wants_each(self) -> bool:
        """Return whether each change of a document counts, not only the last that the feed shows."""

    def may_match(self, verb: str, doc_id: str) -> bool:
        """Return whether the rule can match once the document is known."""

    def matches(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None, *, lost: bool = False) -> bool:
        """Return whether the rule matches an event of its doctype."""

    def why_not(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None, *, lost: bool = False) -> str:
        """Return why the rule does not match, nothing where it does."""


@dataclass(frozen=True, slots=True)
class EventRules:
    """The rules of one trigger: it fires where one of them matches."""

    rules: tuple[Rule, ...]
    _by_doctype: dict[str, list[Rule]] = field(default_factory=dict, repr=False, compare=False)
    """Of each doctype that was asked for, its rules."""

    @property
    def doctypes(self) -> frozenset[str]:
        """Return the doctypes whose documents can fire, but for those that a pattern names."""
        return frozenset(rule.doctype for rule in self.rules if not is_pattern(rule.doctype))

    @property
    def patterns(self) -> frozenset[str]:
        """Return the patterns of doctypes whose documents can fire."""
        return frozenset(rule.doctype for rule in self.rules if is_pattern(rule.doctype))

    @property
    def notes(self) -> list[str]:
        """Return what a person may not have meant by its text rules."""
        return [rule.note for rule in self.rules if isinstance(rule, EventRule) and rule.note]

    def names(self, doctype: str) -> bool:
        """Return whether a rule names the doctype, as it is or by a pattern."""
        return bool(self._of(doctype))

    def _of(self, doctype: str) -> list[Rule]:
        rules = self._by_doctype.get(doctype)
        if rules is None:
            if len(self._by_doctype) >= _MOST_ASKED:
                self._by_doctype.clear()
            rules = [rule for rule in self.rules if name_pattern(rule.doctype)(doctype)]
            self._by_doctype[doctype] = rules
        return rules

    def wants_each(self, doctype: str) -> bool:
        """Return whether each change of a document counts, not only the last that the feed shows."""
        return any(rule.wants_each for rule in self._of(doctype))

    def may_match(self, doctype: str, verb: str, doc_id: str) -> bool:
        """Return whether the documents are needed to know."""
        return any(rule.may_match(verb, doc_id) for rule in self._of(doctype))

    def matches(
        self, doctype: str, verb: str, doc: dict[str, Any], old: dict[str, Any] | None, *, lost: bool = False
    ) -> bool:
        """Return whether the trigger fires.

        Raises:
            TakesTooLongError: nobody can wait for the answer.
        """
        with effort:
            for rule in self._of(doctype):
                if rule.matches(verb, doc, old, lost=lost):
                    return True
                effort.left_s()
        return False

    def explain(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None = None) -> list[tuple[str, str]]:
        """Return each rule, as it is written, and why it does not match; nothing where it does."""
        told: list[tuple[str, str]] = []
        with effort:
            for rule in self.rules:
                try:
                    effort.left_s()
                    told.append((rule.text, rule.why_not(verb, doc, old)))
                except TakesTooLongError as error:
                    told.append((rule.text, str(error)))
        return told


def parse_event(arguments: str, further: Iterable[Rule] = ()) -> EventRules:
    """Return the rules that the arguments of an @event trigger name, and those that it has besides.

    Raises:
        MalformedTriggerError: a rule that cannot be parsed, or that could never fire.
    """
    rules = (*(_parse_rule(text) for text in split_rules(arguments)), *further)
    most = max(Counter(rule.doctype for rule in rules).values(), default=0)
    if most > _MOST_RULES:
        raise MalformedTriggerError(f"there are {most:,} rules for one database in one trigger; {_MOST_RULES} may be")
    if not rules:
        raise MalformedTriggerError("@event needs at least one rule such as orders:CREATED,UPDATED")
    return EventRules(rules)


def doctypes_meant(document: Mapping[str, Any]) -> frozenset[str]:
    """Return the doctypes and patterns that a trigger seems to name of which nothing else can be understood."""
    if document.get("disabled") is True:
        return frozenset()
    arguments, rules = document.get("arguments"), document.get("rules")
    texts = split_rules(arguments) if isinstance(arguments, str) else []
    structured = [one.get("doctype") for one in rules if isinstance(one, dict)] if isinstance(rules, list) else []
    found = [*(text.partition(":")[0] for text in texts), *structured]
    return frozenset(one for one in found if isinstance(one, str) and len(one) <= _LONGEST_MEANT)


def is_pattern(doctype: str) -> bool:
    """Return whether it stands for many doctypes."""
    return "*" in doctype


@lru_cache(maxsize=4096)
def name_pattern(doctype: str) -> Callable[[str], bool]:
    """Return what says whether a doctype is this one, or matches it, where `*` is any text but a slash."""
    if not is_pattern(doctype):
        return doctype.__eq__
    first, *between, last = (re.escape(part) for part in re.split(r"\*+", doctype))
    # what is found of each part first is kept: trying all the others would take for ever, and finds nothing more
    parts = "".join(f"(?>[^/]*?{part})" for part in between)
    matches = re.compile(f"{first}{parts}[^/]*{last}").fullmatch
    return lambda name: matches(name) is not None


def check_doctype(where: str, doctype: str) -> None:
    """Refuse what can be no name of a database.

    Raises:
        MalformedTriggerError: it is none.
    """
    if not _DOCTYPE.fullmatch(doctype):
        raise MalformedTriggerError(f"{where}: {doctype!r} is no doctype: {_CAN_FIRE}")
    if is_pattern(doctype) and "." in doctype:
        raise MalformedTriggerError(f"{where}: {doctype!r}: a pattern is of names of databases, which have - for a dot")


def split_rules(arguments: str) -> list[str]:
    """Return the texts of the rules, parted by white space that no backslash stands before."""
    return re.findall(r"(?:\\.|\S)+", arguments, flags=re.DOTALL)


def _split(text: str, mark: str) -> list[str]:
    """Return the parts between marks that no backslash stands before; the backslashes stay."""
    if "\\" not in text:
        return text.split(mark)
    parts, part, escaped = [], "", False
    for one in text:
        if one == mark and not escaped:
            parts.append(part)
            part = ""
        else:
            part += one
        escaped = one == "\\" and not escaped
    return [*parts, part]


def _plain(text: str) -> str:
    """Return the text without the backslashes that make others plain."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _parse_rule(text: str) -> EventRule:
    parts = _split(text, ":")
    if len(parts) > _MOST_PARTS:
        hint = "a colon of an id or value is written \\:"
        raise MalformedTriggerError(f"rule {text!r} has more than four parts: type:verbs:values:selector; {hint}")
    doctype, verbs, values, selector = parts + [""] * (_MOST_PARTS - len(parts))
    check_doctype(f"rule {text!r}", doctype)
    if selector and not values:
        raise MalformedTriggerError(f"rule {text!r}: the selector {selector!r} needs values to compare with")
    if selector.count(".") >= _DEEPEST_SELECTOR:
        raise MalformedTriggerError(f"a selector has more than {_DEEPEST_SELECTOR} names: {selector[:100]!r}")
    became = values.startswith(_BECAME)
    values = values.removeprefix(_BECAME)
    wanted = tuple(_plain(value) for value in _split(values, ",")) if values else ()
    path = tuple(_plain(name) for name in _split(selector, ".")) if selector else ()
    named = _parse_verbs(text, verbs)
    if became and not (wanted and path):
        raise MalformedTriggerError(f"rule {text!r}: => needs values and a selector: {doctype}:UPDATED:=>paid:status")
    if became and named == {"DELETED"}:
        raise MalformedTriggerError(f"rule {text!r}: a deleted document becomes nothing: it would never fire")
    return EventRule(doctype, named, wanted, selector, path, text, frozenset(wanted), became)


def _parse_verbs(rule: str, text: str) -> frozenset[str]:
    if text in ("", _EVERY):
        return frozenset(VERBS)
    verbs = text.split(",")
    for verb in verbs:
        if verb != _EVERY and verb not in VERBS:
            raise MalformedTriggerError(f"rule {rule!r}: {verb!r} is no verb: CREATED, UPDATED, DELETED or ALL")
    return frozenset(VERBS) if _EVERY in verbs else frozenset(verbs)


def select(doc: dict[str, Any], path: Iterable[str]) -> Any:
    """Return what the names lead to in the document, None where there is nothing."""
    value: Any = doc
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are the same JSON, however deep: 1 is 1.0, and neither is true."""
    left = [(one, other)]
    while left:
        one, other = left.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys():
                return False
            left += [(part, other[name]) for name, part in one.items()]
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            left += zip(one, other, strict=True)
        elif isinstance(one, bool) or isinstance(other, bool):
            if one is not other:
                return False
        elif one != other:
            return False
    return True


def _texts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for element in value for text in _element_texts(element)]
    return _element_texts(value)


def _element_texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return [str(int(value))]
    if isinstance(value, bool | int | float):
        return [encode(value).decode()]
    if isinstance(value, dict) and isinstance(value.get("type"), str) and isinstance(value.get("id"), str):
        return [f"{value['type']}/{value['id']}"]
    return []
