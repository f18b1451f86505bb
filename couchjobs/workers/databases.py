"""The databases of a tenant, as `ctx.couch` and `ctx.sync_couch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from couchjobs.couch.database import Document
from couchjobs.couch.documents import Change, Documents
from couchjobs.errors import ConfigurationError
from couchjobs.prefixer import Prefixer
from couchjobs.workers.progress import Engine

T = TypeVar("T")
FromThread = Callable[[Coroutine[Any, Any, Any]], Any]


class Databases:
    """Databases by doctype."""

    def __init__(self, engine: Engine | None, db: Prefixer) -> None:
        self._engine = engine
        self._db = db

    def __getitem__(self, doctype: str) -> Documents:
        if self._engine is None:
            raise ConfigurationError("this context belongs to no try: it has no databases")
        return self._engine.documents(self._db, doctype)


class SyncDatabases:
    """The same for plain functions."""

    def __init__(self, databases: Databases, run: FromThread) -> None:
        self._databases = databases
        self._run = run

    def __getitem__(self, doctype: str) -> SyncDocuments:
        return SyncDocuments(self._databases[doctype], self._run)


class SyncDocuments:
    """One database, as `Documents`, for plain functions."""

    def __init__(self, documents: Documents, run: FromThread) -> None:
        self._documents: Any = documents
        self._run = run

    def get(self, doc_id: str) -> Document:
        """Return the document."""
        found: Document = self._run(self._documents.get(doc_id))
        return found

    def find(self, doc_id: str) -> Document | None:
        """Return the document, None where there is none."""
        found: Document | None = self._run(self._documents.find(doc_id))
        return found

    def put(self, doc: Document) -> Document:
        """Store a document; return it with its new revision."""
        stored: Document = self._run(self._documents.put(doc))
        return stored

    def update(self, doc_id: str, change: Change, *, create: bool = True) -> Document:
        """Change a document as it is now, again where somebody else was faster; return it."""
        stored: Document = self._run(self._documents.update(doc_id, change, create=create))
        return stored

    def delete(self, doc_id: str) -> None:
        """Delete the document, whatever it has become."""
        self._run(self._documents.delete(doc_id))

    def query(self, selector: Document, limit: int = 200) -> list[Document]:
        """Return the documents that a Mango selector matches, at most so many."""
        found: list[Document] = self._run(self._documents.query(selector, limit))
        return found

    def attachment(self, doc_id: str, name: str) -> bytes:
        """Return an attachment."""
        data: bytes = self._run(self._documents.attachment(doc_id, name))
        return data

    def stream(self, doc_id: str, name: str) -> Iterator[bytes]:
        """Yield an attachment of whatever size, in pieces."""
        pieces = self._documents.stream(doc_id, name)
        while True:
            piece = self._run(_next(pieces))
            if piece is None:
                return
            yield piece

    def attach(self, doc_id: str, name: str, data: bytes | Iterable[bytes], content_type: str) -> Document:
        """Write an attachment of a document, of bytes, at once or in pieces; return the document."""
        given = data if isinstance(data, bytes) else _pieces(data)
        stored: Document = self._run(self._documents.attach(doc_id, name, given, content_type))
        return stored


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def _pieces(data: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a plain iterator, each read in a thread: it may wait for a file or a socket."""
    pieces = iter(data)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
