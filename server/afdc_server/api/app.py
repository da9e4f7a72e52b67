"""The FastAPI app over services that are given: the process that makes them is `afdc_server.service.main`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from afdc.version import afdc_version
from afdc.wire.common import API_PREFIX
from afdc.wire.datasets import ReviewsCreate
from afdc.wire.jobs import Event
from afdc.wire.seeds import SeedSetCreate
from afdc_server.api import (
    adapters,
    datasets,
    engine,
    events,
    health,
    jobs,
    keys,
    problems,
    rounds,
    seeds,
    tenants,
    uploads,
)
from afdc_server.api.deps import Heavy, Require
from afdc_server.api.guard import Guard
from afdc_server.api.openapi import complete, operations
from afdc_server.datasets.labelstudio import LabelStudioTask
from afdc_server.service.services import Services

DESCRIPTION = (
    "From a few labelled examples to a large, labelled, audited fine-tuning data set and the adapter trained on it."
)


def build_app(services: Services) -> FastAPI:
    """Every route. The app starts and stops the hub and the notes on keys; engine and runner belong to whoever made
    the services."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        uploads.clear_spool(services.settings)
        services.hub.start()
        services.uses.start()
        yield
        await services.hub.stop()
        await run_in_threadpool(services.uses.stop)

    app = make_app(lifespan)
    app.state.services = services
    app.state.heavy = Heavy()
    app.add_middleware(Guard, limits=services.settings.limits, traffic=services.traffic)
    return app


def make_app(lifespan: Any = None) -> FastAPI:
    """The routes and their OpenAPI document, without anything behind them."""
    app = FastAPI(
        title="AFDC",
        version=afdc_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        strict_content_type=False,
        generate_unique_id_function=_operation_id,
    )
    for module in (seeds, jobs, rounds, events, datasets, adapters, engine, keys, tenants):
        app.include_router(module.router, prefix=API_PREFIX)
    app.include_router(health.router)
    problems.install(app)
    _complete_document(app)
    return app


def _operation_id(route: APIRoute) -> str:
    """The endpoint's own name: generated clients call their methods so."""
    return route.name


def _complete_document(app: FastAPI) -> None:
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = complete(derive(), (SeedSetCreate, Event, ReviewsCreate, LabelStudioTask))
            _tell_scopes(app, document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _tell_scopes(app: FastAPI, document: dict[str, Any]) -> None:
    """`x-scope` of an operation: what its key must be allowed to do."""
    scopes = {
        route.name: needed.call.scope
        for route in app.routes
        if isinstance(route, APIRoute)
        for needed in route.dependant.dependencies
        if isinstance(needed.call, Require)
    }
    for _, operation in operations(document):
        if operation["operationId"] in scopes:
            operation["x-scope"] = scopes[operation["operationId"]]
