"""What a change makes of a trigger: the event by which it fires, and the job of that firing. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from couchjobs.couch.codec import encode, is_deeper
from couchjobs.couch.database import Document
from couchjobs.errors import BadRequest
from couchjobs.jobs.ids import event_id
from couchjobs.jobs.job import Job, is_job
from couchjobs.jobs.request import new_job
from couchjobs.jobs.transitions import CHAIN
from couchjobs.jobs.values import MAX_DEPTH
from couchjobs.log import get_logger
from couchjobs.prefixer import USERS, Prefixer
from couchjobs.scheduler.trigger import EventTrigger
from couchjobs.triggers.effort import TakesTooLongError

_logger = get_logger(__name__)
CREATED, UPDATED = "CREATED", "UPDATED"
ONCE = "once"
"""Instead of a revision, in the id of the one job that a document is to have."""
_SECRETS = frozenset({"password", "password_scheme", "password_sha", "derived_key", "salt", "iterations", "pbkdf2_prf"})
"""Of `_users`. Source: CouchDB docs, intro/security, "Users documents"."""


class Happened(NamedTuple):
    """What happened to a document: the verb, the document, and the one before where it could be had."""

    verb: str
    document: Document
    old: Document | None
    lost: bool = False
    """Whether there was one before that nobody can have any more, and the rule is about what has become of it."""


def event_of(
    trigger: EventTrigger, doctype: str, verbs: tuple[str, ...], document: Document, old: Document | None
) -> Happened | None:
    """Return the event by which the trigger fires, None where it does not.

    Args:
        trigger: it never fires for a job that it has made, itself or by way of other triggers.
        doctype: of the document.
        verbs: what may be said of the change. Where that is two things, the document is new and has changed since,
            and is UPDATED only if the one before is known: else it came by replication as it is.
        document: at the revision that the feed shows.
        old: the one before, where it could be had.
    """
    if trigger.id in makers_of(document):
        return None
    if doctype == USERS:
        document, old = without_secrets(document), old and without_secrets(old)
    for verb in verbs:
        before = None if verb == CREATED else old
        if len(verbs) > 1 and verb == UPDATED and old is None:
            continue
        try:
            lost = verb != CREATED and before is None
            if trigger.rules.matches(doctype, verb, document, before, lost=lost):
                return Happened(verb, document, before, lost and trigger.rules.wants_each(doctype))
        except TakesTooLongError as error:
            _logger.warning("does not fire", trigger=trigger.id, document=document["_id"], reason=str(error))
        except RecursionError:  # nobody can tell, and nothing may be missed
            return Happened(verb, document, before)
        except Exception:  # no document and no rule may stop the others
            _logger.exception("rule cannot be applied", trigger=trigger.id, document=document["_id"])
    return None


def without_secrets(user: Document) -> Document:
    """Return the document of a user of CouchDB without what proves his password: others read the job that has it."""
    return {name: value for name, value in user.items() if name not in _SECRETS}


def without_proof(job: Document) -> Document:
    """Return the document of a job without what proves that an administrator has pushed it: that does not expire."""
    return {name: value for name, value in job.items() if name != "admin_proof"}


def job_of(db: Prefixer, doctype: str, trigger: EventTrigger, happened: Happened, largest: int) -> Job:
    """Return the job of a firing, the same whoever makes it; an event of more than `largest` bytes has no documents."""
    document = happened.document
    event: dict[str, Any] = {"domain": db.domain, "verb": happened.verb, "doc": document}
    if db.prefix:
        event["prefix"] = db.prefix
    if doctype not in trigger.rules.doctypes:  # a pattern names it: which database it was is not known otherwise
        event["doctype"] = doctype
    if happened.old is not None:
        event["old"] = happened.old
    elif happened.lost:
        event["old"] = "unknown"
    if _is_too_large(event, largest):
        event["doc"] = {"_id": document["_id"], "_rev": document["_rev"]}
        event.pop("old", None)
        event["truncated"] = True
    rev = ONCE if trigger.infos.once else document["_rev"]
    job_id = event_id(doctype, document["_id"], rev, trigger.infos.id)
    job = new_job(db, trigger.infos.job_request_with_event(event, id=job_id))
    job.queued_at = None  # no time that all daemons would agree on; the claim fills it in
    if makers := makers_of(document):
        job.document()[CHAIN] = sorted(makers)
    return job


def makers_of(document: Document) -> set[str]:
    """Return the triggers that made the job which changed, and those before it; none where it is no job."""
    if not is_job(document):
        return set()
    chain = document.get(CHAIN)
    makers = {one for one in chain if isinstance(one, str)} if isinstance(chain, list) else set()
    trigger_id = document.get("trigger_id")
    return makers | ({trigger_id} if isinstance(trigger_id, str) else set())


def _is_too_large(event: dict[str, Any], largest: int) -> bool:
    try:
        body = encode(event)
    except BadRequest:
        return True
    return len(body) > largest or is_deeper(event, MAX_DEPTH - 1, body)
