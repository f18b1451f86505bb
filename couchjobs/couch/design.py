"""Databases and design documents, created and updated only where they differ.

A changed view is built under another name before the old one is replaced, so that readers never wait for it: an
index belongs to the text of the views, not to the name of the design document. Two processes may do all this at
once, of two versions too: a document says its version, and an older one never replaces a newer. Where a newer one has
other views than a process needs, that process keeps its own beside it, under its version's name (`_design/queue-v2`),
and reads from there. Source: CouchDB docs, best-practices/views and api/ddoc.
"""

from __future__ import annotations

import asyncio
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from couchjobs.couch.database import Database, Document
from couchjobs.errors import Conflict, Forbidden, NotFound, Unavailable
from couchjobs.log import get_logger

_logger = get_logger(__name__)
_STAGED = "-next"
_OF_VERSION = "-v"
_VALIDATES = "validate_doc_update"
_VERSION = "couchjobs_version"


def read_design_document(name: str, version: int) -> Document:
    """Return the design document `name` that is shipped with couchjobs: one file a view, `reduce` in its first line.

    A view file may begin with `// reduce: _count`; `validate_doc_update.js` is no view. The id is `_design/<name>`.
    """
    folder = files("couchjobs.design_docs") / name
    sources = {file.name.removesuffix(".js"): file for file in _sorted(folder) if file.name.endswith(".js")}
    document: Document = {"_id": f"_design/{name}", "language": "javascript", _VERSION: version}
    if _VALIDATES in sources:
        document[_VALIDATES] = _without_comment(sources.pop(_VALIDATES).read_text(encoding="utf-8"))
    if sources:
        document["views"] = {view: _read_view(file) for view, file in sources.items()}
    return document


def _without_comment(text: str) -> str:
    """Return the function alone: CouchDB compiles the text as one expression."""
    return text[text.index("function") :].strip()


def _sorted(folder: Traversable) -> list[Traversable]:
    return sorted(folder.iterdir(), key=lambda file: file.name)


def _read_view(file: Traversable) -> dict[str, str]:
    text = file.read_text(encoding="utf-8").strip()
    first = text.splitlines()[0]
    view = {"map": text}
    if first.startswith("// reduce: "):
        view = {"map": text.removeprefix(first).strip(), "reduce": first.removeprefix("// reduce: ").strip()}
    return view


async def install_design_document(database: Database, wanted: Document) -> bool:
    """Make the database hold this design document; return whether anything had to be changed.

    Raises:
        Forbidden: only an administrator of the database may.
    """
    changed = False
    while True:
        present = await _find(database, wanted["_id"])
        if present is not None and _version_of(present) > wanted[_VERSION]:
            await _keep_beside(database, wanted, present)
            return changed
        database.server.design_documents.pop((database.name, wanted["_id"]), None)
        if present is not None and _same(present, wanted):
            return changed
        try:
            if present is None:
                await database.put(wanted)
            else:
                await _build_aside(database, wanted)
                await database.put({**wanted, "_rev": present["_rev"]})
                await _drop(database, wanted["_id"] + _STAGED)
        except Conflict:
            await asyncio.sleep(0.05)
            continue
        changed = True


async def _keep_beside(database: Database, wanted: Document, newer: Document) -> None:
    """Have this process read from a design document of its own where the newer one lacks its views, or has others."""
    key, views = (database.name, wanted["_id"]), wanted.get("views", {})
    present = newer.get("views")
    if isinstance(present, dict) and all(present.get(name) == view for name, view in views.items()):
        database.server.design_documents.pop(key, None)
        return
    own = {**wanted, "_id": f"{wanted['_id']}{_OF_VERSION}{wanted[_VERSION]}"}
    found = await _find(database, own["_id"])
    if found is None or not _same(found, own):
        try:
            await database.put(own if found is None else {**own, "_rev": found["_rev"]})
        except Conflict:
            _logger.debug("another daemon of this version keeps its views as well", name=own["_id"])
        except Forbidden as error:
            _logger.error("a newer version of couchjobs has changed views: upgrade this one", reason=str(error))  # noqa: TRY400
            return
        _logger.warning("a newer version of couchjobs has changed views: those of this one are kept", name=own["_id"])
    database.server.design_documents[key] = own["_id"]


async def outdated(database: Database, wanted: Document) -> list[Document]:
    """Return the design documents that older versions have kept beside a newer one, the present one being `wanted`."""
    prefix = wanted["_id"] + _OF_VERSION
    return [one for one in await database.with_prefix(prefix) if _version_of(one) < wanted[_VERSION]]


async def is_installed(database: Database, wanted: Document) -> bool:
    """Return whether the database holds this design document, as it is or in a newer version."""
    present = await _find(database, wanted["_id"])
    return present is not None and (_same(present, wanted) or _version_of(present) > wanted[_VERSION])


def _version_of(document: Document) -> int:
    version = document.get(_VERSION)
    return version if isinstance(version, int) else 0


def _same(present: Document, wanted: Document) -> bool:
    return {key: value for key, value in present.items() if key != "_rev"} == wanted


async def _find(database: Database, doc_id: str) -> Document | None:
    return await database.find(doc_id)


async def _build_aside(database: Database, wanted: Document) -> None:
    staged_id = wanted["_id"] + _STAGED
    present = await _find(database, staged_id)
    staged: dict[str, Any] = {**wanted, "_id": staged_id}
    if present is not None:
        staged["_rev"] = present["_rev"]
    await database.put(staged)
    for name in wanted.get("views", {}):
        while True:
            try:
                await database.view(f"{staged_id.removeprefix('_design/')}/{name}", None, None, limit=1)
            except (Unavailable, NotFound):  # the index takes longer than a request may, or has not reached this node
                if await _find(database, staged_id) is None:  # another process has finished the same
                    return
                await asyncio.sleep(0.2)
            else:
                break


async def _drop(database: Database, doc_id: str) -> None:
    present = await _find(database, doc_id)
    if present is None:
        return
    try:
        await database.delete(doc_id, present["_rev"])
    except Conflict:
        return


async def unindexed(database: Database, design_id: str) -> int | None:
    """Return how many changes the views of a design document have not seen; None where the server does not say."""
    info = await database.server.request("GET", f"{database.path}/{design_id}/_info")
    for name in ("view_index", "updates_pending", "total"):
        info = info.get(name) if isinstance(info, dict) else None
    return info if isinstance(info, int) else None
