"""One database: documents by id, many at once, views page by page.

Ids go in bodies, never in paths, where a long or odd one is not found, refused, or taken for another (`.`): so a 404
is always about the database or a view, and that a document is absent is said by the row that answers for it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from couchjobs.couch.answers import Found, as_error, leaf_rank, read_documents, read_write_row
from couchjobs.couch.client import CouchServer
from couchjobs.couch.codec import decode, encode
from couchjobs.errors import NotFound, Unavailable, Unreadable

Document = dict[str, Any]
"""A document as JSON has it, `_id` and `_rev` included."""
Row = dict[str, Any]
"""A row of a view: `id`, `key`, `value`."""

Update = Literal["true", "false", "lazy"]
"""Whether reading a view waits for its index: yes; no, it stays as it is; no, but it is brought up to date then."""

_PLAIN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9:._@+-]{0,199}$")
_LONGEST_QUERY = 3000
"""Characters of a query, as it is quoted; servers and proxies take lines of some thousand."""
_BULK_GET = 500
"""Documents in one request; the answer is split by its size, too."""
_LONGEST_SEQUENCE = 18
"""Digits of the number that a sequence or a revision begins with."""
_PREFIX_PAGE = 200
"""Rows of one request."""
_BULK_BYTES = 16 * 1024 * 1024
"""Of one answer; a larger one is asked for in halves."""


def generation(rev: str) -> int:
    """Return the generation of a revision: how many changes led to it."""
    number = rev.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) <= _LONGEST_SEQUENCE else 0


def sequence_number(seq: str) -> int:
    """Return the number that a sequence begins with: how many changes came before, roughly; 0 where there is none."""
    number = seq.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) <= _LONGEST_SEQUENCE else 0


class Witness(NamedTuple):
    """A document and a revision that it has had: what a database must know that has come as far as a position."""

    doc_id: str
    rev: str
    deleted: bool = False
    purges: int = 0
    """How many purges the database had seen before, as far as that is known."""


def is_readable(answer: bytes) -> bool:
    """Return whether an answer with a document can be read: it is not too large, and JSON, not nested too deep."""
    if len(answer) > _BULK_BYTES:
        return False
    try:
        decode(answer)
    except (ValueError, RecursionError):
        return False
    return True


def _id_of(row: Any) -> Any:
    return row.get("id") if isinstance(row, dict) else None


def is_id(value: object) -> bool:
    """Return whether a value can be the id of a document that is neither CouchDB's own nor a design document."""
    try:
        return isinstance(value, str) and value.encode() != b"" and not value.startswith("_")
    except UnicodeEncodeError:  # half a character
        return False


class Database:
    """A database of a server, whether or not it exists. The constructor does not touch the network."""

    def __init__(self, server: CouchServer, name: str) -> None:
        self.server = server
        self.name = name
        self.path = quote(name, safe="")

    def __repr__(self) -> str:
        return f"<Database {self.name} of {self.server.url}>"

    async def info(self) -> dict[str, Any]:
        """Return what CouchDB knows of the database: doc_count, update_seq, cluster, ...

        Raises:
            NotFound: it does not exist.
        """
        found: dict[str, Any] = await self.server.request("GET", self.path, has="db_name")
        return found

    async def exists(self) -> bool:
        """Return whether there is such a database."""
        try:
            await self.info()
        except NotFound:
            return False
        return True

    async def get(self, doc_id: str) -> Document:
        """Return the document, as `find` does.

        Raises:
            NotFound: there is none, or no such database.
            Unavailable: CouchDB does not say.
        """
        found = await self.find(doc_id)
        if found is None:
            raise NotFound(f"{doc_id} in database {self.name}: there is no such document", 404)
        return found

    async def attachment(self, doc_id: str, name: str, rev: str) -> bytes:
        """Return an attachment of that revision of a document.

        Raises:
            NotFound: there is none of that name.
        """
        path = f"{self.path}/{quote(doc_id, safe='')}/{quote(name, safe='')}"
        return await self.server.request_bytes("GET", f"{path}?rev={quote(rev, safe='')}")

    async def find(self, doc_id: str) -> Document | None:
        """Return the document, or None where CouchDB says that there is none.

        Raises:
            NotFound: the database does not exist.
            Unavailable: CouchDB does not say.
            Unreadable: it is too large, or nested too deep.
        """
        (found,) = await self.read([doc_id])
        if found.document is not None or found.absent:
            return found.document
        kind = Unreadable if found.unreadable else Unavailable
        raise kind(f"{doc_id} in database {self.name}: {found.reason}")

    async def read(self, ids: Iterable[str]) -> list[Found]:
        """Return what CouchDB says of each of these documents, as they are now; meant for small ones."""
        return [one async for part in self.revisions([(doc_id, None) for doc_id in ids]) for one in part]

    async def get_many(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return the documents with these ids that exist, by id; one that cannot be read is left out.

        Raises:
            Unavailable: CouchDB does not say of one of them whether it exists.
        """
        found = {one.doc_id: one.known(self.name) for one in await self.read(ids)}
        return {doc_id: document for doc_id, document in found.items() if document is not None}

    async def revisions(
        self, wanted: Sequence[tuple[str, str | None]], *, revs: bool = False
    ) -> AsyncIterator[list[Found]]:
        """Yield what CouchDB says of the documents at these revisions (None: the winner), each once.

        An answer that is too large, or that cannot be read, is asked for again in halves, so that memory holds one
        answer at a time. `revs` adds `_revisions`.
        """
        parts = deque(wanted[start : start + _BULK_GET] for start in range(0, len(wanted), _BULK_GET))
        while parts:
            part = parts.popleft()
            asked = [{"id": doc_id} if rev is None else {"id": doc_id, "rev": rev} for doc_id, rev in part]
            try:
                answer = await self.server.request(
                    "POST",
                    f"{self.path}/_bulk_get",
                    params={"revs": True} if revs else None,
                    body=encode({"docs": asked}),
                    max_answer=_BULK_BYTES,
                    has="results",
                )
            except Unreadable as error:
                if len(part) == 1:
                    yield [Found(*part[0], None, reason=str(error), unreadable=True)]
                else:
                    parts.extendleft((part[len(part) // 2 :], part[: len(part) // 2]))
            else:
                yield read_documents(part, answer["results"])

    async def leaves(self, doc_id: str) -> list[Document]:
        """Return the document at each leaf that is not deleted, the winner first; nothing where there is none.

        Raises:
            Unavailable: CouchDB does not say.
        """
        if _PLAIN_ID.match(doc_id):  # all copies of a cluster are asked for the leaves that they know
            path = f"{self.path}/{quote(doc_id, safe='')}"
            try:
                answers = await self.server.request("GET", path, params={"open_revs": "all"}, has=list)
            except NotFound:
                return [document for document in [await self.find(doc_id)] if document is not None]
            leaves = [one["ok"] for one in answers if isinstance(one, dict) and isinstance(one.get("ok"), dict)]
            return sorted((leaf for leaf in leaves if not leaf.get("_deleted")), key=leaf_rank, reverse=True)
        params = {"include_docs": True, "conflicts": True}
        answer = await self.server.request(
            "POST", f"{self.path}/_all_docs", params=params, body=encode({"keys": [doc_id]}), has="rows"
        )
        winner = answer["rows"][0].get("doc") if answer["rows"] else None
        if not isinstance(winner, dict):
            return [document for document in [await self.find(doc_id)] if document is not None]
        found = [winner]
        async for part in self.revisions([(doc_id, rev) for rev in winner.pop("_conflicts", [])]):
            for one in part:
                if one.document is not None:
                    found.append(one.document)
                elif not one.absent:
                    raise Unavailable(f"{doc_id} at {one.rev} in database {self.name}: {one.reason}")
        return found

    async def missing_revisions(self, wanted: Collection[Witness]) -> list[Witness]:
        """Return which of these revisions the database has never had, deleted and compacted ones included."""
        by_id: dict[str, list[str]] = {}
        for one in wanted:
            by_id.setdefault(one.doc_id, []).append(one.rev)
        if not by_id:
            return []
        answer = await self.server.request("POST", f"{self.path}/_revs_diff", body=encode(by_id), has=dict)
        missing = {
            (doc_id, rev)
            for doc_id, part in answer.items()
            if isinstance(part, dict) and isinstance(part.get("missing"), list)
            for rev in part["missing"]
        }
        return [one for one in wanted if (one.doc_id, one.rev) in missing]

    async def raw(self, doc_id: str) -> tuple[str, bytes]:
        """Return the winning revision of a document that cannot be read, and the answer that holds it, as bytes.

        Raises:
            NotFound: it does not exist, or the database does not.
        """
        answer = await self.server.request(
            "POST", f"{self.path}/_all_docs", body=encode({"keys": [doc_id]}), has="rows"
        )
        row = answer["rows"][0] if answer["rows"] else {}
        rev = (row.get("value") or {}).get("rev")
        if not isinstance(rev, str) or row["value"].get("deleted"):
            raise NotFound(f"{doc_id} in database {self.name}: {row}", 404)
        body = encode({"docs": [{"id": doc_id, "rev": rev}]})
        return rev, await self.server.request_bytes("POST", f"{self.path}/_bulk_get", body=body)

    async def put(self, doc: Document, *, silence_s: float | None = None) -> str:
        """Store one document and return its new revision.

        `silence_s`: seconds that the answer may take, for a write that must not queue behind other requests; None: it
        may queue, and take as long as they may.

        Raises:
            Conflict: `_rev` is not the revision that is there.
            Refused: CouchDB never takes this document.
            Unavailable: CouchDB does not say; it may be stored or not.
        """
        body = encode({"docs": [doc]})
        rows = await self.server.request("POST", f"{self.path}/_bulk_docs", body=body, silence_s=silence_s, has=list)
        row = rows[0] if rows and ("_id" not in doc or _id_of(rows[0]) == doc["_id"]) else None
        answer = read_write_row(row)
        if not answer.stored:
            raise as_error(answer, f"{doc.get('_id')} in database {self.name}")
        return answer.rev

    async def delete(self, doc_id: str, rev: str) -> None:
        """Delete the document.

        Raises:
            Conflict: `rev` is not the revision that is there, or nothing is.
        """
        await self.put({"_id": doc_id, "_rev": rev, "_deleted": True})

    async def all_revisions(self) -> dict[str, str]:
        """Return the winning revision of each document but design documents, by id."""
        found: dict[str, str] = {}
        async for rows in self._all_rows(10_000):
            found |= {row["id"]: row["value"]["rev"] for row in rows}
        return found

    async def security(self) -> dict[str, Any]:
        """Return the security object: who may read and write."""
        found: dict[str, Any] = await self.server.request("GET", f"{self.path}/_security", has=dict)
        return found

    async def set_security(self, security: dict[str, Any]) -> None:
        """Store the security object."""
        await self.server.request("PUT", f"{self.path}/_security", body=encode(security))

    async def all_docs(self, page: int = 500) -> AsyncIterator[list[Document]]:
        """Yield all documents but design documents, in pages, ordered by id."""
        async for rows in self._all_rows(page):
            ids = [row["id"] for row in rows]
            found = await self.get_many(ids)
            if found:
                yield [found[doc_id] for doc_id in ids if doc_id in found]

    async def all_found(self, page: int = 500) -> AsyncIterator[list[Found]]:
        """Yield what CouchDB says of all documents but design documents, in pages, ordered by id."""
        async for rows in self._all_rows(page):
            yield await self.read(row["id"] for row in rows)

    async def _all_rows(self, page: int) -> AsyncIterator[list[Row]]:
        """Yield all rows but those of design documents, in pages: in smaller ones where ids are very long."""
        start: str | None = None
        size = page
        while True:
            params: dict[str, Any] = {"limit": size + 1}
            if start is not None:
                params["startkey"] = start
            try:
                rows = await self._rows(f"{self.path}/_all_docs", params)
            except Unreadable:
                if size == 1:
                    raise
                size = max(1, size // 4)
                continue
            yield [row for row in rows[:size] if not row["id"].startswith("_design/")]
            if len(rows) <= size:
                return
            start, size = rows[size]["id"], min(page, size * 2)

    async def newest(self, last_id: str, most: int) -> AsyncIterator[list[Document]]:
        """Yield the `most` documents whose ids come last before `last_id`, this one included, in pages."""
        params = {"startkey": last_id, "descending": True, "limit": most}
        rows = (await self.server.request("GET", f"{self.path}/_all_docs", params=params, has="rows"))["rows"]
        async for part in self.revisions([(row["id"], None) for row in rows]):
            yield [document for one in part if (document := one.known(self.name)) is not None]

    async def with_prefix(self, prefix: str) -> list[Document]:
        """Return all documents whose ids begin so, ordered by id; one that cannot be read is left out."""
        found: list[Document] = []
        async for revisions in self.revisions_with_prefix(prefix):
            documents = await self.get_many(revisions)
            found += [documents[doc_id] for doc_id in revisions if doc_id in documents]
        return found

    async def revisions_with_prefix(self, prefix: str) -> AsyncIterator[dict[str, str]]:
        """Yield the revisions of all documents whose ids begin so, by id and in their order, a page at a time."""
        start: str | None = prefix
        while start is not None:
            params = {"startkey": start, "endkey": prefix + "\ufff0", "limit": _PREFIX_PAGE + 1}
            rows = await self._rows(f"{self.path}/_all_docs", params)
            yield {row["id"]: row["value"]["rev"] for row in rows[:_PREFIX_PAGE]}
            start = rows[_PREFIX_PAGE]["id"] if len(rows) > _PREFIX_PAGE else None

    async def view_pages(
        self,
        view: str,
        startkey: Any,
        endkey: Any,
        *,
        page: int = 500,
        descending: bool = False,
        update: Update = "true",
        docid: str | None = None,
        stable: bool = False,
    ) -> AsyncIterator[list[Row]]:
        """Yield the rows of a view between two keys, both included, in pages that begin where the last one ended.

        Args:
            view: `ddoc/view`.
            startkey: the first key in the order of reading (the highest one where `descending`).
            endkey: the last.
            page: rows in a page.
            descending: read from the end.
            update: `false` reads the index as it is; needs Apache CouchDB, others may update it all the same.
            docid: of the rows with the first key, the one of this document comes first.
            stable: ask the same copies of a cluster as all who say so: each copy has an index of its own.
        """
        while True:
            rows = await self.view(
                view,
                startkey,
                endkey,
                limit=page + 1,
                descending=descending,
                update=update,
                startkey_docid=docid,
                stable=stable,
            )
            if rows:
                yield rows[:page]
            if len(rows) <= page:
                return
            startkey, docid = rows[page]["key"], rows[page]["id"]

    async def view(
        self,
        view: str,
        startkey: Any,
        endkey: Any,
        *,
        limit: int,
        descending: bool = False,
        update: Update = "true",
        startkey_docid: str | None = None,
        skip: int = 0,
        stable: bool = False,
    ) -> list[Row]:
        """Return at most `limit` rows of a view between two keys, both included, but for the first `skip`."""
        params: dict[str, Any] = {
            "startkey": startkey,
            "endkey": endkey,
            "limit": limit,
            "reduce": False,
            "update": update,
        }
        if descending:
            params["descending"] = True
        if startkey_docid is not None:
            params["startkey_docid"] = startkey_docid
        if skip:
            params["skip"] = skip
        if stable:
            params["stable"] = True
        return await self._rows(self._view_path(view), params)

    async def _rows(self, path: str, params: dict[str, Any]) -> list[Row]:
        """Return the rows of a view; keys that are too long for a path go into a body."""
        if len(quote(encode(params))) <= _LONGEST_QUERY:
            answer = await self.server.request("GET", path, params=params, has="rows")
        else:
            body = encode({"queries": [params]})
            answers = await self.server.request("POST", f"{path}/queries", body=body, has="results")
            answer = answers["results"][0] if answers["results"] else {}
        rows = answer.get("rows") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise Unavailable(f"{path}: {str(answer)[:200]} has no rows")
        return rows

    async def reduced(
        self,
        view: str,
        startkey: Any,
        endkey: Any,
        *,
        group_level: int | None = None,
        update: Update = "true",
        stable: bool = False,
    ) -> list[Row]:
        """Return the reduced rows of a view between two keys: one without key, or one for each group."""
        params: dict[str, Any] = {"startkey": startkey, "endkey": endkey, "reduce": True, "update": update}
        if group_level is not None:
            params["group_level"] = group_level
        if stable:
            params["stable"] = True
        answer = await self.server.request("GET", self._view_path(view), params=params, has="rows")
        rows: list[Row] = answer["rows"]
        return rows

    def _view_path(self, view: str) -> str:
        ddoc, name = view.split("/")
        present = self.server.design_documents.get((self.name, f"_design/{ddoc}"), f"_design/{ddoc}")
        return f"{self.path}/{present}/_view/{name}"
