"""The FastAPI app over services that are given: the process that makes them is `afdc_server.service.main`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from afdc.version import afdc_version
from afdc.wire.common import API_PREFIX
from afdc.wire.datasets import ReviewsCreate
from afdc.wire.jobs import Event
from afdc.wire.seeds import SeedSetCreate
from afdc_server.api import adapters, datasets, engine, events, health, jobs, keys, problems, seeds
from afdc_server.api.guard import Guard
from afdc_server.api.openapi import add_schemas
from afdc_server.datasets.labelstudio import LabelStudioTask
from afdc_server.service.services import Services

DESCRIPTION = (
    "From a few labelled examples to a large, labelled, audited fine-tuning data set and the adapter trained on it."
)


def build_app(services: Services) -> FastAPI:
    """Every route. The app starts and stops the hub; engine and runner belong to whoever made the services."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        services.hub.start()
        yield
        await services.hub.stop()

    app = FastAPI(title="AFDC", version=afdc_version(), description=DESCRIPTION, lifespan=lifespan)
    app.state.services = services
    for module in (seeds, jobs, events, datasets, adapters, engine, keys):
        app.include_router(module.router, prefix=API_PREFIX)
    app.include_router(health.router)
    problems.install(app)
    app.add_middleware(Guard, limits=services.settings.limits)
    _complete_document(app)
    return app


def _complete_document(app: FastAPI) -> None:
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = derive()
            add_schemas(document, SeedSetCreate, Event, ReviewsCreate, LabelStudioTask)
            _drop_default_422(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _drop_default_422(document: dict[str, Any]) -> None:
    """FastAPI declares its own 422 where an endpoint declares none: ours has another shape."""
    for path in document["paths"].values():
        for operation in path.values():
            reply = operation.get("responses", {}).get("422", {})
            if "HTTPValidationError" in str(reply):
                operation["responses"]["422"] = {
                    "description": "Unprocessable Content",
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
