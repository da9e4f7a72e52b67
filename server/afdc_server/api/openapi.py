"""Pieces of the OpenAPI document that FastAPI does not derive by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from afdc.wire.common import API_PREFIX, Problem
from afdc_server.api.problems import MEDIA_TYPE
from afdc_server.service.ids import ADAPTER, DATASET, JOB, KEY, SEED

PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}
PREFIXES = {"seeds": SEED, "jobs": JOB, "datasets": DATASET, "adapters": ADAPTER, "keys": KEY}
METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})
SAMPLE = "0190b6f0c0de7000a000000000000001"
UNUSED = ("HTTPValidationError", "ValidationError")
HEADERS: dict[str, dict[str, Any]] = {
    "ETag": {"schema": {"type": "string"}, "description": "changes whenever the object does"},
    "Location": {"schema": {"type": "string"}, "description": "path of what was made"},
    "Idempotency-Replayed": {"schema": {"type": "string"}, "description": "true: the reply of an earlier request"},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declared errors of an endpoint."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}},
    }
    if status in {429, 503}:
        reply["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return reply


def headers(*names: str) -> dict[str, Any]:
    """Declared headers of a reply."""
    return {name: HEADERS[name] for name in names}


def links(field: str, *operations: str) -> dict[str, Any]:
    """Operations that go on with the object whose id stands in `field` of the reply."""
    where = {"id": f"$response.body#/{field}"}
    return {operation: {"operationId": operation, "parameters": where} for operation in operations}


def body_of(model: type[BaseModel], example: Any, streams: Mapping[str, str]) -> dict[str, Any]:
    """A request body that is JSON of `model`, or one of the streamed types, each with an example."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    for kind, text in streams.items():
        content[kind] = {"schema": {"type": "string"}, "example": text}
    return {"requestBody": {"required": True, "content": content}}


def examples(**values: Any) -> dict[str, Any]:
    """`openapi_examples` of a body."""
    return {name: {"summary": name.replace("_", " "), "value": value} for name, value in values.items()}


def complete(document: dict[str, Any], models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """Finish what FastAPI derived. `models`: those that only hand-written pieces refer to."""
    _add_schemas(document, models)
    for path, operation in operations(document):
        _replace_default_422(operation)
        _describe_ids(path, operation)
    for name in UNUSED:
        document["components"]["schemas"].pop(name, None)
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation with its path."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield path, operation


def _add_schemas(document: dict[str, Any], models: Sequence[type[BaseModel]]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    every: list[type[BaseModel]] = [Problem, *models]
    for model in every:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, part in schema.pop("$defs", {}).items():
            schemas.setdefault(name, part)
        schemas.setdefault(str(schema["title"]), schema)


def _replace_default_422(operation: dict[str, Any]) -> None:
    """FastAPI declares its own 422 where an endpoint declares none: ours has another shape."""
    if "HTTPValidationError" in str(operation["responses"].get("422", {})):
        operation["responses"]["422"] = _problem(422)


def _describe_ids(path: str, operation: dict[str, Any]) -> None:
    """Ids in paths: what they look like. Others are not refused as malformed: nothing has them, and so they are 404."""
    prefix = PREFIXES.get(path.removeprefix(f"{API_PREFIX}/").split("/")[0])
    for parameter in operation.get("parameters", []):
        if parameter["in"] != "path":
            continue
        if parameter["name"] == "id" and prefix:
            parameter["schema"] |= {"pattern": f"^{prefix}[0-9a-f]{{32}}$"}
            parameter["example"] = prefix + SAMPLE
        elif parameter["name"] == "path":
            parameter["description"] = "one of `files`"
