"""What an answer proves."""

from __future__ import annotations

from typing import Any

import pytest

from couchjobs import errors
from couchjobs.couch.answers import error_of, read_documents, read_write_row, refuses_document, refuses_request


def leaf(rev: str, **fields: Any) -> dict[str, Any]:
    """A row of `_bulk_get` that holds a document."""
    return {"ok": {"_id": "a", "_rev": rev, **fields}}


def fault(error: str) -> dict[str, Any]:
    """A row of `_bulk_get` that holds none."""
    return {"error": {"id": "a", "rev": "undefined", "error": error, "reason": "r"}}


@pytest.mark.parametrize(
    ("docs", "rev", "absent"),
    [
        ([leaf("1-a")], "1-a", False),
        ([leaf("2-c", _deleted=True), leaf("2-b")], "2-b", False),
        ([leaf("2-b"), leaf("2-c"), leaf("9-z", _deleted=True)], "2-c", False),
        ([leaf("10-a"), leaf("9-f")], "10-a", False),
        ([leaf("2-c", _deleted=True)], None, True),
        ([fault("not_found")], None, True),
        ([fault("timeout")], None, False),
        ([leaf("1-a"), fault("timeout")], None, False),
        ([{}], None, False),
        ([{"ok": {"_id": "another", "_rev": "1-a"}}], None, False),
        ([None], None, False),
    ],
)
def test_read_documents_when_leaves_come_in_any_order_then_the_winner_or_absent_or_unknown(
    docs: list[Any], rev: str | None, absent: bool
) -> None:
    """CouchDB answers with all leaves, deleted ones too; an error in a row is no absence."""
    (found,) = read_documents([("a", None)], [{"id": "a", "docs": docs}])
    assert (found.document and found.document["_rev"], found.absent) == (rev, absent)
    assert found.document or found.absent or found.reason


def test_read_documents_when_a_row_is_missing_or_foreign_then_unknown() -> None:
    """Nothing was said of it."""
    for results in ([], [{"id": "b", "docs": [leaf("1-a")]}], ["x"], [{"id": "a"}], [{"id": "a", "docs": []}]):
        (found,) = read_documents([("a", None)], results)
        assert (found.document, found.absent) == (None, False)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"error": "not_found", "reason": "missing"}', errors.NotFound),
        (404, b'{"error": "no_route", "reason": "x"}', errors.NotCouchDB),
        (404, b"<html>", errors.NotCouchDB),
        (404, b"", errors.NotCouchDB),
        (401, b'{"error": "unauthorized", "reason": "x"}', errors.Unauthorized),
        (403, b"<html>blocked</html>", errors.NotCouchDB),
        (403, b'{"error": "forbidden", "reason": "x"}', errors.Forbidden),
        (409, b'{"error": "conflict", "reason": "x"}', errors.Unavailable),
        (413, b'{"error": "too_large", "reason": "x"}', errors.TooLarge),
        (400, b'{"error": "bad_request", "reason": "x"}', errors.BadRequest),
        (408, b'{"error": "timeout", "reason": "x"}', errors.Unavailable),
        (429, b"slow down", errors.NotCouchDB),
        (500, b'{"error": "x", "reason": null}', errors.Unavailable),
        (301, b"", errors.Redirected),
        (404, b"[" * 3000, errors.NotCouchDB),
    ],
)
def test_error_of_when_couchdb_or_somebody_else_answers_then_as_much_as_it_says(
    status: int, body: bytes, kind: type[errors.CouchError]
) -> None:
    """Only CouchDB's own form counts, whatever the status."""
    error = error_of("GET", "db", status, body, retry_after="7")
    assert type(error) is kind
    assert error.status == status
    if status == 429:
        assert isinstance(error, errors.Unavailable)
        assert error.retry_after_s == 7


def test_refusals_when_they_are_of_the_request_or_of_one_document_then_told_apart() -> None:
    """A 413 that names the document is about it; 404 and 429 are about no document."""
    large = error_of("POST", "db/_bulk_docs", 413, b'{"error": "document_too_large", "reason": "a"}')
    assert refuses_document(large, "a")
    assert not refuses_document(large, "b")
    assert [refuses_request(error_of("POST", "d", status, b"")) for status in (400, 403, 404, 408, 429, 500)] == [
        *(True, True, False, True, False, False)
    ]


@pytest.mark.parametrize(
    ("row", "written"),
    [
        ({"id": "a", "rev": "1-a"}, "ok"),
        ({"ok": True, "id": "a", "rev": "1-a", "accepted": True}, "accepted"),
        ({"id": "a", "error": "conflict"}, "conflict"),
        ({"id": "a", "error": "forbidden", "reason": "no"}, "refused"),
        ({"id": "a", "error": "timeout"}, "unknown"),
        ({"id": "a", "ok": True}, "unknown"),
        ("nonsense", "unknown"),
    ],
)
def test_read_write_row_when_it_says_something_then_that_and_no_more(row: Any, written: str) -> None:
    """Of one document."""
    assert read_write_row(row).written.value == written
