"""What an answer proves. Nothing above this package sees a raw status.

An error counts as CouchDB's only in CouchDB's own form, `{"error": ..., "reason": ...}`. Whatever else comes (a page
of a proxy, an empty body, another status) says nothing, whatever its status: it is Unavailable.

| asked | what came | what it proves |
|---|---|---|
| a write | the document's row is `ok` | OK: stored, with that revision |
| | ... and `accepted` | ACCEPTED: stored at too few copies of a cluster; it may lose to another branch |
| | the row says conflict | CONFLICT: another revision is there |
| | the row names a refusal, or the whole answer is a 413 for this very document | REFUSED: it can never be stored |
| | ... or another error, such as that of a function that validates | UNKNOWN, `own_error`; `alone` where others of |
| | | that request are stored |
| | the request was refused as a whole | UNKNOWN; `alone` where it held this document only, and others go through |
| | 500 that names an Erlang function that could not cope | UNKNOWN; `own_error` where it held this document only |
| | 429, a 401 or 403 of CouchDB's, or no connection was made | UNKNOWN, and `unsent`: it is surely not stored |
| | anything else, or nothing | UNKNOWN: it may be stored |
| a read | the document's row is `ok` | the document |
| | the row says not_found | absent: it was never there, is deleted, or that revision is gone |
| | the row says anything else, or there is none | unknown |
| anything | 401 with "Name or password is incorrect" | the credentials are wrong |
| | 401 that names an administrator | the credentials are right, and the user may not do this |
| | any other 401 | nothing of the credentials: `GET /_session` tells |
| | 403 with "temporarily locked" | Locked: nothing of this request, nor of the password |
| | 409 for the whole request | nothing: CouchDB says conflict in the row of a document |
| | 404 `not_found` | NotFound: no such database or view, where that was asked for; see `absence` |

Source: CouchDB docs, api/basics and json/structure; the names of refusals are those of chttpd:error_info.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from couchjobs import errors
from couchjobs.couch.codec import decode

_LONGEST_TEXT = 500
"""Characters of an answer that an error quotes: what a proxy says in a page of HTML is in the first of them."""
_RETRY_AFTER_S = 1.0
"""For a 429 that names no seconds."""
_LONGEST_RETRY_AFTER_S = 60.0
"""Whatever it names: a mistaken header must not stop a daemon for a day."""
_OF_THE_REQUEST = {400, 405, 406, 412, 415, 416, 417}
"""Statuses with which CouchDB refuses a request for its form."""
NO_DATABASE = "Database does not exist"
_LOCKED = "temporarily locked"
_WRONG = "Name or password is incorrect"
_ADMIN = " admin"
_BY_STATUS: dict[int, type[errors.CouchError]] = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    413: errors.TooLarge,
}
_BROKEN = (500, 502, 503, 504)
_REFUSALS = {
    "forbidden",
    "unauthorized",
    "doc_validation",
    "bad_request",
    "illegal_docid",
    "document_too_large",
    "too_large",
}
_OF_THE_SERVER = {
    "error",
    "insufficient_storage",
    "internal_server_error",
    "maintenance_mode",
    "nodedown",
    "not_found",
    "request_timeout",
    "service unavailable",
    "service_unavailable",
    "timeout",
    "too_many_requests",
    "write_quorum_not_met",
}
"""Errors in rows that say nothing of the document: a shard has no copy now, or waits for one, or has no room, ..."""
_STUMBLES = {"function_clause", "case_clause"}
"""What Erlang says where a function could not cope with what it was given, as with what a validating one has thrown."""


class Written(Enum):
    """What became of a document that was written."""

    OK = "ok"
    ACCEPTED = "accepted"
    CONFLICT = "conflict"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class WriteAnswer(NamedTuple):
    """The answer for one document: its new revision where it was stored, the reason where it was not."""

    written: Written
    rev: str = ""
    reason: str = ""
    alone: bool = False
    """UNKNOWN: this document was refused by itself, while the database took another write."""
    own_error: bool = False
    """UNKNOWN: its row has an error that may be one of this document; of all others, perhaps, too."""
    others_stored_at: float = 0.0
    """Then, when another document of the database was stored last, by `time.monotonic()`."""
    unasked: bool = False
    """UNKNOWN: it was written with others, and nothing was learned of it."""
    unsent: bool = False
    """UNKNOWN: it is surely not stored, for the request was not taken at all."""
    retry_after_s: float = 0.0
    """UNKNOWN: how long the server asks to be left alone."""

    @property
    def stored(self) -> bool:
        """Return whether the document is in the database, on the winning branch or on another."""
        return self.written in (Written.OK, Written.ACCEPTED)


class Shown(Enum):
    """What a 401 says of the credentials that were shown."""

    TAKEN = "taken"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Found(NamedTuple):
    """The answer for one document that was asked for: the document, or that it is absent, or why neither is known."""

    doc_id: str
    rev: str | None
    """The revision that was asked for; None: the winner."""
    document: dict[str, Any] | None
    absent: bool = False
    reason: str = ""
    unreadable: bool = False
    """It is there, and too large or nested too deep to be read."""

    @property
    def is_unknown(self) -> bool:
        """Return whether CouchDB has not said what there is: a part of the database does not answer, say."""
        return self.document is None and not self.absent and not self.unreadable

    def known(self, database: str) -> dict[str, Any] | None:
        """Return the document; None where it is absent, or cannot be read.

        Raises:
            Unavailable: CouchDB has not said what there is.
        """
        if self.is_unknown:
            raise errors.Unavailable(f"{self.doc_id} in database {database}: {self.reason}")
        return self.document


def error_of(
    method: str, path: str, status: int, answer: bytes, *, location: str = "", retry_after: str = ""
) -> errors.CouchError:
    """Return the error that an answer with a status from 300 on is."""
    where = f"{method} /{path}"
    said = _said(answer)
    if said is None or (status == 404 and said[0] != "not_found"):
        text = " ".join(answer[:_LONGEST_TEXT].decode("utf-8", "replace").split())
        if 300 <= status < 400:
            return errors.Redirected(f"{where}: {status}: redirected to {location or '?'}: set COUCHJOBS_URL", status)
        return errors.NotCouchDB(
            f"{where}: {status}, and not an answer of CouchDB: {text!r}", status, _seconds(retry_after, status)
        )
    text = f"{where}: {status} {said[0]}: {said[1]}"[:_LONGEST_TEXT]
    if status == 404:
        return errors.NotFound(text + _how_it_is_made(path, said[1]), status)
    if status == 403 and _LOCKED in said[1]:
        return errors.Locked(text, status)
    if status in _BY_STATUS:
        return _BY_STATUS[status](text, status)
    if status in _OF_THE_REQUEST:
        return errors.BadRequest(text, status)
    if _has_stumbled(path, status, said):
        return errors.Stumbled(text, status)
    return errors.Unavailable(text, status, _seconds(retry_after, status))


def _how_it_is_made(path: str, reason: str) -> str:
    if reason.startswith(NO_DATABASE):
        made = "One of couchjobs' own is made by `couchjobs init`, for the tenant of --prefix or COUCHJOBS_PREFIX"
        return f" {made}; any other one you make yourself."
    return ": the views of couchjobs are put there by `couchjobs init`." if "/_design/" in path else ""


def of_credentials(answer: bytes) -> Shown:
    """Return what the answer with a 401 says of the credentials that were shown."""
    said = _said(answer)
    if said is None:
        return Shown.UNKNOWN
    if _WRONG in said[1]:
        return Shown.REFUSED
    return Shown.TAKEN if _ADMIN in said[1] else Shown.UNKNOWN


def _said(answer: bytes) -> tuple[str, str] | None:
    """Return the error and the reason, where the answer has CouchDB's form."""
    try:
        said = decode(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("error"), str) or "reason" not in said:
        return None
    return said["error"], str(said["reason"])


def _seconds(retry_after: str, status: int) -> float:
    if status != 429:
        return 0.0
    return min(_LONGEST_RETRY_AFTER_S, float(retry_after)) if retry_after.isdecimal() else _RETRY_AFTER_S


def refuses_request(error: errors.CouchError) -> bool:
    """Return whether the request was refused as a whole, by whomever, in a way that may be about what it holds."""
    return 400 <= error.status < 500 and error.status not in (404, 429)


def refuses_document(error: errors.CouchError, doc_id: str) -> bool:
    """Return whether CouchDB itself says of the one document of a request that it is larger than it ever takes."""
    return isinstance(error, errors.TooLarge) and str(error).endswith(f" document_too_large: {doc_id}")


def is_of_node(path: str, status: int, answer: bytes) -> bool:
    """Return whether an error of the server's may be one of its node, and not of a document: another one may do."""
    return status in _BROKEN and not has_rows(path, status, answer) and not _has_stumbled(path, status, _said(answer))


def _has_stumbled(path: str, status: int, said: tuple[str, str] | None) -> bool:
    """Return whether CouchDB stumbled, perhaps over one document of the request; others of it may be stored.

    So where a function that validates documents throws a number, or `{error: ..., reason: ...}` (measured, 3.5.2).
    """
    return status == 500 and path.endswith("/_bulk_docs") and said is not None and not _STUMBLES.isdisjoint(said)


def has_rows(path: str, status: int, answer: bytes) -> bool:
    """Return whether an error of `_bulk_docs` says of each document what became of it.

    A cluster whose copies do not agree, one of them refusing, answers so. Source: CouchDB, `chttpd_db:bulk_docs`.
    """
    return status == 500 and path.endswith("/_bulk_docs") and answer.startswith(b"[")


def read_write_row(row: Any) -> WriteAnswer:
    """Return what a row of `_bulk_docs` says of its document."""
    if not isinstance(row, dict):
        return WriteAnswer(Written.UNKNOWN, reason=f"{row!r} is no row of _bulk_docs")
    if isinstance(row.get("rev"), str) and "error" not in row:
        return WriteAnswer(Written.ACCEPTED if row.get("accepted") else Written.OK, rev=row["rev"])
    reason = f"{row.get('error')}: {row.get('reason')}"
    if row.get("error") == "conflict":
        return WriteAnswer(Written.CONFLICT, reason=reason)
    return WriteAnswer(Written.REFUSED if row.get("error") in _REFUSALS else Written.UNKNOWN, reason=reason)


def is_of_document(row: Any) -> bool:
    """Return whether the error in a row may be one of its document, which somebody's function perhaps stumbles over."""
    error = row.get("error") if isinstance(row, dict) else None
    return isinstance(error, str) and error not in _OF_THE_SERVER


def as_error(answer: WriteAnswer, where: str) -> errors.CouchError:
    """Return the error that an answer is to somebody who wanted the document stored."""
    text = f"{where}: {answer.reason}"
    match answer.written:
        case Written.CONFLICT:
            return errors.Conflict(text, 409)
        case Written.REFUSED:
            return errors.Refused(text)
        case _:
            stored = "it is surely not stored" if answer.unsent else "it may be stored or not"
            return errors.Unavailable(f"{text} ({stored})")


def read_documents(wanted: Sequence[tuple[str, str | None]], results: Iterable[Any]) -> list[Found]:
    """Return what the results of `_bulk_get` say of each document that was asked for, in that order.

    Where no revision was asked for, CouchDB answers with all leaves, deleted ones too, in an order of its own.
    """
    by_id: defaultdict[str, deque[list[Any]]] = defaultdict(deque)
    for result in results:
        if isinstance(result, dict) and isinstance(result.get("docs"), list) and result["docs"]:
            by_id[str(result.get("id"))].append(result["docs"])
    return [_read_one(doc_id, rev, by_id[doc_id]) for doc_id, rev in wanted]


def _read_one(doc_id: str, rev: str | None, answers: deque[list[Any]]) -> Found:
    if not answers:
        return Found(doc_id, rev, None, reason="the answer has no row for it")
    answer = next((one for one in answers if rev is not None and _rev_of(one[0]) == rev), answers[0])
    answers.remove(answer)
    leaves = [leaf for one in answer if (leaf := _document_of(one, doc_id)) is not None]
    if len(leaves) == len(answer):
        live = leaves if rev is not None else [leaf for leaf in leaves if not leaf.get("_deleted")]
        return Found(doc_id, rev, max(live, key=leaf_rank)) if live else Found(doc_id, rev, None, absent=True)
    errors_of = [one.get("error") if isinstance(one, dict) else None for one in answer]
    if all(isinstance(error, dict) and error.get("error") == "not_found" for error in errors_of):
        return Found(doc_id, rev, None, absent=True)
    return Found(doc_id, rev, None, reason=str(next(filter(None, errors_of), "half an answer"))[:_LONGEST_TEXT])


def _document_of(answer: Any, doc_id: str) -> dict[str, Any] | None:
    leaf = answer.get("ok") if isinstance(answer, dict) else None
    good = isinstance(leaf, dict) and leaf.get("_id") == doc_id and isinstance(leaf.get("_rev"), str)
    return leaf if good else None


def leaf_rank(leaf: dict[str, Any]) -> tuple[int, str]:
    """Return what CouchDB orders the live leaves of a document by. Source: CouchDB docs, replication/conflicts."""
    number, _, digest = leaf["_rev"].partition("-")
    return int(number) if number.isdecimal() else 0, digest


def _rev_of(answer: Any) -> Any:
    part = (answer.get("ok") or answer.get("error")) if isinstance(answer, dict) else None
    return (part.get("_rev") or part.get("rev")) if isinstance(part, dict) else None
