"""Databases in memory, for workers under test: what `ctx.couch` is in the memory broker."""

from __future__ import annotations

from base64 import b64decode
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from couchjobs.couch.codec import decode, encode
from couchjobs.couch.database import Document, generation
from couchjobs.couch.documents import Change, Data, change_until_stored, check_names, check_numbers
from couchjobs.errors import BadDocumentError, BadRequest, Conflict, NotFound
from couchjobs.triggers.mango import compile_selector

_PIECE = 65_536
_SPECIAL = {"_id", "_rev", "_deleted", "_attachments", "_conflicts", "_deleted_conflicts", "_revisions", "_revs_info"}
Changed = Callable[[str, Document, Document | None], Awaitable[None]]


class MemCouch:
    """Databases by doctype; each is there once it is named. `changed` is told of each change, with the one before."""

    def __init__(self) -> None:
        self.changed: Changed | None = None
        self._databases: defaultdict[str, MemDocuments] = defaultdict(lambda: MemDocuments(self))

    def __getitem__(self, doctype: str) -> MemDocuments:
        database = self._databases[doctype]
        database.doctype = doctype
        return database


class MemDocuments:
    """The documents of one database in memory."""

    def __init__(self, couch: MemCouch) -> None:
        self.doctype = ""
        self._couch = couch
        self._documents: dict[str, Document] = {}
        self._attachments: dict[tuple[str, str], bytes] = {}

    async def get(self, doc_id: str) -> Document:
        """Return the document."""
        found = await self.find(doc_id)
        if found is None:
            raise NotFound(f"{doc_id} in database {self.doctype}: there is no such document", 404)
        return found

    async def find(self, doc_id: str) -> Document | None:
        """Return the document, None where there is none."""
        return self._copy(self._documents[doc_id]) if doc_id in self._documents else None

    async def put(self, doc: Document) -> Document:
        """Store a document."""
        if not isinstance(doc.get("_id"), str):
            raise BadDocumentError(f"{doc.get('_id')!r} is no id of a document")
        check_names(doc["_id"], "-")
        check_numbers(doc)
        if odd := sorted(name for name in doc if name.startswith("_") and name not in _SPECIAL):
            raise BadRequest(f"doc_validation: Bad special document member: {odd[0]}", 400)
        before = self._documents.get(doc["_id"])
        if (before or {}).get("_rev") != doc.get("_rev"):
            raise Conflict(f"{doc['_id']} in database {self.doctype}: conflict: Document update conflict.", 409)
        number = generation(before["_rev"]) + 1 if before is not None else 1
        stored = {**self._copy(doc), "_rev": f"{number}-{number:032x}"}
        if stored.get("_deleted"):
            self._documents.pop(doc["_id"], None)
            for key in [key for key in self._attachments if key[0] == doc["_id"]]:
                del self._attachments[key]
        else:
            self._keep_attachments(stored)
            self._documents[doc["_id"]] = stored
        if self._couch.changed is not None:
            await self._couch.changed(self.doctype, self._copy(stored), before)
        return self._copy(stored)

    def _keep_attachments(self, stored: Document) -> None:
        """Keep those that the document has: those that come with it, and of those that were there, what it names."""
        names: dict[str, Any] = stored.get("_attachments") or {}
        for name, one in names.items():
            if "data" in one:
                data = self._attachments[stored["_id"], name] = b64decode(one["data"])
                kind = one.get("content_type", "application/octet-stream")
                names[name] = {"content_type": kind, "length": len(data), "stub": True}
            elif (stored["_id"], name) not in self._attachments:
                raise BadRequest(f"missing_stub: {stored['_id']} has no attachment {name}", 412)
        for key in [key for key in self._attachments if key[0] == stored["_id"] and key[1] not in names]:
            del self._attachments[key]

    async def update(self, doc_id: str, change: Change, *, create: bool = True) -> Document:
        """Change a document as it is now."""
        return await change_until_stored(self, doc_id, change, create=create)

    async def delete(self, doc_id: str) -> None:
        """Delete the document."""
        present = await self.find(doc_id)
        if present is not None:
            await self.put({"_id": doc_id, "_rev": present["_rev"], "_deleted": True})

    async def query(self, selector: Document, limit: int = 200) -> list[Document]:
        """Return the documents that a Mango selector matches."""
        if limit < 0:
            raise BadRequest(f"query: limit must not be negative, and is {limit}", 400)
        matches = compile_selector(selector)
        return [self._copy(one) for _, one in sorted(self._documents.items()) if matches(one)][:limit]

    async def attachment(self, doc_id: str, name: str) -> bytes:
        """Return an attachment."""
        if (doc_id, name) not in self._attachments:
            raise NotFound(f"{doc_id} in database {self.doctype}: there is no attachment {name}", 404)
        return self._attachments[doc_id, name]

    async def stream(self, doc_id: str, name: str) -> AsyncIterator[bytes]:
        """Yield an attachment in pieces."""
        data = await self.attachment(doc_id, name)
        for at in range(0, len(data), _PIECE):
            yield data[at : at + _PIECE]

    async def attach(self, doc_id: str, name: str, data: Data, content_type: str) -> Document:
        """Write an attachment of a document."""
        check_names(doc_id, name)
        data = data if isinstance(data, bytes) else b"".join([piece async for piece in data])
        present = await self.get(doc_id)
        self._attachments[doc_id, name] = data
        stub = {"content_type": content_type, "length": len(data), "stub": True}
        return await self.put({**present, "_attachments": {**present.get("_attachments", {}), name: stub}})

    @staticmethod
    def _copy(doc: Document) -> Document:
        copied: Document = decode(encode(doc))
        return copied
