"""Which databases events may come from.

A daemon copies what it reads there into jobs, which producers can read, and it may read more than they. So:

- the databases of couchjobs itself are no sources: control never, triggers never, jobs only where producers write no
  triggers or the list names them (and a trigger never fires for a job that it has made, itself or by others);
- an administrator lists the sources (`couchjobs init --watch orders,invoices`; the list is `sources:<triggers
  database>` in the control database, which producers cannot write);
- the database of users, only where it is listed by its name; what proves passwords is left out;
- without a list every database is a source only where nobody but administrators may write triggers: the case of one
  user;
- where others may write triggers, and the database of triggers is not guarded, a source must be one that producers may
  read anyway.

A trigger that names another database is refused where it is written, and left alone, with its reason, where it is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from couchjobs.couch.connection import Connection
from couchjobs.couch.database import Database, Document
from couchjobs.errors import ConfigurationError, CouchError, Forbidden, NotFound, Unauthorized
from couchjobs.installation import PRODUCER_ROLE, TRIGGERS_GUARD
from couchjobs.prefixer import USERS, Prefixer, escape
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.settings import Settings
from couchjobs.triggers.event import EventRules

SOURCES = "sources:"
"""What the ids of lists of sources begin with."""
_HOW = "couchjobs init --watch"
_MOST = "COUCHJOBS_MAX_SOURCE_DATABASES"


@dataclass(slots=True)
class Sources:
    """What is known of the sources of one tenant."""

    connection: Connection
    db: Prefixer
    listed: tuple[str, ...] | None
    """Doctypes, or patterns of them; None: there is no list."""
    guarded: bool
    others_write: bool
    """Whether anybody but administrators may write triggers."""
    producers: tuple[str, ...] = (PRODUCER_ROLE,)
    """The roles of those who may, but for workers."""
    _readable: dict[str, bool] = field(default_factory=dict)

    async def refusal(self, doctype: str) -> str:
        """Return why events must not come from that database; empty where they may.

        Raises:
            CouchError: it is not known now.
        """
        settings = self.connection.settings
        if reason := refusal_of_own(settings, self.db, doctype, jobs=self._jobs_may(doctype)):
            return reason
        if self.db.database(doctype) in (self.db.database(lane) for lane in settings.all_lanes):
            return ""  # whoever may write triggers reads the jobs anyway
        if doctype == USERS and not self._is_named(USERS):
            return f"the users of the server are followed only where the list names them: {_HOW} {USERS}"
        if self.listed is None:
            if not self.others_write and not self.guarded:
                return ""
            return f"no list says that events may come from {doctype}: {_HOW} {doctype}"
        if not self._is_listed(doctype):
            wanted = ",".join((*self.listed, doctype))
            return f"{doctype} is not in the list of databases that events may come from: {_HOW} {wanted}"
        if self.guarded or not self.others_write or await self._producers_read(doctype):
            return ""
        return (
            f"producers may write triggers, and may not read {doctype}: guard the triggers (couchjobs init --guard), "
            f"or let the role{'s' * (len(self.producers) > 1)} {' and '.join(self.producers)} read it"
        )

    def unlisted(self, rules: EventRules) -> list[str]:
        """Return what the rules name and the list does not, in which a pattern does not stand for jobs and users."""
        wanted = rules.doctypes | rules.patterns
        return sorted(
            one for one in wanted if not self._is_listed(one) or (self._is_own(one) and not self._is_named(one))
        )

    def _is_own(self, doctype: str) -> bool:
        """Return whether it is that of users, or of jobs, however it is written: `a.b` and `a-b` are one database."""
        return doctype == USERS or self._name_of(doctype) in map(self._name_of, self.connection.settings.all_lanes)

    def _is_named(self, doctype: str) -> bool:
        """Return whether the list has it by its name."""
        return self._name_of(doctype) in {self._name_of(one) for one in self.listed or () if "*" not in one}

    def _name_of(self, doctype: str) -> str:
        try:
            return self.db.database(doctype)
        except ConfigurationError:
            return doctype

    def _is_listed(self, doctype: str) -> bool:
        return self.listed is not None and any(fnmatchcase(doctype, pattern) for pattern in self.listed)

    def _jobs_may(self, doctype: str) -> bool:
        return self._is_named(doctype) or (self.guarded and self.listed is None) or not self.others_write

    async def _producers_read(self, doctype: str) -> bool:
        if doctype not in self._readable:
            try:
                security = await self.connection.database(self.db.database(doctype)).security()
            except NotFound:
                return True  # there is nothing to read yet; it is asked again when there is
            except (Forbidden, Unauthorized):
                self._readable[doctype] = False
                return False
            members = security.get("members") or {}
            roles, names = members.get("roles") or [], members.get("names") or []
            self._readable[doctype] = not (roles or names) or set(self.producers) <= set(roles)
        return self._readable[doctype]

    async def _first_refusal(self, doctypes: Iterable[str]) -> str:
        for doctype in sorted(doctypes):
            if reason := await self.refusal(doctype):
                return reason
        return ""

    def pattern_refusal(self, patterns: Iterable[str]) -> str:
        """Return why events must not come from databases by a pattern; empty where they may."""
        for pattern in sorted(patterns):
            if self.listed is None and (self.others_write or self.guarded):
                return f"no list says that events may come from {pattern}: {_HOW} '{pattern}'"
            if self.listed is not None and not self._is_listed(pattern):
                wanted = ",".join((*self.listed, pattern))
                return f"{pattern} is not in the list of databases that events may come from: {_HOW} '{wanted}'"
        return ""

    async def existing_of(self, patterns: Iterable[str], existing: Mapping[str, Iterable[str]]) -> frozenset[str]:
        """Return the doctypes that exist and match, less those that events must not come from."""
        found = {doctype for pattern in patterns for doctype in existing.get(pattern, ())}
        meant = [one for one in sorted(found) if not self._is_own(one) or self._is_named(one)]
        return frozenset([doctype for doctype in meant if not await self.refusal(doctype)])

    async def admitted(
        self, triggers: Iterable[EventTrigger], existing: Mapping[str, Iterable[str]] | None = None
    ) -> tuple[dict[str, list[EventTrigger]], dict[str, str]]:
        """Return the triggers that may fire, by doctype, and the reasons of the others, by id.

        `existing`: by pattern, the doctypes that it names; None: they do not matter.

        Raises:
            CouchError: it is not known now.
        """
        by_doctype: defaultdict[str, list[EventTrigger]] = defaultdict(list)
        reasons: dict[str, str] = {}
        most = self.connection.settings.max_source_databases
        ordered = sorted(triggers, key=lambda one: one.id)
        for trigger in ordered:
            rules = trigger.rules
            reason = await self._first_refusal(rules.doctypes) or self.pattern_refusal(rules.patterns)
            if not reason and len(by_doctype.keys() | rules.doctypes) > most:
                reason = f"there are more than {most} databases that events come from ({_MOST})"
            if reason:
                reasons[trigger.id] = reason
                continue
            for doctype in rules.doctypes:
                by_doctype[doctype].append(trigger)
        for trigger in ordered:  # those that are named come before those that a pattern finds
            found = await self.existing_of(trigger.rules.patterns, existing or {}) if trigger.id not in reasons else ()
            for doctype in sorted(found):
                if doctype in by_doctype or len(by_doctype) < most:
                    if trigger not in by_doctype[doctype]:
                        by_doctype[doctype].append(trigger)
                else:
                    reasons[trigger.id] = f"its pattern finds more databases than are followed: {most} of all ({_MOST})"
        return dict(by_doctype), reasons


def refusal_of_own(settings: Settings, db: Prefixer, doctype: str, *, jobs: bool) -> str:
    """Return why a database of couchjobs itself, of whatever tenant, is no source; `jobs`: those of this tenant may."""
    try:
        name = db.database(doctype)
    except ConfigurationError as error:
        return str(error)
    own_jobs = {db.database(lane) for lane in settings.all_lanes}
    if name in own_jobs:
        return "" if jobs else f"events must not come from the database of jobs here: {_HOW} {doctype}"
    last = name.rpartition("/")[2]
    taken = {escape(one) for one in (settings.triggers_doctype, *settings.all_lanes)}
    if name == settings.control_db or last in taken:
        return f"events never come from {name}: it is a database of couchjobs"
    return ""


def list_id(connection: Connection, db: Prefixer) -> str:
    """Return the id of the document that lists the sources of a tenant."""
    return SOURCES + db.database(connection.settings.triggers_doctype)


async def read_sources(connection: Connection, db: Prefixer) -> Sources:
    """Return what is known of the sources of the tenant.

    Raises:
        CouchError: it is not known now.
    """
    triggers = connection.database(db.database(connection.settings.triggers_doctype))
    listed = await connection.control.find(SOURCES + triggers.name)
    guarded = await triggers.find(f"_design/{TRIGGERS_GUARD}") is not None
    return Sources(connection, db, _read_list(listed), guarded, *await _writers(connection, triggers))


async def write_list(connection: Connection, db: Prefixer, doctypes: Iterable[str]) -> bool:
    """Make the list of sources be this one; return whether it was not.

    Raises:
        CouchError: it is not stored.
        ConfigurationError: one of them is a database of couchjobs.
    """
    wanted = sorted(set(doctypes))
    for doctype in wanted:
        if "*" not in doctype and (reason := refusal_of_own(connection.settings, db, doctype, jobs=True)):
            raise ConfigurationError(reason)
    doc_id = list_id(connection, db)
    present = await connection.control.find(doc_id)
    if present is not None and present.get("doctypes") == wanted:
        return False
    document: Document = {"_id": doc_id, "doctypes": wanted}
    if present is not None:
        document["_rev"] = present["_rev"]
    await connection.control.put(document)
    return True


async def read_list(connection: Connection, db: Prefixer) -> tuple[str, ...]:
    """Return the list of sources; nothing where there is none.

    Raises:
        CouchError: it cannot be read.
    """
    return _read_list(await connection.control.find(list_id(connection, db))) or ()


def _read_list(document: Document | None) -> tuple[str, ...] | None:
    if document is None:
        return None
    doctypes = document.get("doctypes")
    return tuple(one for one in doctypes if isinstance(one, str)) if isinstance(doctypes, list) else ()


async def _writers(connection: Connection, triggers: Database) -> tuple[bool, tuple[str, ...]]:
    """Return whether somebody who is no administrator may write triggers, and the roles of producers who may."""
    try:
        security = await triggers.security()
    except NotFound:
        return False, (PRODUCER_ROLE,)
    except (Forbidden, Unauthorized):
        return True, (PRODUCER_ROLE,)
    members, admins = security.get("members") or {}, security.get("admins") or {}
    names = {*(members.get("names") or []), *(admins.get("names") or [])}
    roles = {*(members.get("roles") or []), *(admins.get("roles") or [])} - {"_admin"}
    if not (members.get("names") or members.get("roles")):
        return True, (PRODUCER_ROLE,)  # open to everybody
    if not names and not roles:
        return False, (PRODUCER_ROLE,)
    producers = tuple(sorted(role for role in roles if str(role).partition(":")[0] == PRODUCER_ROLE))
    known = await _known_users(connection)
    if known is None:
        return True, producers or (PRODUCER_ROLE,)
    held = {role for user in known for role in user.get("roles") or []}
    writes = bool(roles & held) or any(user.get("name") in names for user in known)
    return writes, tuple(role for role in producers if role in held) or (PRODUCER_ROLE,)


async def _known_users(connection: Connection) -> list[Document] | None:
    """Return all users that there are; None where that cannot be known."""
    if "_admin" not in await connection.server.roles() or await connection.server.knows_users_elsewhere():
        return None
    try:
        return await connection.users.all()
    except CouchError:
        return None
