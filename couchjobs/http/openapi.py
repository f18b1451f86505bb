"""`GET /openapi.json`: what the routes take and answer, made from the routes and from the models themselves.

Source: OpenAPI 3.1, spec.openapis.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from couchjobs.couch.codec import encode
from couchjobs.http.jsonapi import MEDIA_TYPE
from couchjobs.http.routes import Parameter, Route
from couchjobs.jobs.job import Job
from couchjobs.triggers.infos import TriggerInfos

_REFUSALS = {
    400: "A parameter, or the body, cannot be read.",
    401: "A token is wanted, or this one is none.",
    403: "The caller may not do this.",
    404: "There is nothing like that.",
    409: "It is not in a state in which this can be.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken.",
    422: "The attributes make no sense; the detail says which.",
    429: "The caller asks too often.",
    503: "CouchDB does not answer now.",
}
_HIDDEN = ("_id", "_rev", "admin_proof", "claim", "ending")
_Schema = dict[str, Any]


def document(routes: Iterable[Route], base: str = "") -> _Schema:
    """Return the description of these routes, whose paths begin with `base`."""
    schemas: _Schema = {"Error": _error(), "Job": _resource(Job, "arguments"), "Trigger": _trigger()}
    paths: _Schema = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "couchjobs",
            "version": version("couchjobs"),
            "description": "Jobs and triggers of one tenant, as JSON:API (jsonapi.org).",
        },
        "servers": [{"url": base or "/"}],
        "security": [{"token": []}, {"user": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`couchjobs tokens create`"},
                "user": {"type": "http", "scheme": "basic", "description": "A user of CouchDB."},
            },
        },
    }


def _operation(route: Route, schemas: _Schema) -> _Schema:
    names = re.findall(r"{(\w+)}", route.path)
    told: _Schema = {
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}",
        "summary": route.text,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in names
            ),
            *map(_parameter, route.parameters),
        ],
        "responses": _responses(route),
    }
    if route.scope:
        told["description"] = f"Wants the scope `{route.scope}`."
    else:
        told["security"] = []
    if route.body is not None:
        name = route.body.__name__
        schemas[name] = _inline(route.body.model_json_schema(), schemas)
        attributes = {"$ref": f"#/components/schemas/{name}"}
        data = {"type": "object", "properties": {"attributes": attributes}, "required": ["attributes"]}
        schema = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        told["requestBody"] = {"required": True, "content": {MEDIA_TYPE: {"schema": schema}}}
    elif route.path.startswith("/jobs/webhooks"):
        told["requestBody"] = {"content": {"application/json": {"schema": {}}}}
    return told


def _parameter(one: Parameter) -> _Schema:
    schema: _Schema = {"type": one.type}
    if one.one_of:
        schema["enum"] = [*one.one_of]
    if one.format:
        schema["format"] = one.format
    if one.most is not None:
        schema |= {"minimum": 1, "maximum": one.most}
    return {"name": one.name, "in": "query", "description": one.text, "schema": schema}


def _responses(route: Route) -> _Schema:
    good: _Schema = {"description": "So it is."}
    kind = {"health": "application/json", "text": "text/plain", "events": "text/event-stream"}.get(
        route.answers, MEDIA_TYPE
    )
    if route.answers:
        good["content"] = {kind: {"schema": _answer(route.answers)}}
    found: _Schema = {str(route.status): good}
    if route.answers == "health":
        return found | ({"503": {**good, "description": "Not ready."}} if route.path.endswith("ready") else {})
    error = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return found | {str(status): {"description": text, **error} for status, text in _REFUSALS.items()}


def _answer(kind: str) -> _Schema:
    job, trigger = {"$ref": "#/components/schemas/Job"}, {"$ref": "#/components/schemas/Trigger"}
    thing = {"type": "object", "properties": {"type": {"type": "string"}, "id": {"type": "string"}}, "required": ["id"]}
    data: dict[str, _Schema] = {
        "job": job,
        "trigger": trigger,
        "jobs": {"type": "array", "items": job},
        "triggers": {"type": "array", "items": trigger},
        "queues": {"type": "array", "items": thing},
        "daemons": {"type": "array", "items": thing},
        "queue": thing,
        "state": thing,
        "meta": {"type": "null"},
    }
    if kind in data:
        return {"type": "object", "properties": {"data": data[kind], "meta": {"type": "object"}}, "required": ["data"]}
    return {"type": "object"} if kind == "health" else {"type": "string"}


def _resource(model: type[BaseModel], *more: str) -> _Schema:
    """Return the schema of a resource: what documents hold is their writers' affair, so no type is promised."""
    described = model.model_json_schema()["properties"]
    fields = {
        name: {"description": one["description"]} if "description" in one else {}
        for name, one in described.items()
        if name not in _HIDDEN
    }
    return {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "id": {"type": "string"},
            "attributes": {"type": "object", "properties": fields | {name: {} for name in more}},
            "links": {"type": "object", "properties": {"self": {"type": "string"}}},
            "meta": {"type": "object", "properties": {"rev": {"type": "string"}}},
        },
        "required": ["type", "id", "attributes"],
    }


def _trigger() -> _Schema:
    return _resource(TriggerInfos, "worker_arguments", "current_state")


def _error() -> _Schema:
    text = {"type": "string"}
    error = {
        "type": "object",
        "properties": {"status": text, "title": text, "detail": text, "source": {"type": "object"}},
        "required": ["status", "title", "detail"],
    }
    return {"type": "object", "properties": {"errors": {"type": "array", "items": error}}, "required": ["errors"]}


def _inline(schema: _Schema, schemas: _Schema) -> _Schema:
    """Return a schema whose own definitions are among those of the document."""
    for name, one in schema.pop("$defs", {}).items():
        schemas.setdefault(name, one)
    moved: _Schema = _moved(schema)
    return moved


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: one.replace("#/$defs/", "#/components/schemas/") if name == "$ref" else _moved(one)
            for name, one in value.items()
        }
    return [_moved(one) for one in value] if isinstance(value, list) else value


class OpenApi:
    """The route of the description, which is for everybody."""

    def __init__(self, routes: Iterable[Route], base: str = "") -> None:
        self._body = encode(document(routes, base))

    async def answer(self, _: web.Request) -> web.Response:
        """GET /openapi.json."""
        return web.Response(body=self._body, content_type="application/json")
