"""The databases of users, as worker functions see them: documents, selectors, attachments."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from math import isfinite
from typing import Any, Protocol
from urllib.parse import quote

from couchjobs.couch.codec import decode, encode
from couchjobs.couch.database import Database, Document
from couchjobs.errors import BadDocumentError, Conflict, CouchError

Change = Callable[[Document], Any]
Data = bytes | AsyncIterable[bytes]


class Documents(Protocol):
    """One database of the tenant: `ctx.couch["orders"]`."""

    async def get(self, doc_id: str) -> Document:
        """Return the document.

        Raises:
            NotFound: there is none, or no such database.
        """

    async def find(self, doc_id: str) -> Document | None:
        """Return the document, None where there is none."""

    async def put(self, doc: Document) -> Document:
        """Store a document with its `_id`, and the `_rev` that it replaces; return it with its new revision.

        Raises:
            Conflict: somebody else has changed it meanwhile: read it again, or use `update`.
        """

    async def update(self, doc_id: str, change: Change, *, create: bool = True) -> Document:
        """Read the document, have `change(doc)` change it, store it, again where somebody else was faster; return it.

        A document that does not exist yet is `{"_id": doc_id}`, and is made, unless `create` is False. Nothing is
        stored where `change` changes nothing.

        Raises:
            NotFound: there is none, and none is to be made.
        """

    async def delete(self, doc_id: str) -> None:
        """Delete the document, whatever it has become; nothing happens where there is none."""

    async def query(self, selector: Document, limit: int = 200) -> list[Document]:
        """Return the documents that a Mango selector matches, at most so many."""

    async def attachment(self, doc_id: str, name: str) -> bytes:
        """Return an attachment, of at most 64 MB.

        Raises:
            NotFound: there is none, or no such document.
        """

    def stream(self, doc_id: str, name: str) -> AsyncIterator[bytes]:
        """Yield an attachment of whatever size, in pieces.

        Raises:
            NotFound: there is none, or no such document.
        """

    async def attach(self, doc_id: str, name: str, data: Data, content_type: str) -> Document:
        """Write an attachment of a document, in the place of one with that name; return the document.

        `data`: bytes, at once, or in pieces of an async iterator.

        Raises:
            NotFound: there is no such document.
            Conflict: it was changed while pieces were sent, which are gone: begin again.
        """


def check_names(doc_id: str, name: str) -> None:
    """Refuse names by which something else would be written.

    Raises:
        BadDocumentError: there is no document, or no attachment, of that name.
    """
    if not doc_id or (doc_id.startswith("_") and not doc_id.startswith("_design/")):
        raise BadDocumentError(f"{doc_id!r} is no id of a document")
    if not name or name.startswith("_"):
        raise BadDocumentError(f"{name!r} is no name of an attachment")


def check_numbers(doc: Document) -> None:
    """Refuse numbers that JSON cannot say: they would be stored as null.

    Raises:
        BadDocumentError: there is one; the text begins with the path to it.
    """
    left: list[tuple[str, Any]] = [("", doc)]
    seen: set[int] = set()
    while left:
        where, value = left.pop()
        if id(value) in seen:
            continue
        if isinstance(value, float) and not isfinite(value):
            raise BadDocumentError(f"{where.removeprefix('.')}: {value} is no JSON")
        if isinstance(value, dict | list | tuple):
            seen.add(id(value))
        if isinstance(value, dict):
            left += [(f"{where}.{name}", one) for name, one in value.items()]
        elif isinstance(value, list | tuple):
            left += [(f"{where}[{number}]", one) for number, one in enumerate(value)]


async def change_until_stored(documents: Documents, doc_id: str, change: Change, *, create: bool = True) -> Document:
    """Do what `Documents.update` says."""
    while True:
        present = await documents.find(doc_id) if create else await documents.get(doc_id)
        present = present or {"_id": doc_id}
        wanted = decode(encode(present))
        change(wanted)
        if encode(wanted) == encode(present):  # as JSON: 1 is not true
            return present
        if any(wanted.get(name) != present.get(name) for name in ("_id", "_rev")):
            raise BadDocumentError(f"update of {doc_id}: the change must leave _id and _rev as they are")
        try:
            return await documents.put(wanted)
        except Conflict:
            continue


class _Watched:
    """Pieces of somebody's, whose error is his, and not that of the request which it ends."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = pieces
        self.error: BaseException | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                if not isinstance(piece, bytes | bytearray | memoryview):
                    raise TypeError(f"pieces of an attachment are bytes, and not {type(piece).__name__}")  # noqa: TRY301
                yield bytes(piece)
        except Exception as error:
            self.error = error
            raise


class CouchDocuments:
    """Those of a database of CouchDB."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, doc_id: str) -> Document:
        """Return the document."""
        return await self._database.get(doc_id)

    async def find(self, doc_id: str) -> Document | None:
        """Return the document, None where there is none."""
        return await self._database.find(doc_id)

    async def put(self, doc: Document) -> Document:
        """Store a document."""
        check_numbers(doc)
        return {**doc, "_rev": await self._database.put(doc)}

    async def update(self, doc_id: str, change: Change, *, create: bool = True) -> Document:
        """Change a document as it is now."""
        return await change_until_stored(self, doc_id, change, create=create)

    async def delete(self, doc_id: str) -> None:
        """Delete the document, whatever it has become."""
        while (present := await self._database.find(doc_id)) is not None:
            try:
                return await self._database.delete(doc_id, present["_rev"])
            except Conflict:
                continue
        return None

    async def query(self, selector: Document, limit: int = 200) -> list[Document]:
        """Return the documents that a Mango selector matches. Source: CouchDB docs, api/database/find."""
        body = encode({"selector": selector, "limit": limit})
        found = await self._database.server.request("POST", f"{self._database.path}/_find", body=body, has="docs")
        documents: list[Document] = found["docs"]
        return documents

    async def attachment(self, doc_id: str, name: str) -> bytes:
        """Return an attachment."""
        return await self._database.server.request_bytes("GET", self._path(doc_id, name), headers={"Accept": "*/*"})

    def stream(self, doc_id: str, name: str) -> AsyncIterator[bytes]:
        """Yield an attachment in pieces."""
        return self._database.server.download(self._path(doc_id, name))

    async def attach(self, doc_id: str, name: str, data: Data, content_type: str) -> Document:
        """Write an attachment of a document. Source: CouchDB docs, api/document/attachments."""
        watched = data if isinstance(data, bytes) else _Watched(data)
        while True:
            present = await self._database.get(doc_id)
            try:
                await self._database.server.request_bytes(
                    "PUT",
                    self._path(doc_id, name),
                    params={"rev": present["_rev"]},
                    body=watched,
                    headers={"Content-Type": content_type},
                )
            except CouchError as error:
                if isinstance(watched, _Watched):
                    if watched.error is not None:
                        raise watched.error from None
                    if error.status == 409:
                        raise Conflict(f"{error}: it was changed while its attachment was sent", 409) from error
                elif error.status == 409:
                    continue
                raise
            return await self._database.get(doc_id)

    def _path(self, doc_id: str, name: str) -> str:
        check_names(doc_id, name)
        beginning = "_design/" if doc_id.startswith("_design/") else ""
        quoted = beginning + quote(doc_id.removeprefix(beginning), safe="")
        return f"{self._database.path}/{quoted}/{quote(name, safe='')}"
