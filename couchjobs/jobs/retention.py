"""How long finished jobs are kept: rules, as an administrator or worker writes them into the control database.

    {"_id": "retention:<database of jobs>", "rules": [{"worker": "*", "state": "done", "keep": "2w"},
                                                       {"worker": "import", "keep": "1d", "at_most": 1000}]}

The most special rule wins: one that names the worker before one that does not, then one that names the state. Without
rules nothing is ever removed. Pure, but for reading and writing that document.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Document
from couchjobs.durations import format_age, read_age
from couchjobs.errors import ConfigurationError
from couchjobs.jobs.job import ENDED
from couchjobs.prefixer import Prefixer
from couchjobs.reasons import reason

_PREFIX = "retention:"
_NO_FIELD = "there is no such field: worker, state, keep and at_most are"
_EVERY = "*"


def _ended(value: Any) -> Any:
    if value in (_EVERY, *(state.value for state in ENDED)):
        return value
    raise ValueError("state is done, errored, or * for both")


def _named(value: Any) -> Any:
    if isinstance(value, str) and value and (value == _EVERY or _EVERY not in value):
        return value
    raise ValueError("worker is the name of a type, or * for all: there are no other patterns")


class Rule(BaseModel):
    """One rule, for jobs of one worker type or of all."""

    model_config = ConfigDict(extra="forbid")

    worker: Annotated[str, BeforeValidator(_named)] = _EVERY
    state: Annotated[str, BeforeValidator(_ended)] = _EVERY
    keep: Annotated[float | None, BeforeValidator(lambda value: None if value is None else read_age(value))] = None
    """Seconds since its end for which a job is kept; None: for ever."""
    at_most: int | None = Field(default=None, ge=0, strict=True)
    """How many of each worker type and state are kept, the newest; None: any number."""

    def as_json(self) -> dict[str, Any]:
        """Return the rule as people write it."""
        keep = {} if self.keep is None else {"keep": format_age(self.keep)}
        return self.model_dump(exclude_none=True, exclude={"keep"}) | keep

    def __str__(self) -> str:
        """Return what it does, in words."""
        which = "finished" if self.state == _EVERY else self.state
        whose = "all workers" if self.worker == _EVERY else f"worker {self.worker!r}"
        when = [
            *([] if self.keep is None else [f"{format_age(self.keep)} after their end"]),
            *([] if self.at_most is None else [f"beyond the newest {self.at_most:,} of each worker and state"]),
        ]
        removed = f"are removed {', and '.join(when)}" if when else "are kept for ever"
        return f"{which} jobs of {whose} {removed}"


class Retention:
    """The rules of one tenant."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)

    @property
    def workers(self) -> set[str]:
        """Return the worker types that rules name."""
        return {rule.worker for rule in self.rules} - {_EVERY}

    def of(self, worker: str, state: str) -> Rule | None:
        """Return the rule for jobs of that worker type that have ended so; None where they are kept for ever."""
        if state not in ENDED:
            return None
        fitting = [rule for rule in self.rules if rule.worker in (worker, _EVERY) and rule.state in (state, _EVERY)]
        return max(fitting, key=lambda rule: (rule.worker != _EVERY, rule.state != _EVERY), default=None)


def read_rules(rules: object) -> Retention:
    """Return the rules that JSON holds.

    Raises:
        ConfigurationError: it holds none; the text says which rule, and why.
    """
    if not isinstance(rules, list):
        raise ConfigurationError('rules are a list such as [{"worker": "*", "state": "done", "keep": "2w"}]')
    found: list[Rule] = []
    for number, rule in enumerate(rules):
        try:
            found.append(Rule.model_validate(rule))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = _NO_FIELD if first["type"] == "extra_forbidden" else reason(first)
            raise ConfigurationError(f"rules[{number}]{'.' + where if where else ''}: {what}") from None
    seen = {(rule.worker, rule.state) for rule in found}
    if len(seen) < len(found):
        raise ConfigurationError("two rules are for the same worker and state")
    return Retention(found)


def document_id(connection: Connection, db: Prefixer) -> str:
    """Return the id of the document with the rules of a tenant."""
    return _PREFIX + db.database(connection.settings.jobs_doctype)


async def stored_rules(connection: Connection, db: Prefixer) -> Retention:
    """Return the rules of a tenant; none where nobody has written any.

    Raises:
        ConfigurationError: the document cannot be understood.
        CouchError: it cannot be read.
    """
    document = await connection.control.find(document_id(connection, db))
    return read_rules(document.get("rules")) if document is not None else Retention()


async def store_rules(connection: Connection, db: Prefixer, rules: list[Any] | None) -> None:
    """Write the rules of a tenant; None: remove them.

    Raises:
        ConfigurationError: they cannot be understood.
        CouchError: they are not stored.
    """
    doc_id = document_id(connection, db)
    present = await connection.control.find(doc_id)
    if rules is None:
        if present is not None:
            await connection.control.delete(doc_id, present["_rev"])
        return
    read_rules(rules)
    document: Document = {"_id": doc_id, "domain": db.domain, "prefix": db.db_prefix, "rules": rules}
    if present is not None:
        document["_rev"] = present["_rev"]
    await connection.control.put(document)
