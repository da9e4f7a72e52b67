"""Pieces of the OpenAPI document that FastAPI does not derive by itself."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from afdc.wire.common import Problem

PROBLEM_CONTENT = "application/problem+json"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declared errors of an endpoint."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM_CONTENT: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in {429, 503}:
        reply["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return reply


def body_of(model: type[BaseModel], streams: Mapping[str, str]) -> dict[str, Any]:
    """A request body that is JSON of `model`, or one of the streamed types, each with an example."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    for kind, example in streams.items():
        content[kind] = {"schema": {"type": "string"}, "example": example}
    return {"requestBody": {"required": True, "content": content}}


def add_schemas(document: dict[str, Any], *models: type[BaseModel]) -> None:
    """Put models into the document that only `problems` and `body_of` refer to."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Problem, *models):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, part in schema.pop("$defs", {}).items():
            schemas.setdefault(name, part)
        schemas.setdefault(str(schema["title"]), schema)
