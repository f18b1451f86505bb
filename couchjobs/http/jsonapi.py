"""JSON:API: what bodies look like, and how errors are told. Source: jsonapi.org/format/1.1."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from couchjobs import errors
from couchjobs.couch.codec import decode, encode
from couchjobs.couch.database import Document
from couchjobs.jobs.values import to_json
from couchjobs.log import get_logger
from couchjobs.reasons import reasons

_TRIGGER = re.compile(r"/(?:webhooks|triggers)/([^/]+)")
"""Where a path names a trigger; it may begin with a tenant."""

_logger = get_logger(__name__)
MEDIA_TYPE = "application/vnd.api+json"
_TAKEN = (MEDIA_TYPE, "application/json")
_HIDDEN = ("_id", "_rev", "admin_proof", "claim", "ending")
_BODY_S = 30.0
"""Seconds within which a body must have come, beyond those that its bytes take on a bad line."""
_SLOWEST = 16_384
"""Bytes a second of such a line."""
_LONGEST_BODY_S = 300.0
_STATUS: dict[type[BaseException], int] = {
    errors.JobNotFoundError: 404,
    errors.TriggerNotFoundError: 404,
    errors.Conflict: 409,
    errors.AdminOnlyError: 403,
    errors.Forbidden: 403,
    errors.TooLarge: 413,
    errors.Unavailable: 503,
    errors.Unauthorized: 503,
    errors.NotFound: 503,
    errors.BadDocumentError: 422,
    errors.HookError: 422,
    errors.MalformedTriggerError: 400,
    errors.UnknownTriggerError: 422,
    errors.UnknownWorkerError: 404,
    errors.ConfigurationError: 400,
}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, detail: str, source: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.source = source


class Body(BaseModel):
    """The attributes of a request; unknown ones are refused, by name."""

    model_config = ConfigDict(extra="forbid")


B = TypeVar("B", bound=Body)
T = TypeVar("T")


def answer(data: Any, status: int = 200, **more: Any) -> web.Response:
    """Return an answer with this primary data; `more`: `meta`, `links`."""
    return web.Response(body=encode({"data": data, **more}), status=status, content_type=MEDIA_TYPE)


def resource(kind: str, document: Document, path: str, **more: Any) -> dict[str, Any]:
    """Return the resource that a document is; `more`: attributes beside its fields."""
    attributes = {name: value for name, value in document.items() if name not in _HIDDEN and name[:1] != "_"}
    return {
        "type": kind,
        "id": document["_id"],
        "attributes": attributes | more,
        "links": {"self": f"{path}/{quote(document['_id'], safe='')}"},
        "meta": {"rev": document.get("_rev", "")},
    }


async def in_time(request: web.Request, reading: Awaitable[T]) -> T:
    """Return what the body of a request is, as soon as all of it has come.

    Raises:
        ApiError: 408: it does not.
    """
    seconds = round(min(_LONGEST_BODY_S, _BODY_S + (request.content_length or 0) / _SLOWEST), 1)
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {seconds:g} s") from None


async def attributes_of(request: web.Request) -> dict[str, Any]:
    """Return the attributes that a request carries.

    Raises:
        ApiError: 415 for another media type, 400 for what is no JSON:API document.
    """
    if request.content_type not in _TAKEN:
        raise ApiError(415, f"the body is {request.content_type}: send {MEDIA_TYPE}")
    try:
        found = decode(await in_time(request, request.read()))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    data = found.get("data") if isinstance(found, dict) else None
    attributes = data.get("attributes") if isinstance(data, dict) else None
    if not isinstance(attributes, dict):
        raise ApiError(400, 'the body is no JSON:API document: {"data": {"attributes": {...}}}', {"pointer": "/data"})
    try:
        to_json(attributes, "attributes")
    except errors.MessageUnmarshalError as error:  # 1e400 is none that CouchDB has
        raise ApiError(422, str(error), {"pointer": "/data/attributes"}) from None
    return attributes


def read_body(model: type[B], attributes: Mapping[str, Any]) -> B:
    """Return the attributes as that model.

    Raises:
        ApiError: 422: they are none; the detail says why.
    """
    try:
        return model.model_validate(attributes)
    except ValidationError as error:
        where = "/".join(str(part) for part in error.errors()[0]["loc"])
        raise ApiError(422, reasons(error), {"pointer": f"/data/attributes/{where}"}) from None


def refuse_parameter(name: str, detail: str) -> NoReturn:
    """Refuse a request for one of its parameters.

    Raises:
        ApiError: 400.
    """
    raise ApiError(400, f"{name}: {detail}", {"parameter": name})


@web.middleware
async def tell_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer errors as JSON:API has them; of what nobody foresaw the log has the rest."""
    try:
        return await handler(request)
    except ApiError as error:
        return _error(error.status, error.detail, error.source)
    except web.RequestPayloadError as error:
        return _error(400, f"the body cannot be read: {type(error).__name__}")
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return _error(error.status, error.reason, headers=error.headers)
    except errors.CouchjobsError as error:
        return _error(*told(error, request))
    except Exception:
        _logger.exception("a request fails", method=request.method, path=without_secret(request, request.path))
        return _error(500, "this is a fault of couchjobs; its log says more")


def without_secret(request: web.Request, text: str) -> str:
    """Return a text without the id of the trigger that is asked for: who knows that of a webhook may fire it."""
    found = _TRIGGER.search(request.path)
    secret = found[1] if found else ""
    for one in {secret, quote(secret, safe="")} - {""}:
        text = text.replace(one, f"{one[:4]}...")
    return text


def told(error: ApiError | errors.CouchjobsError, request: web.Request) -> tuple[int, str]:
    """Return the status of an error, and what a caller is told of it; of CouchDB's the log has the rest."""
    if isinstance(error, ApiError):
        return error.status, error.detail
    if isinstance(error, errors.NotFound):
        return 503, str(error)
    status = next((_STATUS[one] for one in type(error).__mro__ if one in _STATUS), 500)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        path, reason = (without_secret(request, text) for text in (request.path, str(error)))
        _logger.warning("a request fails for CouchDB", path=path, reason=reason)
        return status, "CouchDB does not answer now, or not to this server"
    return status, str(error)


def _error(
    status: int, detail: str, source: dict[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    error: dict[str, Any] = {"status": str(status), "title": HTTPStatus(status).phrase, "detail": detail}
    if source:
        error["source"] = source
    kept = {name: value for name, value in (headers or {}).items() if name in ("Allow", "Retry-After")}
    return web.Response(body=encode({"errors": [error]}), status=status, content_type=MEDIA_TYPE, headers=kept)
