"""One database: documents by id, many at once, views page by page."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Literal
from urllib.parse import quote

import orjson

from couchjobs.couch.client import CouchServer
from couchjobs.errors import NotFound, TooLarge, Unreadable
from couchjobs.log import get_logger

Document = dict[str, Any]
"""A document as JSON has it, `_id` and `_rev` included."""
Row = dict[str, Any]
"""A row of a view: `id`, `key`, `value`."""

Update = Literal["true", "false", "lazy"]
"""Whether reading a view waits for its index: yes; no, it stays as it is; no, but it is brought up to date then."""

_logger = get_logger(__name__)
_BULK_GET = 500
_BULK_BYTES = 16 * 1024 * 1024


def generation(rev: str) -> int:
    """Return the generation of a revision: how many changes led to it."""
    return int(rev.partition("-")[0])


def sequence_number(seq: str) -> int:
    """Return the number that a sequence begins with: how many changes came before, roughly; 0 where there is none."""
    number = seq.partition("-")[0]
    return int(number) if number.isdecimal() else 0


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
        found: dict[str, Any] = await self.server.request("GET", self.path)
        return found

    async def exists(self) -> bool:
        """Return whether there is such a database."""
        try:
            await self.info()
        except NotFound:
            return False
        return True

    async def get(
        self, doc_id: str, *, rev: str | None = None, conflicts: bool = False, revs: bool = False
    ) -> Document:
        """Return the document, at the winning revision unless `rev` says another; `revs` adds `_revisions`.

        Raises:
            NotFound: it does not exist, is deleted, or that revision is gone.
        """
        params: dict[str, Any] = {}
        if rev is not None:
            params["rev"] = rev
        if conflicts:
            params["conflicts"] = True
        if revs:
            params["revs"] = True
        found: Document = await self.server.request("GET", self._path_of(doc_id), params=params)
        return found

    async def find(self, doc_id: str) -> Document | None:
        """Return the document, or None where there is none. A missing database is still a NotFound."""
        try:
            return await self.get(doc_id)
        except NotFound:
            await self.info()
            return None

    async def leaves(self, doc_id: str) -> list[Document]:
        """Return the document at each of its leaves, conflicting and deleted ones included."""
        answers = await self.server.request("GET", self._path_of(doc_id), params={"open_revs": "all"})
        return [answer["ok"] for answer in answers if "ok" in answer]

    async def put(self, doc: Document) -> str:
        """Store one document and return its new revision.

        Raises:
            Conflict: `_rev` is not the revision that is there.
        """
        answer = await self.server.request("PUT", self._path_of(doc["_id"]), body=orjson.dumps(doc))
        rev: str = answer["rev"]
        return rev

    async def delete(self, doc_id: str, rev: str) -> None:
        """Delete the document.

        Raises:
            Conflict: `rev` is not the revision that is there.
        """
        await self.server.request("DELETE", self._path_of(doc_id), params={"rev": rev})

    async def get_many(self, ids: Iterable[str]) -> dict[str, Document]:
        """Return the documents with these ids that exist and are not deleted, by id."""
        docs = await self.get_revisions([(doc_id, None) for doc_id in ids])
        return {doc["_id"]: doc for doc in docs if not doc.get("_deleted")}

    async def get_revisions(self, wanted: Sequence[tuple[str, str | None]], *, revs: bool = False) -> list[Document]:
        """Return the documents that `revisions` yields, all of them; meant for small ones."""
        return [doc async for docs in self.revisions(wanted, revs=revs) for doc in docs]

    async def revisions(
        self, wanted: Sequence[tuple[str, str | None]], *, revs: bool = False
    ) -> AsyncIterator[list[Document]]:
        """Yield the documents at these revisions (None: the winner), deleted ones too, in no particular order.

        One that does not exist, or whose revision was compacted away, is left out. An answer that is too large, or that
        cannot be read, is asked for again in halves, so that memory holds one answer at a time; a document that alone
        is either is logged and left out. `revs` adds `_revisions`.
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
                    body=orjson.dumps({"docs": asked}),
                    max_answer=_BULK_BYTES,
                )
            except (TooLarge, Unreadable) as error:
                if len(part) == 1:
                    _logger.warning("document left out", database=self.name, document=part[0][0], reason=str(error))
                else:
                    parts.extendleft((part[len(part) // 2 :], part[: len(part) // 2]))
            else:
                yield [found["ok"] for result in answer["results"] for found in result["docs"] if "ok" in found]

    async def all_revisions(self) -> dict[str, str]:
        """Return the winning revision of each document but design documents, by id."""
        found: dict[str, str] = {}
        async for rows in self._all_rows(10_000):
            found |= {row["id"]: row["value"]["rev"] for row in rows}
        return found

    async def security(self) -> dict[str, Any]:
        """Return the security object: who may read and write."""
        found: dict[str, Any] = await self.server.request("GET", f"{self.path}/_security")
        return found

    async def set_security(self, security: dict[str, Any]) -> None:
        """Store the security object."""
        await self.server.request("PUT", f"{self.path}/_security", body=orjson.dumps(security))

    async def all_docs(self, page: int = 500) -> AsyncIterator[list[Document]]:
        """Yield all documents but design documents, in pages, ordered by id."""
        async for rows in self._all_rows(page):
            ids = [row["id"] for row in rows]
            found = await self.get_many(ids)
            if found:
                yield [found[doc_id] for doc_id in ids if doc_id in found]

    async def _all_rows(self, page: int) -> AsyncIterator[list[Row]]:
        start: str | None = None
        while True:
            params: dict[str, Any] = {"limit": page + 1}
            if start is not None:
                params["startkey"] = start
            rows = (await self.server.request("GET", f"{self.path}/_all_docs", params=params))["rows"]
            yield [row for row in rows[:page] if not row["id"].startswith("_design/")]
            if len(rows) <= page:
                return
            start = rows[page]["id"]

    async def newest(self, last_id: str, most: int) -> AsyncIterator[list[Document]]:
        """Yield the `most` documents whose ids come last before `last_id`, this one included, in pages."""
        params = {"startkey": last_id, "descending": True, "limit": most}
        rows = (await self.server.request("GET", f"{self.path}/_all_docs", params=params))["rows"]
        async for documents in self.revisions([(row["id"], None) for row in rows]):
            yield documents

    async def with_prefix(self, prefix: str) -> list[Document]:
        """Return all documents whose ids begin so, ordered by id; meant for few."""
        params = {"startkey": prefix, "endkey": prefix + "\ufff0", "include_docs": True}
        answer = await self.server.request("GET", f"{self.path}/_all_docs", params=params)
        return [row["doc"] for row in answer["rows"] if row.get("doc")]

    async def view_pages(
        self,
        view: str,
        startkey: Any,
        endkey: Any,
        *,
        page: int = 500,
        descending: bool = False,
        update: Update = "true",
    ) -> AsyncIterator[list[Row]]:
        """Yield the rows of a view between two keys, both included, in pages that begin where the last one ended.

        Args:
            view: `ddoc/view`.
            startkey: the first key in the order of reading (the highest one where `descending`).
            endkey: the last.
            page: rows in a page.
            descending: read from the end.
            update: `false` reads the index as it is; needs Apache CouchDB, others may update it all the same.
        """
        docid: str | None = None
        while True:
            rows = await self.view(
                view, startkey, endkey, limit=page + 1, descending=descending, update=update, startkey_docid=docid
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
    ) -> list[Row]:
        """Return at most `limit` rows of a view between two keys, both included."""
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
        answer = await self.server.request("GET", self._view_path(view), params=params)
        rows: list[Row] = answer["rows"]
        return rows

    async def reduced(self, view: str, startkey: Any, endkey: Any, *, group_level: int | None = None) -> list[Row]:
        """Return the reduced rows of a view between two keys: one without key, or one for each group."""
        params: dict[str, Any] = {"startkey": startkey, "endkey": endkey, "reduce": True}
        if group_level is not None:
            params["group_level"] = group_level
        answer = await self.server.request("GET", self._view_path(view), params=params)
        rows: list[Row] = answer["rows"]
        return rows

    def _view_path(self, view: str) -> str:
        ddoc, name = view.split("/")
        return f"{self.path}/_design/{ddoc}/_view/{name}"

    def _path_of(self, doc_id: str) -> str:
        for kind in ("_design/", "_local/"):
            if doc_id.startswith(kind):
                return f"{self.path}/{kind}{quote(doc_id.removeprefix(kind), safe='')}"
        return f"{self.path}/{quote(doc_id, safe='')}"
