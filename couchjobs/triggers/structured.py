"""The structured rules of @event triggers: `rules` in the document, beside or instead of the text of `arguments`.

    {"doctype": "orders", "verbs": ["CREATED", "UPDATED"], "became": {"status": "paid"}}

`selector` must match the document; `became` must match it now, and not as it was before; one of the fields in `changed`
must be another than before; its id must be one of `ids`. What is not given asks for nothing. Of a deleted document, the
one before is looked at. Where that is gone, taken by compaction, it counts as one that matches, or has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from couchjobs.couch.codec import encode
from couchjobs.errors import MalformedTriggerError
from couchjobs.triggers.event import VERBS, check_doctype, is_same
from couchjobs.triggers.mango import Test, compile_selector, find

_FIELDS = ("doctype", "verbs", "selector", "became", "changed", "ids")
_MOST_NAMED = 1000


@dataclass(frozen=True, slots=True)
class StructuredRule:
    """One rule; what is None asks for nothing."""

    doctype: str
    verbs: frozenset[str]
    text: str
    selector: Test | None = None
    became: Test | None = None
    changed: tuple[str, ...] | None = None
    ids: frozenset[str] | None = None

    @property
    def wants_each(self) -> bool:
        """Return whether each change of a document counts, not only the last that the feed shows."""
        return self.became is not None

    def may_match(self, verb: str, doc_id: str) -> bool:
        """Return whether the rule can match once the document is known."""
        return verb in self.verbs and (self.ids is None or doc_id in self.ids)

    def matches(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None, *, lost: bool = False) -> bool:
        """Return whether the rule matches an event of its doctype."""
        return not self.why_not(verb, doc, old, lost=lost)

    def why_not(self, verb: str, doc: dict[str, Any], old: dict[str, Any] | None, *, lost: bool = False) -> str:
        """Return why the rule does not match, nothing where it does."""
        if verb not in self.verbs:
            return f"the verb is {verb}"
        if self.ids is not None and doc.get("_id") not in self.ids:
            return f"the id is {doc.get('_id')!r}"
        is_deleted = verb == "DELETED"
        meant = old if is_deleted else doc
        if self.selector is not None and not (is_deleted and lost) and not self.selector(meant or doc):
            return "selector does not match"
        if self.became is not None:
            if is_deleted or not self.became(doc):
                return "became does not match the document"
            if old is not None and self.became(old):
                return "became matched before, too"
        return self._why_not_changed(doc, old) if verb == "UPDATED" else ""

    def _why_not_changed(self, doc: dict[str, Any], old: dict[str, Any] | None) -> str:
        if self.changed is None or old is None:
            return ""
        if any(not is_same(find(doc, field), find(old, field)) for field in self.changed):
            return ""
        return f"none of these has changed: {', '.join(self.changed)}"


def parse_rules(rules: Any) -> list[StructuredRule]:
    """Return the structured rules of a trigger.

    Raises:
        MalformedTriggerError: one cannot be understood, or could never fire; the text says which, and where.
    """
    if not isinstance(rules, list):
        raise MalformedTriggerError(f"rules is a list of objects, not {rules!r:.100}")
    found: list[StructuredRule] = []
    for number, rule in enumerate(rules):
        try:
            found.append(_parse(rule))
        except MalformedTriggerError as error:
            raise MalformedTriggerError(f"rules[{number}]: {error}") from None
    return found


def _parse(rule: Any) -> StructuredRule:
    if not isinstance(rule, dict):
        raise MalformedTriggerError(f"a rule is an object, not {rule!r:.100}")
    if unknown := rule.keys() - set(_FIELDS):
        raise MalformedTriggerError(f"{', '.join(sorted(unknown))}: no field of a rule: {', '.join(_FIELDS)}")
    given = {name: value for name, value in rule.items() if value is not None}
    doctype = given.get("doctype")
    if not isinstance(doctype, str):
        raise MalformedTriggerError("doctype is missing: the database whose documents fire")
    check_doctype("doctype", doctype)
    verbs = _texts(given.get("verbs", [*VERBS]), "verbs")
    if wrong := set(verbs) - set(VERBS):
        raise MalformedTriggerError(f"verbs: {', '.join(sorted(wrong))}: write CREATED, UPDATED or DELETED")
    if "became" in given and set(verbs) == {"DELETED"}:
        raise MalformedTriggerError("became: a deleted document becomes nothing: it would never fire")
    ids, changed = given.get("ids"), given.get("changed")
    for field in _texts(changed, "changed") if changed is not None else ():
        find({}, field)
    return StructuredRule(
        doctype,
        frozenset(verbs),
        encode(rule).decode(),
        compile_selector(given["selector"]) if "selector" in given else None,
        compile_selector(given["became"]) if "became" in given else None,
        _texts(changed, "changed") if changed is not None else None,
        frozenset(_texts(ids, "ids")) if ids is not None else None,
    )


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise MalformedTriggerError(f"{name} is a list of texts, at least one, not {value!r:.100}")
    if len(value) > _MOST_NAMED:
        raise MalformedTriggerError(f"{name} has {len(value):,} entries; {_MOST_NAMED:,} may be")
    return tuple(value)
